"""What is compared with what: one function for each line of the table.

Each is a coroutine function that gives two measurements, of ours and of the peer's, made by
:func:`calls` or :func:`awaits`, or any coroutine function from a number of loops to seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import types
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import scrapy.utils.defer
from crawls import Measurement, OnePage, Pages, WaitingPipeline, crawls
from pyperf import perf_counter
from scrapy.pipelines import ItemPipelineManager
from scrapy.utils.asyncio import _parallel_asyncio
from scrapy.utils.defer import maybe_deferred_to_future
from start import added

from scrapy_deferkit import (
    Chain,
    ChainPipeline,
    CircuitBreaker,
    DeferKitItemProcessor,
    Each,
    Limit,
    Retry,
    Timeout,
    copy_item,
    defer,
)
from scrapy_deferkit.testing import mock_crawler


@dataclass(frozen=True)
class Comparison:
    """One line of the table."""

    name: str
    what: str
    target: float
    make: Callable[[], Awaitable[tuple[Measurement, Measurement]]]
    loops: int | None = None
    """How many loops make a measurement; ``None`` to find out."""


COMPARISONS: list[Comparison] = []


def comparison(what: str, target: float, loops: int | None = None) -> Callable[[Any], Any]:
    """Add a comparison: the peer has to take *target* times as long as we do, or more."""

    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        COMPARISONS.append(Comparison(make.__name__, what, target, make, loops))
        return make

    return add


def calls(function: Callable[[], object]) -> Measurement:
    """Measure plain calls of *function*."""

    async def measure(loops: int) -> float:
        repeat = range(loops)
        started = perf_counter()
        for _ in repeat:
            function()
        return perf_counter() - started

    return measure


def awaits(function: Callable[[], Awaitable[object]]) -> Measurement:
    """Measure calls of *function* together with awaiting what they give."""

    async def measure(loops: int) -> float:
        repeat = range(loops)
        started = perf_counter()
        for _ in repeat:
            await function()
        return perf_counter() - started

    return measure


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Let Scrapy's own functions spend nothing on the warning that they are deprecated."""
    warnings = scrapy.utils.defer.warnings
    scrapy.utils.defer.warnings = types.SimpleNamespace(warn=lambda *args, **kwargs: None)
    try:
        yield
    finally:
        scrapy.utils.defer.warnings = warnings


def quietly(measurement: Measurement) -> Measurement:
    """Measure without deprecation warnings of Scrapy's helpers."""

    async def measure(loops: int) -> float:
        with without_warnings():
            return await measurement(loops)

    return measure


ADDON = {"ADDONS": {"scrapy_deferkit.Addon": 500}}


def pass_on(item: Any) -> Any:
    return item


async def pass_on_coroutine(item: Any) -> Any:
    return item


class PlainPipeline:
    def process_item(self, item: Any) -> Any:
        return item


class CoroutinePipeline:
    async def process_item(self, item: Any) -> Any:
        return item


async def chain_and_manager(processor: Any, pipeline: type) -> tuple[Measurement, Measurement]:
    ours = ChainPipeline.from_crawler(mock_crawler({"DEFERKIT_CHAIN": [processor] * 5}))
    await ours.open_spider()
    theirs = ItemPipelineManager(*(pipeline() for _ in range(5)), crawler=mock_crawler())
    item = {"title": "A Light in the Attic"}
    return (
        awaits(functools.partial(ours.process_item, item)),
        awaits(functools.partial(theirs.process_item_async, item)),
    )


@comparison("ChainPipeline, 5 plain processors | ItemPipelineManager, 5 pipelines", target=5.0)
async def chain_pipeline_plain() -> tuple[Measurement, Measurement]:
    return await chain_and_manager(pass_on, PlainPipeline)


@comparison(
    "ChainPipeline, 5 coroutines that never suspend | ItemPipelineManager, 5 such pipelines",
    target=1.0,
)
async def chain_pipeline_coroutines() -> tuple[Measurement, Measurement]:
    return await chain_and_manager(pass_on_coroutine, CoroutinePipeline)


@comparison("process_chain, 5 plain functions | Scrapy's", target=2.0)
async def process_chain() -> tuple[Measurement, Measurement]:
    arguments = ([pass_on] * 5, {"title": "A Light in the Attic"})
    return (
        calls(functools.partial(defer.process_chain, *arguments)),
        quietly(calls(functools.partial(scrapy.utils.defer.process_chain, *arguments))),
    )


