"""What a subclass of the item processor overrides is called, and is part of how an item ends."""

from __future__ import annotations

from contextvars import Context
from typing import Any

import pytest
from scrapy.exceptions import CloseSpider, DropItem, ScrapyDeprecationWarning

from scrapy_deferkit import DeferKitItemProcessor
from scrapy_deferkit._engine import resolve
from scrapy_deferkit._runtime import to_deferred, turn
from scrapy_deferkit.testing import mock_crawler

from ..crawls.tracing import Trace
from ..steps import Broken
from .crawling import Starting, crawl_with, letters_at, numbered, numbers, page

pytestmark = pytest.mark.filterwarnings("ignore::scrapy.exceptions.ScrapyDeprecationWarning")


class Noting:
    """Notes what the pipelines are called with."""

    def open_spider(self) -> None:
        self.calls: list[Any] = ["open"]

    async def process_item(self, item: Any) -> Any:
        await turn()
        self.calls.append(item["number"])
        if item.get("bad"):
            raise Broken
        return item

    def close_spider(self) -> None:
        self.calls.append("close")


class Old(DeferKitItemProcessor):
    """Has the old names alone, and calls those of its base."""

    def open_spider(self, spider: Any) -> Any:
        self.seen = ["open"]
        return super().open_spider(spider)

    def process_item(self, item: Any, spider: Any) -> Any:
        self.seen.append(item["number"])
        assert spider is self.crawler.spider  # type: ignore[union-attr]
        return super().process_item(item, spider)

    def close_spider(self, spider: Any) -> Any:
        self.seen.append("close")
        return super().close_spider(spider)


class OldOverNew(Old):
    """Has the old names alone, and calls the new ones, some with what is not the item."""

    def open_spider(self, spider: Any) -> Any:
        self.seen = ["open"]
        return to_deferred(self.open_spider_async())

    async def process_item(self, item: Any, spider: Any) -> Any:
        self.seen.append(item["number"])
        await turn()
        return await self.process_item_async({**item})

    async def close_spider(self, spider: Any) -> None:
        self.seen.append("close")
        await self.close_spider_async()


class OutOfContext(Old):
    """Calls its base as a Deferred does its callbacks: in no context."""

    def process_item(self, item: Any, spider: Any) -> Any:
        return Context().run(super().process_item, {**item}, spider)


class Both(Old):
    """Has both names; as in Scrapy, the new ones are called."""

    async def open_spider_async(self) -> None:
        self.seen = ["open"]
        await super().open_spider_async()

    async def process_item_async(self, item: Any) -> Any:
        self.seen.append(item["number"])
        return await super().process_item_async(item)

    async def close_spider_async(self) -> None:
        self.seen.append("close")
        await super().close_spider_async()

    def open_spider(self, spider: Any) -> Any:
        raise AssertionError("open_spider_async() is called")

    process_item = close_spider = open_spider  # type: ignore[assignment]


@pytest.mark.parametrize("processor", [Old, OldOverNew, OutOfContext, Both])
async def test_each_method_is_called_once_and_its_base_too(processor: Any, url: str) -> None:
    items = numbered(3)
    items[1]["bad"] = True
    trace = await crawl_with(
        Noting, pages=[page(*items)], ITEM_PROCESSOR=processor, DEFERKIT_DEAD_LETTERS_URL=url
    )
    expected = ["open", 0, 1, 2, "close"]
    for seen in (
        trace.crawler.engine.scraper.itemproc.seen,  # type: ignore[union-attr]
        trace.crawler.get_item_pipeline(Noting).calls,
    ):
        assert seen[:1] + sorted(seen[1:-1]) + seen[-1:] == expected
    assert numbers(trace.scraped) == [0, 2]
    assert [(it.step, it.page_url) for it in letters_at(url)] == [("Noting", page(*items))]


@pytest.mark.no_runtime
def test_what_has_an_old_name_alone_is_warned_about() -> None:
    with pytest.warns(ScrapyDeprecationWarning) as caught:
        Old.from_crawler(mock_crawler())
    names = [str(it.message).partition(" overrides ")[2].partition("(")[0] for it in caught]
    assert names == ["close_spider", "open_spider", "process_item"]


