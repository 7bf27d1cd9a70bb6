"""What users write, type-checked by mypy and never run.

Every ``type: ignore`` here is an error that mypy has to find: strict mode reports one that it does
not need.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from scrapy import Spider
from scrapy.crawler import Crawler
from scrapy.http import Response
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from typing_extensions import assert_type

from scrapy_deferkit import (
    Chain,
    ChainPipeline,
    ClosingError,
    DeferKitError,
    Each,
    EachPipeline,
    MergeConflict,
    NoItemReturned,
    Parallel,
    ParallelPipeline,
    StackConfigError,
    StackDownloaderMiddleware,
    StackPipeline,
    StackSpiderMiddleware,
    StepCancelled,
    Tolerant,
    TolerantPipeline,
    copy_item,
    keep_item,
    merge_changes,
    step_of,
)
from scrapy_deferkit.defer import (
    parallel,
    parallel_async,
    process_chain,
    process_chain_async,
    process_chain_both,
    process_chain_both_async,
    process_parallel,
    process_parallel_async,
)
from scrapy_deferkit.testing import FailedItem, StackRun, mock_crawler, run_stack


@dataclass
class Book:
    title: str
    price: float


def clean(book: Book) -> Book:
    return book


async def store(book: Book) -> Book:
    return book


def look_up(book: Book) -> Deferred[Book]:
    raise NotImplementedError


def convert(book: Book, currency: str, *, digits: int = 2) -> Book:
    return book


async def translate(book: Book, currency: str, *, digits: int = 2) -> Book:
    return book


def recover(failure: Failure) -> Book:
    raise NotImplementedError


def recover_in(failure: Failure, currency: str, *, digits: int = 2) -> Book:
    raise NotImplementedError


def fetch(url: str, timeout: float, *, retries: int = 3) -> Deferred[Response]:
    raise NotImplementedError


async def urls() -> AsyncIterator[str]:
    yield "https://books.toscrape.com"


def the_helpers(book: Book, failure: Failure) -> None:
    # plain, coroutine and Deferred-returning callbacks, together
    assert_type(process_chain([clean, store, look_up], book), Deferred[Any])
    assert_type(process_chain_both([clean, None], [None, recover], failure), Deferred[Any])
    assert_type(process_parallel((clean, store, look_up), book), Deferred[list[Any]])
    assert_type(
        parallel(["https://a", "https://b"], 8, fetch, 1.5), Deferred[list[tuple[bool, Any]]]
    )

    # extra arguments go to every callback, and have to fit
    process_chain([convert], book, "GBP")
    process_chain([convert, translate], book, "GBP", digits=3)
    process_chain([convert], book)  # type: ignore[list-item]
    process_chain([convert], book, 5)  # type: ignore[list-item]
    process_chain([convert], book, "GBP", digits="3")  # type: ignore[list-item]
    process_chain([convert], book, "GBP", places=3)  # type: ignore[list-item]

    process_chain_both([convert], [recover_in], book, "GBP", digits=3)
    process_chain_both([convert], [None], book, 5)  # type: ignore[list-item]
    process_chain_both([None], [recover_in], book, 5)  # type: ignore[list-item]
    process_chain_both([clean], [clean], book)  # type: ignore[list-item]

    process_parallel([convert, translate], book, "GBP", digits=3)
    process_parallel([convert], book, 5)  # type: ignore[list-item]

    parallel(urls(), 8, fetch, 1.5, retries=1)
    parallel(["https://a"], 8, fetch, "soon")  # type: ignore[arg-type]
    parallel(["https://a"], 8, fetch)  # type: ignore[call-arg]
    parallel([1, 2], 8, fetch, 1.5)  # type: ignore[misc]
    parallel(["https://a"], "8", fetch, 1.5)  # type: ignore[arg-type]
    parallel(5, 8, fetch, 1.5)  # type: ignore[arg-type]


async def the_helpers_awaited(book: Book, failure: Failure) -> None:
    await process_chain_async([convert, translate], book, "GBP", digits=3)
    await process_chain_both_async([clean, None], [None, recover], failure)
    assert_type(await process_parallel_async([clean, store], book), list[Any])
    assert_type(await parallel_async(urls(), 8, fetch, 1.5), list[tuple[bool, Any]])

    await process_chain_async([convert], book, 5)  # type: ignore[list-item]
    await process_chain_both_async([None], [recover_in], book, 5)  # type: ignore[list-item]
    await process_parallel_async([convert], book, 5)  # type: ignore[list-item]
    await parallel_async(["https://a"], 8, fetch, "soon")  # type: ignore[arg-type]

    process_chain_async([clean], book)  # type: ignore[unused-coroutine]


class CatalogueReader:
    """A component, as a processor: built, opened and closed with the spider."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> CatalogueReader:
        return cls(crawler.settings["CATALOGUE"])

    async def open_spider(self) -> None: ...

    async def close_spider(self) -> None: ...

    def process_item(self, item: Book) -> Book:
        return item


