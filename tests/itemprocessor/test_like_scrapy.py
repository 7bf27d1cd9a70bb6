"""A crawl under the item processor is the crawl that Scrapy's own manager makes."""

from __future__ import annotations

import copy
import re
from collections import Counter
from logging import LogRecord
from pathlib import Path
from typing import Any

import pytest
from scrapy import Spider
from scrapy.exceptions import DropItem
from scrapy.http import Request, Response
from scrapy.logformatter import LogFormatter
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scrapy_deferkit._runtime import call_soon, turn

from ..crawls.tracing import Trace
from ..steps import Broken
from .crawling import crawl_with, numbered, numbers, page

pytestmark = pytest.mark.filterwarnings("ignore::scrapy.exceptions.ScrapyDeprecationWarning")

EACH_ITS_OWN = ("signal", "sender")
VOLATILE = ("time", "memusage", "deferkit/", "elapsed", "per_minute")


class Formatter(LogFormatter):
    """Notes what it is asked to format."""

    calls: list[tuple[Any, ...]] = []

    def scraped(self, item: Any, response: Any, spider: Any) -> Any:
        self._note("scraped", item, None, response, spider)
        return super().scraped(item, response, spider)

    def dropped(self, item: Any, exception: Any, response: Any, spider: Any) -> Any:
        self._note("dropped", item, exception, response, spider)
        return super().dropped(item, exception, response, spider)

    def item_error(self, item: Any, exception: Any, response: Any, spider: Any) -> Any:
        self._note("item_error", item, exception, response, spider)
        return super().item_error(item, exception, response, spider)

    def _note(self, what: str, item: Any, exception: Any, response: Any, spider: Any) -> None:
        self.calls.append((what, repr(item), repr(exception), plain(response), spider.name))


class Plain:
    def process_item(self, item: Any) -> Any:
        return see(item, "Plain")


class Coroutine:
    async def process_item(self, item: Any) -> Any:
        await turn()
        return see(item, "Coroutine")


class AtOnce:
    async def process_item(self, item: Any) -> Any:
        return see(item, "AtOnce")


class ByDeferred:
    def process_item(self, item: Any) -> Any:
        later: Deferred[Any] = Deferred()
        call_soon(lambda: later.callback(item))
        return later.addCallback(see, "ByDeferred")


class WithSpider:
    def open_spider(self, spider: Spider) -> None:
        self.name = spider.name

    def process_item(self, item: Any, spider: Spider) -> Any:
        assert self.name == spider.name
        return see(item, "WithSpider")

    async def close_spider(self, spider: Spider) -> None:
        await turn()
        assert self.name == spider.name


class Static:
    @staticmethod
    def process_item(item: Any) -> Any:
        return see(item, "Static")


class OfTheClass:
    @classmethod
    async def process_item(cls, item: Any) -> Any:
        return see(item, cls.__name__)


class Opened:
    async def open_spider(self) -> None:
        await turn()
        self.is_open = True

    def process_item(self, item: Any) -> Any:
        assert self.is_open
        return see(item, "Opened")

    def close_spider(self) -> None:
        self.is_open = False


class Nothing:
    """Returns nothing, which the next pipeline gets."""

    async def process_item(self, item: Any) -> Any:
        return None if item["number"] % 5 == 4 else item


class AfterNothing:
    def process_item(self, item: Any) -> Any:
        return {"number": -1} if item is None else item


ALL = [Plain, Coroutine, AtOnce, ByDeferred, WithSpider, Static, OfTheClass, Opened]


def see(item: Any, name: str) -> Any:
    """Note *name* on *item*, and drop or fail it where the item says so."""
    item.setdefault("seen", []).append(name)
    if item.get("drop in") == name:
        raise DropItem(f"unwanted in {name}", "INFO") if item["number"] % 2 else DropItem(name)
    if item.get("fail in") == name:
        raise Broken(name)
    return item


