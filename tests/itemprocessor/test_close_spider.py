"""CloseSpider in a pipeline, and DEFERKIT_MAX_FAILED_ITEMS, close the crawl; nothing hangs."""

from __future__ import annotations

from typing import Any

import pytest
from scrapy import signals
from scrapy.core.engine import ExecutionEngine
from scrapy.core.scraper import Scraper
from scrapy.exceptions import CloseSpider, DropItem

from scrapy_deferkit import (
    Chain,
    DeferKitItemProcessor,
    StackPipeline,
    StackSpiderMiddleware,
)
from scrapy_deferkit._runtime import turn
from scrapy_deferkit.testing import mock_crawler

from ..crawls.tracing import Trace
from ..steps import Broken
from .crawling import crawl_with, numbered, numbers, page

WAITS_FOR_START = hasattr(Scraper, "_start_itemproc_nowait")
"""Whether Scrapy waits for items of start() that are on their way to the item processor."""


async def check_disk(item: Any, *_: Any) -> Any:
    for _turn in range(item["number"] % 7):
        await turn()
    if item.get("full"):
        raise CloseSpider("disk full")
    return item


class Disk:
    async def process_item(self, item: Any) -> Any:
        return await check_disk(item)


class AtOnce:
    def process_item(self, item: Any) -> Any:
        if item.get("full"):
            raise CloseSpider("disk full")
        return item


class InAStack(StackPipeline):
    stack = Chain(Chain(check_disk, name="disk"), name="shop")


class Slow:
    async def process_item(self, item: Any) -> Any:
        for _ in range(5):
            await turn()
        return item


def with_full(items: list[dict[str, Any]], *positions: int) -> list[dict[str, Any]]:
    for position in positions:
        items[position]["full"] = True
    return items


@pytest.mark.parametrize("from_start", [False, True])
@pytest.mark.parametrize("full", [(0,), (5,), (3, 4, 10, 29)])
@pytest.mark.parametrize(
    ("pipeline", "step"), [(Disk, "Disk"), (AtOnce, "AtOnce"), (InAStack, "shop/disk/check_disk")]
)
async def test_close_spider_of_a_pipeline_closes_the_crawl_with_its_reason(
    pipeline: Any, step: str, full: tuple[int, ...], from_start: bool
) -> None:
    items = with_full(numbered(30), *full)
    source: dict[str, Any] = {"items": items} if from_start else {"pages": [page(*items)]}
    trace = await crawl_with(pipeline, Slow, **source, DEFERKIT_CONCURRENT_ITEMS=4)
    assert trace.reason == "disk full"
    ended = {(found, error) for _, found, error in trace.failed}
    if from_start:  # one may have waited for a slot
        ended.discard((None, "StepCancelled"))
    assert ended == {(step, "CloseSpider")}
    failed = numbers(item for item, _, error in trace.failed if error == "CloseSpider")
    assert set(failed) <= set(full)
    assert full[0] in failed
    if not from_start:  # they wait for their slots, and are still processed
        assert failed == list(full)
        assert numbers(trace.scraped) == [number for number in range(30) if number not in full]
    assert len(trace.of("spider_closed")) == 1
    if from_start and not WAITS_FOR_START:
        return
    names = [name for name, _ in trace.signals]
    last = max(index for index, name in enumerate(names) if name.startswith("item_"))
    assert last < names.index("spider_closed")


async def test_a_crawl_that_is_closing_is_not_closed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[str] = []
    close = ExecutionEngine.close_spider_async

    def count(self: Any, *, reason: str = "cancelled") -> Any:
        closed.append(reason)
        return close(self, reason=reason)

    monkeypatch.setattr(ExecutionEngine, "close_spider_async", count)
    trace = await crawl_with(Disk, pages=[page(*with_full(numbered(300), *range(300)))])
    assert (trace.reason, len(trace.failed)) == ("disk full", 300)
    assert len(closed) < 100


async def test_close_spider_without_a_reason_is_cancelled() -> None:
    class Closing:
        def process_item(self, item: Any) -> Any:
            raise CloseSpider

    trace = await crawl_with(Closing, pages=[page(*numbered(2))])
    assert trace.reason == "cancelled"


