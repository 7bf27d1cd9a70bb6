"""Components in a stack are built, opened and closed with the spider, wherever the stack stands."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from scrapy_deferkit import (
    Chain,
    Parallel,
    StackDownloaderMiddleware,
    StackPipeline,
    StackSpiderMiddleware,
)
from scrapy_deferkit._runtime import turn

from ..steps import Broken
from .local_site import Site, page
from .tracing import crawl

events: list[str] = []


@pytest.fixture(autouse=True)
def no_events() -> Iterator[None]:
    events.clear()
    yield
    events.clear()


class Component:
    """Notes when it is opened and closed, and passes what it gets."""

    fails_in = ""

    def open_spider(self) -> None:
        self._note("open_spider")

    async def close_spider(self) -> None:
        await turn()
        self._note("close_spider")

    def process_item(self, item: Any) -> Any:
        self._note("process_item")
        return item

    def _note(self, method: str) -> None:
        events.append(f"{type(self).__name__}.{method}")
        if method == self.fails_in:
            raise Broken(method)


class First(Component):
    pass


class Second(Component):
    pass


class Third(Component):
    pass


class Unopened(Component):
    fails_in = "open_spider"


class Unclosed(Component):
    fails_in = "close_spider"


class Old:
    """A pipeline as they were written for older versions of Scrapy."""

    def __init__(self, name: str) -> None:
        self.name = name

    @classmethod
    def from_crawler(cls, crawler: Any) -> Old:
        return cls(crawler.settings["BOT_NAME"])

    def open_spider(self, spider: Any) -> None:
        events.append(f"opened {self.name} {spider.name}")

    def close_spider(self, spider: Any) -> None:
        events.append(f"closed {self.name} {spider.name}")

    def process_item(self, item: Any, spider: Any) -> Any:
        item["by"] = [self.name, spider.name]
        return item


IN_ORDER = [
    "First.open_spider",
    "Second.open_spider",
    "Third.open_spider",
    "Third.close_spider",
    "Second.close_spider",
    "First.close_spider",
]

WAYS = {
    "pipeline": lambda *them: {
        "ITEM_PIPELINES": {StackPipeline: 1},
        "DEFERKIT_STACK": Chain(*them),
    },
    "spider middleware": lambda *them: {
        "SPIDER_MIDDLEWARES": {StackSpiderMiddleware: 1},
        "DEFERKIT_SPIDER_STACK": Chain(*them),
    },
    "request chain": lambda *them: {
        "DOWNLOADER_MIDDLEWARES": {StackDownloaderMiddleware: 1},
        "DEFERKIT_REQUEST_CHAIN": list(them),
    },
    "response chain": lambda *them: {
        "DOWNLOADER_MIDDLEWARES": {StackDownloaderMiddleware: 1},
        "DEFERKIT_RESPONSE_CHAIN": list(them),
    },
}

every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
every_middleware = pytest.mark.parametrize(
    "way", list(WAYS.values())[1:], ids=[name for name in WAYS if name != "pipeline"]
)


def opened_and_closed() -> list[str]:
    return [event for event in events if not event.endswith("process_item")]


@every_way
async def test_they_open_in_order_and_close_in_reverse(site: Site, way: Any) -> None:
    site["/"] = page({"title": "A"})
    trace = await crawl(
        site.url("/"), settings=way(First, Chain(f"{__name__}.Second"), lambda *a: a[0], Third())
    )
    assert trace.scraped == [{"title": "A"}]
    assert opened_and_closed() == IN_ORDER
    used = events[3:-3]
    assert used == ["First.process_item", "Second.process_item", "Third.process_item"]


async def test_the_chains_of_requests_and_responses_open_and_close_together(site: Site) -> None:
    site["/"] = page()
    settings = WAYS["request chain"](First, Second)
    await crawl(site.url("/"), settings={**settings, "DEFERKIT_RESPONSE_CHAIN": [Third, Third]})
    ends = opened_and_closed()
    assert ends[:4] == [*IN_ORDER[:3], "Third.open_spider"]
    assert ends[4:] == ["Third.close_spider", *IN_ORDER[3:]]


@every_way
async def test_one_that_fails_to_close_does_not_stop_the_others(site: Site, way: Any) -> None:
    site["/"] = page({"title": "A"})
    trace = await crawl(site.url("/"), settings=way(First, Unclosed, Third))
    assert events[-3:] == ["Third.close_spider", "Unclosed.close_spider", "First.close_spider"]
    assert trace.reason == "finished"
    log = "\n".join(f"{it.getMessage()} {it.exc_info and it.exc_info[1]}" for it in trace.log)
    assert "Chain: 1 failed to close: Broken: close_spider" in log


async def test_a_crawl_whose_pipeline_cannot_be_opened_fails(site: Site) -> None:
    settings = WAYS["pipeline"](First, Chain(Second, Unopened), Third)
    with pytest.raises(Broken, match="open_spider") as failure:
        await crawl(site.url("/"), settings=settings)
    assert failure.value.__notes__ == ["In the step Chain/Chain/Unopened"]
    assert opened_and_closed() == [
        "First.open_spider",
        "Second.open_spider",
        "Unopened.open_spider",
        "Second.close_spider",
        "First.close_spider",
    ]
    assert site.requests == []


@every_middleware
async def test_a_middleware_that_cannot_be_opened_closes_the_spider(site: Site, way: Any) -> None:
    site["/"] = page({"title": "A"})
    trace = await crawl(site.url("/"), settings=way(First, Unopened, Third))
    assert trace.reason == "stack_not_opened"
    assert trace.scraped == []
    assert site.requests == []
    assert opened_and_closed() == [
        "First.open_spider",
        "Unopened.open_spider",
        "First.close_spider",
    ]
    (record,) = [it for it in trace.log if "could not be opened" in it.getMessage()]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], Broken)


@every_middleware
async def test_the_engine_stops_when_a_middleware_cannot_be_opened(site: Site, way: Any) -> None:
    """Extensions such as the telnet console begin and end with the engine."""
    trace = await crawl(site.url("/"), settings=way(Unopened))
    names = [name for name, _ in trace.signals]
    assert names.count("engine_stopped") == names.count("engine_started")


@pytest.mark.parametrize("stack", [Chain, Parallel])
@pytest.mark.parametrize(
    "pipeline", [Old, f"{__name__}.Old", Old("instance")], ids=["class", "path", "instance"]
)
async def test_an_old_pipeline_is_served_its_spider(site: Site, stack: Any, pipeline: Any) -> None:
    site["/"] = page({"title": "A"})
    settings = {"ITEM_PIPELINES": {StackPipeline: 1}, "DEFERKIT_STACK": stack(pipeline)}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trace = await crawl(site.url("/"), settings={**settings, "BOT_NAME": "bot"})
    name = "instance" if isinstance(pipeline, Old) else "bot"
    assert trace.scraped == [{"title": "A", "by": [name, "shop"]}]
    assert events == [f"opened {name} shop", f"closed {name} shop"]
    assert [it for it in warned if "deprecat" in str(it.message).lower()] == []
