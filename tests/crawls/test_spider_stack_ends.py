"""An item that ends in the spider middleware's stack ends as it would in a pipeline."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest
from scrapy import signals
from scrapy.exceptions import CloseSpider, DropItem
from scrapy.logformatter import LogFormatter

from scrapy_deferkit import Chain, StackPipeline, StackSpiderMiddleware, step_of
from scrapy_deferkit._runtime import turn

from ..steps import Broken
from .local_site import Site, page
from .tracing import Trace, crawl


class TracedFormatter(LogFormatter):
    """Notes what it is asked to format."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def dropped(self, item: Any, exception: Any, response: Any, spider: Any) -> Any:
        self.calls.append(("dropped", item["title"], exception, response.url, spider.name))
        if item["title"] == "quiet":
            return None
        return super().dropped(item, exception, response, spider)

    def item_error(self, item: Any, exception: Any, response: Any, spider: Any) -> Any:
        self.calls.append(("item_error", item["title"], exception, response.url, spider.name))
        return super().item_error(item, exception, response, spider)


async def judge(item: Any, *response: Any) -> Any:
    if item["title"] in ("drop", "quiet"):
        raise DropItem("unwanted")
    if item["title"] == "hush":
        raise DropItem("unwanted", log_level="INFO")
    if item["title"] == "break":
        item["half"] = "changed"
        raise Broken("no")
    return item


class Listener:
    """Hears of ended items, and takes its time."""

    heard: list[str] = []

    def __init__(self, crawler: Any) -> None:
        crawler.signals.connect(self.hear, signals.item_dropped)
        crawler.signals.connect(self.hear, signals.item_error)
        crawler.signals.connect(self.close, signals.spider_closed)

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        return cls(crawler)

    async def hear(self, item: Any) -> None:
        for _ in range(5):
            await turn()
        self.heard.append(item["title"])

    def close(self) -> None:
        self.heard.append("closed")


STACK = Chain(judge)

THE_WAYS = {
    "pipeline": {"ITEM_PIPELINES": {StackPipeline: 1}, "DEFERKIT_STACK": STACK},
    "spider middleware": {
        "SPIDER_MIDDLEWARES": {StackSpiderMiddleware: 543},
        "DEFERKIT_SPIDER_STACK": STACK,
    },
}


def shown(error: BaseException) -> tuple[str, str | None, list[str]]:
    notes = getattr(error, "__notes__", [])
    # Scrapy's own item processor does not know the page.
    return repr(error), step_of(error), [it for it in notes if not it.startswith("With an item of")]


def ends(trace: Trace) -> list[Any]:
    """Give what the signals of items said, in a form to compare."""
    told = []
    for name, it in trace.signals:
        if name.startswith("item_"):
            error = it["exception"] if "exception" in it else getattr(it.get("failure"), "value", 0)
            told.append(
                (
                    name,
                    sorted(it),
                    it["item"],
                    it["response"].url,
                    it["spider"].name,
                    shown(error) if error else None,
                )
            )
    return sorted(told, key=repr)


def logged(trace: Trace) -> Counter[Any]:
    lines = []
    for it in trace.log:
        error = it.exc_info[1] if it.exc_info else None
        is_traced = bool(error and error.__traceback__)
        spider = vars(it)["spider"].name
        lines.append((it.levelno, it.getMessage(), error and shown(error), is_traced, spider))
    return Counter(map(repr, lines))


async def run(site: Site, way: str) -> Trace:
    site["/"] = page(*({"title": title} for title in ("A", "drop", "quiet", "hush", "break")))
    settings = {"LOG_FORMATTER": TracedFormatter, **THE_WAYS[way]}
    return await crawl(site.url("/"), settings=settings)


async def test_signals_log_and_stats_are_those_of_a_pipeline(site: Site) -> None:
    expected, actual = await run(site, "pipeline"), await run(site, "spider middleware")
    assert len(ends(expected)) == 5
    assert ends(actual) == ends(expected)
    assert sum(logged(expected).values()) == 2
    assert logged(actual) == logged(expected)
    # Not compared: not all versions of Scrapy note the item itself on the record.
    assert [vars(it)["item"]["title"] for it in actual.log] == ["drop", "break"]
    formatters: list[Any] = [trace.crawler.logformatter for trace in (expected, actual)]
    calls = [sorted(map(repr, formatter.calls)) for formatter in formatters]
    assert len(calls[0]) == 4
    assert calls[1] == calls[0]
    stats = [trace.crawler.stats.get_stats() for trace in (expected, actual)]  # type: ignore[union-attr]
    of_items = [{k: v for k, v in it.items() if "item" in k or "log" in k} for it in stats]
    assert of_items[0]["item_dropped_count"] == 3
    assert of_items[1] == of_items[0]


async def test_the_failure_of_the_signal_has_a_traceback(site: Site) -> None:
    for way in THE_WAYS:
        trace = await run(site, way)
        (error,) = trace.of("item_error")
        assert "raise Broken" in error["failure"].getTraceback()


async def test_handlers_of_the_signals_are_waited_for(site: Site) -> None:
    for way in THE_WAYS.values():
        Listener.heard.clear()
        site["/"] = page({"title": "drop"}, {"title": "break"})
        await crawl(site.url("/"), settings={**way, "EXTENSIONS": {Listener: 1}})
        assert sorted(Listener.heard) == ["break", "closed", "drop"]
        assert Listener.heard[-1] == "closed"


@pytest.mark.parametrize("way", THE_WAYS)
async def test_close_spider_is_an_item_error_too(site: Site, way: str) -> None:
    def close(item: Any, *response: Any) -> Any:
        raise CloseSpider("enough")

    setting = "DEFERKIT_STACK" if way == "pipeline" else "DEFERKIT_SPIDER_STACK"
    site["/"] = page({"title": "A"})
    trace = await crawl(site.url("/"), settings={**THE_WAYS[way], setting: Chain(close)})
    assert [(item, name) for item, _, name in trace.failed] == [({"title": "A"}, "CloseSpider")]
    assert [it.levelno for it in trace.log] == [logging.ERROR]


async def test_items_in_the_stack_end_when_a_middleware_behind_it_fails(site: Site) -> None:
    class Failing:
        async def process_spider_output(self, response: Any, result: Any) -> Any:
            async for output in result:
                yield output
                raise Broken("middleware")

    async def note(item: Any, response: Any) -> Any:
        entered.append(item["title"])
        for _ in range(5):
            await turn()
        return item

    entered: list[str] = []
    site["/"] = page(*({"title": title} for title in "ABCD"))
    settings = {
        "SPIDER_MIDDLEWARES": {StackSpiderMiddleware: 543, Failing: 100},
        "DEFERKIT_SPIDER_STACK": Chain(note),
    }
    trace = await crawl(site.url("/"), settings=settings)
    ended = [it["item"]["title"] for name, it in trace.signals if name.startswith("item_")]
    assert sorted(ended) == sorted(entered)