def keep(failure: Failure, book: Book) -> Book:
    return book


def dearest(book: Book, results: list[Any]) -> Book:
    return book


catalogue = Chain(
    clean,
    "bookshop.processors.store",
    CatalogueReader,
    Tolerant(clean, (store, keep), on=(OSError, ValueError), name="careful"),
    Parallel(look_up, Chain(store, name="storing"), merge=dearest, copy=copy_item),
    Parallel(look_up, clean, merge=merge_changes),
    Parallel(look_up, clean, merge=keep_item),
    Each("reviews", store, concurrency=4, on_error="drop"),
    Each("images", store, on_error=keep),
    name="catalogue",
)
Chain(clean, names="catalogue")  # type: ignore[call-arg]
Tolerant(clean, on="OSError")  # type: ignore[arg-type]
Parallel(clean, merge="keep")  # type: ignore[arg-type]
Each(1, store)  # type: ignore[arg-type]
Each("reviews", store, concurrency="4")  # type: ignore[arg-type]


class CataloguePipeline(StackPipeline):
    stack = catalogue


class PathPipeline(StackPipeline):
    stack = "bookshop.stacks.catalogue"


class WrongPipeline(StackPipeline):
    stack = 5  # type: ignore[assignment]


async def stacks_awaited(book: Book, response: Response, crawler: Crawler) -> None:
    await catalogue(book)
    await catalogue(book, response, depth=2)
    bound: Chain = catalogue.bind(crawler)
    await bound.open()
    await bound.close()


async def components(crawler: Crawler, book: Book) -> None:
    pipeline: CataloguePipeline = CataloguePipeline.from_crawler(crawler)
    await pipeline.open_spider()
    await pipeline.process_item(book)
    await pipeline.close_spider()
    classes: list[type[StackPipeline]] = [ChainPipeline, TolerantPipeline]
    classes += [ParallelPipeline, EachPipeline]
    for cls in classes:
        assert_type(cls.from_crawler(crawler), StackPipeline)
    assert_type(StackSpiderMiddleware.from_crawler(crawler), StackSpiderMiddleware)
    assert_type(StackDownloaderMiddleware.from_crawler(crawler), StackDownloaderMiddleware)


def errors(error: DeferKitError) -> str | None:
    if isinstance(error, ClosingError):
        assert_type(error.errors[0], BaseException)
    assert_type([MergeConflict, NoItemReturned, StepCancelled], list[type[DeferKitError]])
    return step_of(error)


def wrong_setting() -> ValueError:
    return StackConfigError("DEFERKIT_CHAIN: ...")


async def in_tests(book: Book, spider: Spider) -> None:
    crawler: Crawler = mock_crawler({"CATALOGUE": "books.db"}, spider)
    mock_crawler(spider=type(spider))
    run: StackRun = await run_stack(catalogue, [book], crawler=crawler)
    assert_type(run.failed[0], FailedItem)
    await run_stack(clean, [book])  # type: ignore[arg-type]


processor: Callable[[Book], Book] = clean
process_chain([processor], processor)