class Submitting:
    """Submits an item of its own for each that has none."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.crawler = crawler
        return self

    async def process_item(self, item: Any) -> Any:
        if item["number"] < 10:
            own = {"number": item["number"] + 10, "bad": True}
            await self.crawler.engine.scraper.start_itemproc_async(own, response=None)
        return item


@pytest.mark.parametrize("processor", [Old, OldOverNew, Both])
async def test_what_a_pipeline_submits_is_an_item_of_its_own(processor: Any, url: str) -> None:
    trace = await crawl_with(
        Submitting,
        Noting,
        pages=[page(*numbered(2))],
        ITEM_PROCESSOR=processor,
        DEFERKIT_DEAD_LETTERS_URL=url,
    )
    seen = trace.crawler.engine.scraper.itemproc.seen  # type: ignore[union-attr]
    assert sorted(seen[1:-1]) == [0, 1, 10, 11]
    assert numbers(trace.scraped) == [0, 1]
    assert len(letters_at(url)) == 2


class ByHand(Starting):
    """Gives items to the processor by hand, when it is closed."""

    async def closed(self, reason: str) -> None:
        processor = self.crawler.engine.scraper.itemproc  # type: ignore[union-attr]
        for number in (7, 8):
            item = {"number": number, "bad": number == 8}
            try:
                await resolve(processor.process_item(item, self))
            except Broken:
                self.failed = item


@pytest.mark.parametrize("processor", [DeferKitItemProcessor, Old, OldOverNew, Both])
async def test_an_item_that_is_given_by_hand_is_processed_once_and_kept_if_it_fails(
    processor: Any, url: str
) -> None:
    if processor is Both:
        processor = type("New", (Both,), {"process_item": DeferKitItemProcessor.process_item})
    trace = await crawl_with(
        Noting, spider=ByHand, ITEM_PROCESSOR=processor, DEFERKIT_DEAD_LETTERS_URL=url
    )
    assert trace.crawler.get_item_pipeline(Noting).calls == ["open", "close", 7, 8]
    seen = getattr(trace.crawler.engine.scraper.itemproc, "seen", [7, 8])  # type: ignore[union-attr]
    assert seen[-2:] == [7, 8]
    assert trace.spider.failed["number"] == 8
    assert len(letters_at(url)) == 1


class Checking(DeferKitItemProcessor):
    """Ends an item itself, before or after the pipelines, or in spite of them."""

    async def process_item_async(self, item: Any) -> Any:
        how = item.get("how")
        if how == "before":
            raise ValueError("not one of ours")
        try:
            item = await super().process_item_async(item)
        except Broken:
            if how == "recover":
                return {"number": item["number"], "recovered": True}
            raise
        if how == "after":
            raise ValueError("not one of ours")
        if how == "drop":
            raise DropItem("twice")
        if how == "close":
            raise CloseSpider("enough")
        return item


async def crawl_checking(url: str, item: dict[str, Any], **settings: Any) -> Trace:
    return await crawl_with(
        Noting,
        pages=[page({"number": 0, **item})],
        ITEM_PROCESSOR=Checking,
        DEFERKIT_DEAD_LETTERS_URL=url,
        **settings,
    )


@pytest.mark.parametrize("how", ["before", "after", "close"])
async def test_what_a_subclass_raises_itself_leaves_a_letter(url: str, how: str) -> None:
    trace = await crawl_checking(url, {"how": how})
    assert [step for _, step, _ in trace.failed] == ["Checking"]
    (letter,) = letters_at(url)
    assert (letter.step, letter.page_url) == ("Checking", page({"number": 0, "how": how}))
    assert trace.crawler.stats.get_value("deferkit/items/failed") == 1
    assert trace.reason == ("enough" if how == "close" else "finished")


@pytest.mark.parametrize("item", [{"how": "drop"}, {"how": "recover", "bad": True}, {}])
async def test_an_item_that_a_subclass_drops_or_recovers_leaves_none(
    url: str, item: dict[str, Any]
) -> None:
    trace = await crawl_checking(url, item)
    assert len(trace.scraped) + len(trace.dropped) == 1
    assert letters_at(url) == []
    assert trace.crawler.stats.get_value("deferkit/items/failed") is None


async def test_an_item_that_fails_in_the_pipelines_of_a_subclass_leaves_one_letter(
    url: str,
) -> None:
    trace = await crawl_checking(url, {"bad": True})
    assert [letter.step for letter in letters_at(url)] == ["Noting"]
    assert trace.crawler.stats.get_value("deferkit/items/failed") == 1
