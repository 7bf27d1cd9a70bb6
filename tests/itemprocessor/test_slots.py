"""At most DEFERKIT_CONCURRENT_ITEMS items are in pipelines at once, across the crawl."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from scrapy_deferkit import Chain, Limit, StackPipeline, step_stats
from scrapy_deferkit._runtime import call_soon, sleep, to_deferred, turn

from ..steps import wait
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
    processor = trace.crawler.engine.scraper.itemproc
    assert processor._slots.tokens == 2


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
    assert get("deferkit/slot/waited") == 9
    assert 0.15 < get("deferkit/slot/p50") <= get("deferkit/slot/max")
    assert get("deferkit/slot/max") < 0.9 < get("deferkit/slot/seconds")
    assert step.p50 < 0.1  # for what waited it was quick


class Gathering:
    """Holds the first item until all the others wait behind it; the others go through at once."""

    first: Deferred[Any]

    def open_spider(self) -> None:
        self.first = Deferred()
        self.is_first = True

    def process_item(self, item: Any) -> Any:
        if self.is_first:
            self.is_first = False
            later = self.first
            return to_deferred(self._wait(item, later))
        return item

    async def _wait(self, item: Any, later: Deferred[Any]) -> Any:
        for _ in range(10):
            await turn()
        call_soon(lambda: later.callback(None))
        await wait(later)
        return item


@pytest.mark.filterwarnings("ignore::scrapy.exceptions.ScrapyDeprecationWarning")
async def test_thousands_that_wait_for_a_slot_and_then_go_through_at_once_all_arrive() -> None:
    trace = await crawl_with(
        Gathering,
        pages=[page(*numbered(2000))],
        CONCURRENT_ITEMS=2000,
        DEFERKIT_CONCURRENT_ITEMS=1,
    )
    assert trace.crawler.stats.get_value("deferkit/slot/waited") == 1999
    assert numbers(trace.scraped) == list(range(2000))
    assert not trace.failed


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