@comparison("process_parallel, 5 plain functions | Scrapy's", target=5.0)
async def process_parallel() -> tuple[Measurement, Measurement]:
    arguments = ([pass_on] * 5, {"title": "A Light in the Attic"})
    return (
        calls(functools.partial(defer.process_parallel, *arguments)),
        quietly(calls(functools.partial(scrapy.utils.defer.process_parallel, *arguments))),
    )


@comparison("parallel([x], 100) | Scrapy's", target=20.0)
async def parallel() -> tuple[Measurement, Measurement]:
    return (
        awaits(lambda: maybe_deferred_to_future(defer.parallel(["x"], 100, pass_on))),
        awaits(lambda: maybe_deferred_to_future(scrapy.utils.defer.parallel(["x"], 100, pass_on))),
    )


@comparison("parallel over 2,000 plain functions, 16 at once | Scrapy's", target=1.0)
async def parallel_of_many() -> tuple[Measurement, Measurement]:
    return (
        awaits(lambda: maybe_deferred_to_future(defer.parallel(ELEMENTS, 16, pass_on))),
        quietly(
            awaits(
                lambda: maybe_deferred_to_future(scrapy.utils.defer.parallel(ELEMENTS, 16, pass_on))
            )
        ),
    )


ELEMENTS = list(range(2000))


async def pass_on_suspended(item: Any) -> Any:
    await asyncio.sleep(0)
    return item


def each_and_scrapys(function: Any) -> tuple[Measurement, Measurement]:
    """Compare an Each with what Scrapy runs the items of a callback on."""
    each = Each("elements", function, concurrency=16)
    return (
        awaits(lambda: each({"elements": ELEMENTS})),
        awaits(lambda: _parallel_asyncio(ELEMENTS, 16, function)),
    )


def parallel_async_and_scrapys(function: Any) -> tuple[Measurement, Measurement]:
    return (
        awaits(lambda: defer.parallel_async(ELEMENTS, 16, function)),
        awaits(lambda: _parallel_asyncio(ELEMENTS, 16, function)),
    )


def time_of_elements(seconds: float) -> Measurement:
    """Stand for a peer that takes so many *seconds* for each element."""

    async def allowed(loops: int) -> float:
        return seconds * len(ELEMENTS) * loops

    return allowed


@comparison("Each over 2,000 that suspend, 16 at once | Scrapy's _parallel_asyncio", target=1.0)
async def each_suspended() -> tuple[Measurement, Measurement]:
    return each_and_scrapys(pass_on_suspended)


@comparison(
    "Each over 2,000 coroutines that never suspend | Scrapy's _parallel_asyncio", target=3.0
)
async def each_of_coroutines() -> tuple[Measurement, Measurement]:
    return each_and_scrapys(pass_on_coroutine)


@comparison("Each over 2,000 plain functions | 1.5 µs an element", target=1.0, loops=20)
async def each_plain() -> tuple[Measurement, Measurement]:
    each = Each("elements", pass_on, concurrency=16)
    return awaits(lambda: each({"elements": ELEMENTS})), time_of_elements(1.5e-6)


@comparison("parallel_async over 2,000 that suspend | Scrapy's _parallel_asyncio", target=1.0)
async def parallel_async_suspended() -> tuple[Measurement, Measurement]:
    return parallel_async_and_scrapys(pass_on_suspended)


@comparison("parallel_async, 2,000 that never suspend | Scrapy's _parallel_asyncio", target=3.0)
async def parallel_async_of_coroutines() -> tuple[Measurement, Measurement]:
    return parallel_async_and_scrapys(pass_on_coroutine)


@comparison("parallel_async over 2,000 plain functions | 1.5 µs an element", 1.0, loops=20)
async def parallel_async_plain() -> tuple[Measurement, Measurement]:
    return (
        awaits(lambda: defer.parallel_async(ELEMENTS, 16, pass_on)),
        time_of_elements(1.5e-6),
    )


