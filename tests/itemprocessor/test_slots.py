"""At most DEFERKIT_CONCURRENT_ITEMS items are in pipelines at once, across the crawl."""

from __future__ import annotations

from typing import Any

import pytest
from scrapy.http import Request
from twisted.internet.defer import Deferred

from scrapy_deferkit import Chain, Limit, StackPipeline, _slots, step_stats
from scrapy_deferkit._runtime import sleep, to_awaitable, to_deferred, turn

from .crawling import crawl_with, numbered, numbers, page


class Counting:
    """Counts how many items are inside it at once, for some turns of the loop each."""

    def open_spider(self) -> None:
        self.inside = self.most = 0

    async def process_item(self, item: Any) -> Any:
        self.inside += 1
        self.most = max(self.most, self.inside)
        for _ in range(8 + item["number"] % 4):
            await turn()
        self.inside -= 1
        return item


@pytest.mark.parametrize("bound", [1, 20])
async def test_no_more_items_than_there_are_slots_are_in_pipelines_at_once(bound: int) -> None:
    trace = await crawl_with(
        Counting,
        pages=[page(*numbered(10, start)) for start in range(0, 400, 10)],
        items=numbered(500, 400),
        DEFERKIT_CONCURRENT_ITEMS=bound,
    )
    assert numbers(trace.scraped) == list(range(900))
    assert trace.crawler.get_item_pipeline(Counting).most == bound
    assert trace.reason == "finished"


class Splitting:
    """Has the parts of an item processed before it goes on."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        splitting = cls()
        splitting.crawler = crawler
        return splitting

    async def process_item(self, item: Any) -> Any:
        await turn()
        for number in range(item.pop("parts", 0)):
            part = {"number": item["number"] * 10 + number}
            await self.crawler.engine.scraper.start_itemproc_async(part, response=None)
        return item


async def test_an_item_that_a_pipeline_has_processed_itself_needs_no_slot_of_its_own() -> None:
    items = [{"number": number, "parts": 2} for number in range(1, 9)]
    trace = await crawl_with(Splitting, pages=[page(*items)], DEFERKIT_CONCURRENT_ITEMS=2)
    parts = [number * 10 + part for number in range(1, 9) for part in (0, 1)]
    assert numbers(trace.scraped) == sorted([*range(1, 9), *parts])
    assert trace.reason == "finished"
    gate, *_ = trace.crawler.engine.scraper.spidermw.middlewares
    assert gate._slots.taken == 0


class SplittingAtOnce(Splitting):
    """Has all the parts of an item processed side by side."""

    async def process_item(self, item: Any) -> Any:
        await turn()
        submit = self.crawler.engine.scraper.start_itemproc_async
        begun = [
            to_deferred(submit({"number": item["number"] * 10 + part}, response=None))
            for part in range(item.pop("parts", 0))
        ]
        for part in begun:
            await to_awaitable(part)
        return item


async def test_parts_that_are_processed_side_by_side_need_no_slots() -> None:
    items = [{"number": number, "parts": 3} for number in range(1, 121)]
    trace = await crawl_with(SplittingAtOnce, pages=[page(*items)], DEFERKIT_CONCURRENT_ITEMS=2)
    assert len(trace.scraped) == 480
    assert trace.reason == "finished"


class Joining:
    """Has each item wait for an item of a page that it asks for."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.crawler = crawler
        self.waiting: dict[int, Deferred[None]] = {}
        return self

    async def process_item(self, item: Any) -> Any:
        number = item["number"]
        if "detail" in item:
            self.waiting.pop(number).callback(None)
            return item
        self.waiting[number] = Deferred()
        self.crawler.engine.crawl(Request(page({"number": number, "detail": True})))
        await to_awaitable(self.waiting[number])
        return item


async def test_items_that_wait_for_items_of_pages_they_asked_for_do_not_starve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_slots, "QUIET", 0.05)
    trace = await crawl_with(
        Joining, pages=[page(*numbered(150))], DEFERKIT_CONCURRENT_ITEMS=100, CONCURRENT_ITEMS=150
    )
    assert len(trace.scraped) == 300
    assert trace.reason == "finished"
    assert trace.crawler.stats.get_value("deferkit/slot/overdrawn") >= 1
    assert len([it for it in trace.messages if "one more is let in" in it]) == 1


async def test_0_is_no_bound() -> None:
    trace = await crawl_with(
        Counting,
        pages=[page(*({"number": 3} for _ in range(150)))],
        CONCURRENT_ITEMS=150,
        DEFERKIT_CONCURRENT_ITEMS=0,
    )
    assert trace.crawler.get_item_pipeline(Counting).most == 150


class SlowAtFirst:
    async def process_item(self, item: Any) -> Any:
        await sleep(0.2 if item["number"] == 0 else 0)
        return item


async def test_waiting_for_a_slot_is_counted_apart_from_work() -> None:
    trace = await crawl_with(
        SlowAtFirst, pages=[page(*numbered(10))], CONCURRENT_ITEMS=10, DEFERKIT_CONCURRENT_ITEMS=1
    )
    (step,) = step_stats(trace.crawler)
    assert (step.entered, step.ok) == (10, 10)
    get = trace.crawler.stats.get_value
    assert get("deferkit/slot/waited") >= 1  # the others are not taken before
    assert 0.15 < get("deferkit/slot/max") < 0.9
    assert step.p50 < 0.1  # for what waited it was quick


async def turn_and_give(item: Any) -> Any:
    await turn()
    return item


class Shared(StackPipeline):
    stack = Chain(Limit(turn_and_give, concurrency=3), name="shop")


async def test_items_wait_for_slots_and_for_the_limits_of_stacks_inside() -> None:
    trace = await crawl_with(
        Shared, pages=[page(*numbered(60))], items=numbered(60, 60), DEFERKIT_CONCURRENT_ITEMS=7
    )
    assert numbers(trace.scraped) == list(range(120))