def plain(value: Any) -> Any:
    """Give *value* in a form that is equal in two crawls."""
    if isinstance(value, Failure):
        return type(value.value).__name__, str(value.value)
    if isinstance(value, (Request, Response)):
        return value.url
    if isinstance(value, Spider):
        return value.name
    return repr(value)


def of_items(trace: Trace) -> dict[str, list[Any]]:
    """Give the signals of each item, with all their arguments, in order."""
    signals: dict[str, list[Any]] = {}
    for name, arguments in trace.signals:
        if "item" in arguments:
            item = arguments["item"]
            number = str(item and item.get("number"))
            known = {key: plain(it) for key, it in arguments.items() if key not in EACH_ITS_OWN}
            signals.setdefault(number, []).append((name, known))
    return signals


async def both(
    tmp_path: Path, *pipelines: Any, pages: Any = (), items: Any = (), **settings: Any
) -> Trace:
    """Make the crawl twice, compare all there is to see, and give the second trace."""
    traces, told, feeds = [], [], []
    for addon in (False, True):
        Formatter.calls = []
        feed = tmp_path / f"{addon}.jsonl"
        trace = await crawl_with(
            *pipelines,
            pages=pages,
            items=copy.deepcopy(items),
            addon=addon,
            FEEDS={str(feed): {"format": "jsonlines"}},
            LOG_FORMATTER=Formatter,
            **settings,
        )
        traces.append(trace)
        told.append(Counter(Formatter.calls))
        feeds.append(sorted(feed.read_text().splitlines()))
    first, second = traces
    assert type(first.crawler.engine.scraper.itemproc) is not type(
        second.crawler.engine.scraper.itemproc
    )
    assert feeds[0] == feeds[1]
    assert told[0] == told[1]
    assert of_items(first) == of_items(second)
    # How often the engine looks for requests depends on its timers.
    names = [[name for name, _ in it.signals if name != "scheduler_empty"] for it in traces]
    assert Counter(names[0]) == Counter(names[1])
    assert names[0][-1] == names[1][-1]
    assert of_both(first.log) == of_both(second.log)
    stats = [
        {
            key: value
            for key, value in trace.crawler.stats.get_stats().items()
            if not any(part in key for part in VOLATILE)
        }
        for trace in traces
    ]
    assert stats[0] == stats[1]
    return second


def of_both(log: list[LogRecord]) -> Counter[tuple[str, str]]:
    """Count the messages, without what differs in any two crawls."""
    messages = ((record.levelname, record.getMessage()) for record in log)
    return Counter((level, re.sub("0x[0-9a-f]+", "", text)) for level, text in messages)


@pytest.mark.parametrize("pipeline", ALL)
@pytest.mark.parametrize("from_start", [False, True])
async def test_a_pipeline_of_any_style_does_what_it_does_in_scrapy(
    tmp_path: Path, pipeline: Any, from_start: bool
) -> None:
    items: list[dict[str, Any]] = numbered(6)
    items[1]["drop in"] = items[2]["drop in"] = items[3]["fail in"] = pipeline.__name__
    source = {"items": items} if from_start else {"pages": [page(*items[:2]), page(*items[2:])]}
    trace = await both(tmp_path, pipeline, **source)
    assert numbers(trace.scraped) == [0, 4, 5]
    assert numbers(trace.dropped) == [1, 2]
    assert [(item["number"], step) for item, step, _ in trace.failed] == [(3, pipeline.__name__)]


async def test_a_crawl_with_pipelines_of_every_style_is_scrapys(tmp_path: Path) -> None:
    items: list[dict[str, Any]] = numbered(80)
    for item, pipeline in zip(items[::3], ALL * 3, strict=False):
        item["drop in" if item["number"] % 2 else "fail in"] = pipeline.__name__
    pages = [page(*items[start : start + 10]) for start in range(0, 50, 10)]
    trace = await both(tmp_path, *ALL, pages=pages, items=items[50:])
    assert trace.reason == "finished"
    assert len(trace.scraped) + len(trace.dropped) + len(trace.failed) == 80
    assert trace.scraped[0]["seen"] == [pipeline.__name__ for pipeline in ALL]