class SlowHandler:
    """Handles the signal of each item for a while, as an exporter to elsewhere may."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        crawler.signals.connect(self.handle, signals.item_scraped)
        return self

    async def handle(self, item: Any) -> None:
        for _ in range(30):
            await turn()


@pytest.mark.skipif(not WAITS_FOR_START, reason="this Scrapy closes the spider all the same")
@pytest.mark.parametrize("pipeline", [AtOnce, Slow])
async def test_a_crawl_that_is_closed_while_items_of_start_are_signalled_ends(
    pipeline: Any,
) -> None:
    trace = await crawl_with(
        pipeline, items=numbered(10), EXTENSIONS={SlowHandler: 1}, CLOSESPIDER_ITEMCOUNT=3
    )
    assert trace.reason == "closespider_itemcount"
    assert len(trace.scraped) >= 3


# ------------------------------------------------------------------- DEFERKIT_MAX_FAILED_ITEMS


class Failing:
    async def process_item(self, item: Any) -> Any:
        await turn()
        return fail(item)


def fail(item: Any, *_: Any) -> Any:
    if item.get("fail"):
        raise Broken
    if item.get("drop"):
        raise DropItem("unwanted")
    return item


async def crawl_failing(count: int, every: int, limit: Any, *pipelines: Any, **more: Any) -> Trace:
    items = numbered(count)
    for item in items:
        item["fail"] = item["number"] % every == 0
    pages = [page(*items[start : start + 50]) for start in range(0, count, 50)]
    if limit is not None:
        more["DEFERKIT_MAX_FAILED_ITEMS"] = limit
    return await crawl_with(*pipelines, pages=pages, CONCURRENT_REQUESTS=1, **more)


@pytest.mark.parametrize("limit", [3, "3"])
async def test_as_many_failed_items_as_are_allowed_close_the_crawl(limit: Any) -> None:
    trace = await crawl_failing(600, 10, limit, Failing)
    assert trace.reason == "item_failures"
    assert len(trace.failed) >= 3
    assert trace.crawler.stats.get_value("deferkit/items/failed") == len(trace.failed)
    (message,) = [it for it in trace.messages if "DEFERKIT_MAX_FAILED_ITEMS" in it]
    assert "3 items" in message


@pytest.mark.parametrize("limit", [None, 0, "0", "", 21])
async def test_fewer_do_not(limit: Any) -> None:
    trace = await crawl_failing(200, 10, limit, Failing)
    assert trace.reason == "finished"
    assert len(trace.failed) == 20


@pytest.mark.crawl  # as long as whole crawls, so once an environment
async def test_a_share_is_of_the_last_thousand_items() -> None:
    # One in 25 is 4%: 60 of 1,500 fail, and never 50 of the last 1,000.
    trace = await crawl_failing(1500, 25, "5%", Failing)
    assert (trace.reason, len(trace.failed)) == ("finished", 60)
    trace = await crawl_failing(1500, 25, "4%", Failing)
    assert trace.reason == "item_failures"
    assert len(trace.failed) >= 40


async def test_a_crawl_is_closed_once_for_its_failed_items(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The share reaches the limit, falls below it, and reaches it again."""
    settings = {"ITEM_PIPELINES": {Failing: 1}, "DEFERKIT_MAX_FAILED_ITEMS": "1%"}
    crawler = mock_crawler(settings)
    processor = DeferKitItemProcessor.from_crawler(crawler)
    for number in range(1500):
        item = {"number": number, "fail": number < 10 or number >= 1400}
        try:
            await processor.process_item_async(item)
        except Broken:
            crawler.signals.send_catch_log(signals.item_error, item=item)
        else:
            crawler.signals.send_catch_log(signals.item_scraped, item=item)
    assert sum("DEFERKIT_MAX_FAILED_ITEMS" in it.getMessage() for it in caplog.records) == 1


async def test_items_that_fail_in_the_spider_middleware_count_too() -> None:
    trace = await crawl_failing(
        600,
        10,
        3,
        SPIDER_MIDDLEWARES={StackSpiderMiddleware: 100},
        DEFERKIT_SPIDER_STACK=Chain(fail, name="near"),
    )
    assert trace.reason == "item_failures"
    assert {step for _, step, _ in trace.failed} == {"near/fail"}


@pytest.mark.crawl
async def test_items_that_end_in_the_spider_middleware_are_among_the_last_thousand() -> None:
    """One in 100 fails there, and most of the others are dropped."""
    items = [
        {"number": number, "fail": number % 100 == 0, "drop": number % 100 > 1}
        for number in range(2000)
    ]
    trace = await crawl_with(
        pages=[page(*items[start : start + 100]) for start in range(0, 2000, 100)],
        SPIDER_MIDDLEWARES={StackSpiderMiddleware: 100},
        DEFERKIT_SPIDER_STACK=Chain(fail, name="near"),
        DEFERKIT_MAX_FAILED_ITEMS="5%",
        DEFERKIT_DEAD_LETTERS=False,
    )
    assert (trace.reason, len(trace.failed)) == ("finished", 20)


async def test_dropped_items_have_not_failed() -> None:
    items = [{"number": number, "drop": True} for number in range(20)]
    trace = await crawl_with(Failing, pages=[page(*items)], DEFERKIT_MAX_FAILED_ITEMS=1)
    assert (trace.reason, len(trace.dropped)) == ("finished", 20)
