"""Every pipeline is closed, whatever the others do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from scrapy_deferkit import ClosingError, DeferKitItemProcessor
from scrapy_deferkit._runtime import clock_set_to, to_awaitable, to_deferred, turn
from scrapy_deferkit.testing import mock_crawler

from ..steps import Broken, until
from .crawling import crawl_with, numbered, numbers, page

events: list[str] = []


@pytest.fixture(autouse=True)
def no_events() -> Iterator[None]:
    events.clear()
    yield
    events.clear()


class Base:
    def process_item(self, item: Any) -> Any:
        assert f"{type(self).__name__} closed" not in events
        return item


class First(Base):
    def close_spider(self) -> None:
        events.append("First closed")


class Second(Base):
    async def close_spider(self) -> None:
        await turn()
        await turn()
        events.append("Second closed")


class Fourth(Base):
    async def close_spider(self) -> None:
        events.append("Fourth closed")


class AlsoAtOnce(Base):
    def close_spider(self) -> None:
        events.append("AlsoAtOnce closed")


class Fifth(Base):
    async def close_spider(self) -> None:
        for _ in range(5):
            await turn()
        events.append("Fifth closed")


class AtOnce(Base):
    def close_spider(self) -> None:
        raise Broken("at once")


class InACoroutine(Base):
    async def close_spider(self) -> None:
        raise Broken("in a coroutine")


class Later(Base):
    async def close_spider(self) -> None:
        await turn()
        raise Broken("later")


class Cancelled(Base):
    def close_spider(self) -> None:
        raise asyncio.CancelledError


class Nameless(Base):
    class Fails:
        def __call__(self) -> None:
            raise Broken("nameless")

    def __init__(self) -> None:
        self.close_spider = self.Fails()


@pytest.mark.parametrize("failing", [AtOnce, InACoroutine, Later, Cancelled, Nameless])
async def test_a_pipeline_that_fails_to_close_leaves_no_other_open(
    failing: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trace = await crawl_with(First, Second, failing, Fourth, Fifth, pages=[page(*numbered(3))])
    assert sorted(events) == ["Fifth closed", "First closed", "Fourth closed", "Second closed"]
    assert trace.crawler.stats.get_value("deferkit/pipelines/failed_to_close") == 1
    assert any(failing.__name__ in message for message in trace.messages)
    raised = [it.exc_info[1] for it in caplog.records if it.message == "Scraper close failure"]
    (error,) = raised
    assert isinstance(error, ClosingError)
    assert len(error.errors) == 1
    assert numbers(trace.scraped) == [0, 1, 2]
    assert trace.reason == "finished"


async def test_all_failures_of_closing_are_raised_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trace = await crawl_with(Later, First, AtOnce, InACoroutine, Fifth)
    (error,) = [it.exc_info[1] for it in caplog.records if it.message == "Scraper close failure"]
    assert sorted(map(str, error.errors)) == ["at once", "in a coroutine", "later"]
    assert sorted(events) == ["Fifth closed", "First closed"]
    assert trace.crawler.stats.get_value("deferkit/pipelines/failed_to_close") == 3


class Endless(Base):
    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    async def close_spider(self) -> None:
        await to_awaitable(self.ended)


async def test_what_is_long_in_closing_is_named_and_hides_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    with clock_set_to(clock):
        settings = {"ITEM_PIPELINES": {Endless: 1, Later: 2}, "LOGSTATS_INTERVAL": 0}
        processor = DeferKitItemProcessor.from_crawler(mock_crawler(settings))
        ended: list[Any] = []
        to_deferred(processor.close_spider_async()).addBoth(ended.append)
        await until(lambda: "later" in caplog.text)  # it is logged while the other goes on
        assert not ended
        clock.pump([60, 60])
        warned = [it.getMessage() for it in caplog.records if "waits for" in it.getMessage()]
        assert len(warned) == 2
        assert "Endless.close_spider" in warned[0]
        assert "Later" not in warned[0]
        processor.middlewares[0].ended.callback(None)
        await until(lambda: ended)
    assert isinstance(ended[0].value, ClosingError)
    assert not clock.getDelayedCalls()


class Heir(Fifth):
    pass


class SlowHeir(Fifth):
    async def close_spider(self) -> None:
        for _ in range(20):
            await turn()
        await super().close_spider()


async def test_pipelines_that_inherit_one_method_are_all_awaited() -> None:
    await crawl_with(SlowHeir, Heir, Fifth)
    assert events == ["Fifth closed"] * 3
    events.clear()
    settings = {"ITEM_PIPELINES": {Endless: 1, type("Other", (Endless,), {}): 2}}
    processor = DeferKitItemProcessor.from_crawler(mock_crawler(settings))
    ended: list[Any] = []
    to_deferred(processor.close_spider_async()).addBoth(ended.append)
    first, second = processor.middlewares
    for each in (first, second):
        for _ in range(5):
            await turn()
        assert not ended
        each.ended.callback(None)
    await until(lambda: ended)


async def test_the_last_pipeline_is_closed_first() -> None:
    await crawl_with(First, AlsoAtOnce)
    assert events == ["AlsoAtOnce closed", "First closed"]


class Slow(Base):
    async def process_item(self, item: Any) -> Any:
        for _ in range(20):
            await turn()
        events.append(f"item {item['number']}")
        return item

    def close_spider(self) -> None:
        events.append("closed")


async def test_pipelines_are_closed_when_the_items_of_start_have_ended() -> None:
    trace = await crawl_with(Slow, items=numbered(30), DEFERKIT_CONCURRENT_ITEMS=4)
    assert len(trace.scraped) == 30
    assert events[-1] == "closed"
    assert events.count("closed") == 1
    names = [name for name, _ in trace.signals]
    assert names.index("spider_closed") > max(
        index for index, name in enumerate(names) if name == "item_scraped"
    )