def policy_and_bare_stack(policy: Any) -> tuple[Measurement, Measurement]:
    bare = Chain(pass_on)
    item = {"title": "A Light in the Attic"}
    return (
        awaits(functools.partial(policy.bind(mock_crawler()), item)),
        awaits(functools.partial(bare.bind(mock_crawler()), item)),
    )


# A policy may take three times as long as the bare stack of the same processor.
A_THIRD = 1 / 3


@comparison("Timeout of a plain processor | a Chain of it", target=A_THIRD)
async def timeout() -> tuple[Measurement, Measurement]:
    return policy_and_bare_stack(Timeout(pass_on, 60))


@comparison("Limit with a free slot | a Chain of the same processor", target=A_THIRD)
async def limit() -> tuple[Measurement, Measurement]:
    return policy_and_bare_stack(Limit(pass_on, concurrency=8))


@comparison("CircuitBreaker, closed | a Chain of the same processor", target=A_THIRD)
async def circuit_breaker() -> tuple[Measurement, Measurement]:
    return policy_and_bare_stack(CircuitBreaker(pass_on))


@comparison("Retry, without its copy of the item | a Chain of the same processor", target=A_THIRD)
async def retry() -> tuple[Measurement, Measurement]:
    return policy_and_bare_stack(Retry(pass_on, on=OSError, copy=pass_on))


@comparison("the copy of an item that a Retry makes | a Chain of a plain processor", target=0.0)
async def copy_of_an_item() -> tuple[Measurement, Measurement]:
    item = {"title": "A Light in the Attic"}
    bare = Chain(pass_on).bind(mock_crawler())
    return calls(functools.partial(copy_item, item)), awaits(functools.partial(bare, item))


def processor_and_manager(**settings: Any) -> tuple[Measurement, Measurement]:
    pipelines = [PlainPipeline() for _ in range(5)]
    ours = DeferKitItemProcessor(*pipelines, crawler=mock_crawler(settings))
    theirs = ItemPipelineManager(*pipelines, crawler=mock_crawler())
    item = {"title": "A Light in the Attic"}
    return (
        awaits(functools.partial(ours.process_item_async, item)),
        awaits(functools.partial(theirs.process_item_async, item)),
    )


@comparison("item processor, 5 plain pipelines | ItemPipelineManager", target=2.0)
async def item_processor() -> tuple[Measurement, Measurement]:
    return processor_and_manager()


@comparison("the same without step stats | ItemPipelineManager", target=5.0)
async def item_processor_without_stats() -> tuple[Measurement, Measurement]:
    return processor_and_manager(DEFERKIT_STEP_STATS=False)


@comparison("CPU of a page with one item, with the add-on | without", target=1.4, loops=600)
async def crawl_of_pages() -> tuple[Measurement, Measurement]:
    return crawls(Pages, **ADDON), crawls(Pages)


@comparison("CPU of a page with a JOBDIR, with the add-on | without", target=1.7, loops=600)
async def crawl_of_a_job() -> tuple[Measurement, Measurement]:
    return crawls(Pages, has_job=True, **ADDON), crawls(Pages, has_job=True)


@comparison("CPU of a page with a JOBDIR and the add-on | with neither", target=1.1, loops=600)
async def crawl_of_a_job_and_none() -> tuple[Measurement, Measurement]:
    return crawls(Pages, has_job=True, **ADDON), crawls(Pages)


@comparison("an item of 1,000 of one page that each wait 50 ms, by the clock", 0.97, loops=1000)
async def crawl_of_items_that_wait() -> tuple[Measurement, Measurement]:
    return (
        crawls(OnePage, WaitingPipeline, perf_counter, **ADDON),
        crawls(OnePage, WaitingPipeline, perf_counter),
    )


@comparison("CPU of an item of 20,000 of one callback", target=0.97, loops=20_000)
async def crawl_of_many_items() -> tuple[Measurement, Measurement]:
    return crawls(OnePage, **ADDON), crawls(OnePage)


@comparison("CPU that the add-on adds until the spider is open | 100 ms", 1.0, loops=4)
async def start_of_a_crawl() -> tuple[Measurement, Measurement]:
    async def ours(rounds: int) -> float:
        # A few processes tell nothing; and noise may make it negative.
        return max(added(max(rounds, 3)).cpu_to_open, 0.001) * rounds

    async def allowed(rounds: int) -> float:
        return 0.1 * rounds

    return ours, allowed