async def test_nothing_returned_goes_on_to_the_next_pipeline(tmp_path: Path) -> None:
    as_scrapy = {"DEFERKIT_NONE_IS_FAILURE": False}
    trace = await both(tmp_path, Nothing, AfterNothing, pages=[page(*numbered(10))], **as_scrapy)
    assert numbers(trace.scraped) == [-1, -1, 0, 1, 2, 3, 5, 6, 7, 8]


async def test_nothing_returned_by_the_last_pipeline_is_what_is_scraped(tmp_path: Path) -> None:
    as_scrapy = {"DEFERKIT_NONE_IS_FAILURE": False}
    trace = await both(tmp_path, Nothing, pages=[page(*numbered(5))], **as_scrapy)
    assert trace.scraped.count(None) == 1


async def test_a_crawl_without_pipelines_is_scrapys(tmp_path: Path) -> None:
    trace = await both(tmp_path, pages=[page(*numbered(5))], items=numbered(5, 5))
    assert numbers(trace.scraped) == list(range(10))


class Stopping:
    """Raises what ends a generator, and is no item's business."""

    def process_item(self, item: Any) -> Any:
        return next(iter(()))


async def test_a_stop_iteration_of_a_pipeline_is_an_item_error() -> None:
    trace = await crawl_with(Plain, Stopping, AtOnce, pages=[page({"number": 0})])
    ((item, step, error),) = trace.failed
    assert (item["seen"], step, error) == (["Plain"], "Stopping", "RuntimeError")


class InTheInstance:
    """What it calls is an object, which has no name of its own."""

    class Callable:
        def __call__(self, item: Any) -> Any:
            return see(item, "InTheInstance")

    def __init__(self) -> None:
        self.process_item = self.Callable()


async def test_what_is_called_needs_no_name() -> None:
    items = [{"number": 0}, {"number": 1, "fail in": "InTheInstance"}]
    trace = await crawl_with(InTheInstance, pages=[page(*items)])
    assert numbers(trace.scraped) == [0]
    assert [step for _, step, _ in trace.failed] == ["InTheInstance"]


class Twin:
    def process_item(self, item: Any) -> Any:
        if item["number"] == 1:
            raise Broken
        return item


class Outer:
    class Twin(Twin):
        def process_item(self, item: Any) -> Any:
            raise Broken


async def test_two_pipelines_of_one_name_have_names_of_their_own() -> None:
    trace = await crawl_with(Twin, Outer.Twin, pages=[page(*numbered(2))])
    assert sorted((item["number"], step) for item, step, _ in trace.failed) == [
        (0, "Twin#2"),
        (1, "Twin"),
    ]


async def test_a_spider_finds_its_pipelines(tmp_path: Path) -> None:
    trace = await crawl_with(Plain, Opened)
    assert type(trace.crawler.get_item_pipeline(Opened)) is Opened
    assert trace.crawler.get_item_pipeline(Coroutine) is None


async def test_a_pipeline_that_is_not_configured_is_left_out(tmp_path: Path) -> None:
    trace = await both(
        tmp_path, "scrapy.pipelines.files.FilesPipeline", Plain, pages=[page(*numbered(2))]
    )
    assert numbers(trace.scraped) == [0, 1]


class FailsToOpen:
    async def open_spider(self) -> None:
        await turn()
        raise Broken("cannot open")

    def process_item(self, item: Any) -> Any:
        raise NotImplementedError


async def test_a_pipeline_that_cannot_be_opened_ends_the_crawl_as_in_scrapy() -> None:
    raised = []
    for addon in (False, True):
        with pytest.raises(Broken) as caught:
            await crawl_with(FailsToOpen, Plain, pages=[page(*numbered(2))], addon=addon)
        raised.append(str(caught.value))
    assert raised[0] == raised[1]
