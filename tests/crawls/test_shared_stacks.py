"""Spiders of one process that share a stack share no state."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from scrapy_deferkit import (
    Chain,
    StackConfigError,
    StackDownloaderMiddleware,
    StackPipeline,
    StackSpiderMiddleware,
)
from scrapy_deferkit._runtime import to_deferred

from ..steps import wait
from .local_site import Site, page
from .tracing import Shop, Trace, crawl


class Counting:
    """Counts its items, and notes the crawler it belongs to."""

    made: list[Counting] = []

    def __init__(self, crawler: Any) -> None:
        self.crawler = crawler
        self.events: list[str] = []
        self.made.append(self)

    @classmethod
    def from_crawler(cls, crawler: Any) -> Counting:
        return cls(crawler)

    def open_spider(self) -> None:
        self.events.append("opened")

    def close_spider(self) -> None:
        self.events.append("closed")

    def process_item(self, item: Any) -> Any:
        self.events.append("item")
        if isinstance(item, dict):
            item["seen"] = self.events.count("item")
        return item


class Meeting:
    """Holds those who come until all have come."""

    def __init__(self) -> None:
        self.expect(0)

    def expect(self, size: int) -> None:
        self.size = size
        self.waiting: list[Deferred[None]] = []

    async def join(self) -> None:
        waiting: Deferred[None] = Deferred()
        self.waiting.append(waiting)
        if len(self.waiting) >= self.size:
            for each in self.waiting[-self.size :]:
                each.callback(None)
        await wait(waiting)


meeting = Meeting()


async def meet(item: Any, *_: Any) -> Any:
    await meeting.join()
    return item


STACK = Chain(meet, Chain(Counting))

WAYS = {
    "object": {"ITEM_PIPELINES": {StackPipeline: 1}, "DEFERKIT_STACK": STACK},
    "path": {"ITEM_PIPELINES": {StackPipeline: 1}, "DEFERKIT_STACK": f"{__name__}.STACK"},
    "spider middleware": {
        "SPIDER_MIDDLEWARES": {StackSpiderMiddleware: 1},
        "DEFERKIT_SPIDER_STACK": STACK,
    },
    "downloader middleware": {
        "DOWNLOADER_MIDDLEWARES": {StackDownloaderMiddleware: 1},
        "DEFERKIT_RESPONSE_CHAIN": [STACK],
    },
}


class Pipeline(StackPipeline):
    stack = STACK


class Ours(Shop):
    name = "ours"
    custom_settings = {"ITEM_PIPELINES": {Pipeline: 1}}


class Theirs(Shop):
    name = "theirs"
    custom_settings = {"ITEM_PIPELINES": {Pipeline: 1}}


async def crawl_both(site: Site, settings: Any, spiders: Any = (Shop, Shop)) -> list[Trace]:
    """Run two crawls whose items meet in the stack: neither ends before both are under way."""
    meeting.expect(2)
    Counting.made.clear()
    for path in ("/0", "/1"):
        site[path] = page({"title": path})
    crawls = [
        to_deferred(crawl(site.url(f"/{n}"), settings=settings, spider=spider))
        for n, spider in enumerate(spiders)
    ]
    return [await wait(each) for each in crawls]


def state_is_not_shared(traces: list[Trace]) -> None:
    first, second = traces
    assert first.crawler is not second.crawler
    assert {id(it.crawler) for it in Counting.made} == {id(it.crawler) for it in traces}
    assert [it.events for it in Counting.made] == [["opened", "item", "closed"]] * 2


@pytest.mark.parametrize("way", WAYS)
async def test_a_stack_in_settings_runs_once_per_crawler(site: Site, way: str) -> None:
    traces = await crawl_both(site, WAYS[way])
    state_is_not_shared(traces)
    is_pipeline = way != "downloader middleware"
    expected = [{"title": path, **({"seen": 1} if is_pipeline else {})} for path in ("/0", "/1")]
    assert [trace.scraped for trace in traces] == [[item] for item in expected]


async def test_a_stack_of_a_class_runs_once_per_crawler(site: Site) -> None:
    traces = await crawl_both(site, {}, (Ours, Theirs))
    state_is_not_shared(traces)
    assert [trace.scraped for trace in traces] == [
        [{"title": "/0", "seen": 1}],
        [{"title": "/1", "seen": 1}],
    ]


async def test_one_stack_in_two_components_is_built_and_opened_once(site: Site) -> None:
    meeting.expect(1)
    Counting.made.clear()
    site["/"] = page({"title": "A"})
    trace = await crawl(site.url("/"), settings=WAYS["object"] | WAYS["spider middleware"])
    (counting,) = Counting.made
    assert counting.events == ["opened", "item", "item", "closed"]
    assert trace.scraped == [{"title": "A", "seen": 2}]


async def test_an_instance_serves_one_crawler_at_a_time(site: Site) -> None:
    instance = Counting(None)
    stack = Chain(meet, instance)
    settings = {**WAYS["object"], "DEFERKIT_STACK": stack}

    async def second(item: Any) -> Any:
        refusals.append(await refused())
        return item

    async def refused() -> str:
        with pytest.raises(StackConfigError) as refusal:
            await crawl(settings={**settings, "DOWNLOAD_HANDLERS": {"http": None, "https": None}})
        return str(refusal.value)

    refusals: list[str] = []
    site["/"] = page({"title": "A"})
    for _ in range(2):  # it is free again once the crawl has ended
        meeting.expect(1)
        pipelines = {"ITEM_PIPELINES": {StackPipeline: 1, "scrapy_deferkit.ChainPipeline": 2}}
        trace = await crawl(
            site.url("/"), settings={**settings, **pipelines, "DEFERKIT_CHAIN": [second]}
        )
        assert trace.scraped[0]["title"] == "A"
    assert len(refusals) == 2
    assert "Counting instance" in refusals[0]
    assert "import path" in refusals[0]
