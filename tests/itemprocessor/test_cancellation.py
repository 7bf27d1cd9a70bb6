"""A cancellation that nobody asked for ends the item once, as an item error."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from scrapy_deferkit import Chain, StackPipeline, step_stats
from scrapy_deferkit._runtime import to_awaitable, to_deferred, turn

from .crawling import crawl_with, numbered, numbers, page

only_asyncio = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio tells who was cancelled from Python 3.11 on"
)


async def raise_at_once(item: Any) -> Any:
    if item["number"] == 1:
        raise asyncio.CancelledError
    return item


async def raise_later(item: Any) -> Any:
    await turn()
    return await raise_at_once(item)


async def await_a_cancelled_task(item: Any) -> Any:
    if item["number"] == 1:
        task = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task
    return item


async def await_a_cancelled_deferred(item: Any) -> Any:
    if item["number"] == 1:
        cancelled: Deferred[Any] = Deferred()
        cancelled.cancel()
        await to_awaitable(cancelled)
    return item


def make_pipeline(function: Any, in_stack: bool) -> Any:
    class Pipeline:
        async def process_item(self, item: Any) -> Any:
            return await function(item)

    class InStack(StackPipeline):
        stack = Chain(function, name="shop")

    return InStack if in_stack else Pipeline


class After:
    def process_item(self, item: Any) -> Any:
        assert item["number"] != 1
        return item


@only_asyncio
@pytest.mark.parametrize("from_start", [False, True])
@pytest.mark.parametrize("in_stack", [False, True])
@pytest.mark.parametrize(
    "function",
    [raise_at_once, raise_later, await_a_cancelled_task, await_a_cancelled_deferred],
)
async def test_a_cancellation_from_within_is_an_item_error(
    runtime: str, function: Any, in_stack: bool, from_start: bool
) -> None:
    if runtime == "twisted" and function is await_a_cancelled_task:
        pytest.skip("there are no tasks")
    items = numbered(4)
    source: dict[str, Any] = {"items": items} if from_start else {"pages": [page(*items)]}
    pipeline = make_pipeline(function, in_stack)
    trace = await crawl_with(pipeline, After, **source)
    assert trace.reason == "finished"
    ((item, step, error),) = trace.failed
    assert item["number"] == 1
    assert step in ({f"shop/{function.__name__}", "InStack"} if in_stack else {"Pipeline"})
    assert error in ("StepCancelled", "CancelledError")
    assert numbers(trace.scraped) == [0, 2, 3]
    figures = {it.path: it for it in step_stats(trace.crawler)}
    assert (figures[pipeline.__name__].failed, figures[pipeline.__name__].ok) == (1, 3)
    assert figures["After"].entered == 3


async def test_a_deferred_that_is_cancelled_is_an_item_error() -> None:
    class Cancelling:
        async def process_item(self, item: Any) -> Any:
            raise CancelledError

    trace = await crawl_with(Cancelling, pages=[page(*numbered(2))])
    assert [(step, error) for _, step, error in trace.failed] == [
        ("Cancelling", "CancelledError")
    ] * 2


class Submitting:
    """Has a part of each item processed, and cancels that while it waits."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.crawler = crawler
        return self

    async def process_item(self, item: Any) -> Any:
        if "part" in item:
            await to_awaitable(Deferred())
        part = {"number": item["number"], "part": 1}
        scraper = self.crawler.engine.scraper
        submitted = to_deferred(scraper.start_itemproc_async(part, response=None))
        await turn()
        await turn()
        submitted.addErrback(lambda _: None).cancel()
        return item


async def test_a_part_whose_processing_is_cancelled_by_who_submitted_it_has_failed() -> None:
    trace = await crawl_with(Submitting, pages=[page(*numbered(3))])
    assert trace.reason == "finished"
    assert numbers(trace.scraped) == [0, 1, 2]
    failed = trace.of("item_error")
    assert numbers(it["item"] for it in failed) == [0, 1, 2]
    assert all(it["item"]["part"] == 1 for it in failed)
    assert trace.crawler.stats.get_value("deferkit/items/dead_lettered") == 3
