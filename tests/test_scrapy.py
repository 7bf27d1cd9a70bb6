"""What is touched of Scrapy beyond its documented API is there, and does what is relied on.

Run on the lowest and on the latest Scrapy that are supported.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scrapy import signals
from scrapy.core.engine import ExecutionEngine
from scrapy.core.scraper import Scraper
from scrapy.http import Request
from twisted.python.failure import Failure

from scrapy_deferkit import _scrapy
from scrapy_deferkit._runtime import spawn, turn
from scrapy_deferkit.testing import mock_crawler

from .itemprocessor.crawling import Starting, crawl_with, page


class Looking:
    """Looks at the crawl in a pipeline, before and after its spider begins to close."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.crawler = crawler
        self.seen: list[tuple[bool, bool]] = []
        return self

    def look(self) -> None:
        waits = _scrapy.look_whether_to_close(self.crawler)
        self.seen.append((_scrapy.is_closing(self.crawler), waits))

    async def process_item(self, item: Any) -> Any:
        self.look()
        spawn(self.crawler.engine.close_spider_async(reason="enough"), lambda _: None)
        await turn()
        await turn()
        self.look()
        return item


async def test_closing_is_seen_from_its_beginning_and_a_busy_scraper_waits() -> None:
    trace = await crawl_with(Looking, pages=[page({"number": 1})])
    assert trace.reason == "enough"
    assert trace.crawler.get_item_pipeline(Looking).seen == [(False, True), (True, True)]


def test_a_crawler_that_does_not_crawl_has_no_engine_and_is_closing() -> None:
    crawler = mock_crawler()
    assert _scrapy.engine_of(crawler) is None
    assert _scrapy.is_closing(crawler)
    assert not _scrapy.is_downloading(crawler)
    assert not _scrapy.look_whether_to_close(crawler)


class Downloading:
    """Notes whether the downloader has something in work, while it has and when it has not."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.crawler = crawler
        self.seen: list[bool] = []
        crawler.signals.connect(self.note, signals.request_reached_downloader)
        crawler.signals.connect(self.note, signals.spider_idle)
        return self

    def note(self) -> None:
        self.seen.append(_scrapy.is_downloading(self.crawler))

    def process_item(self, item: Any) -> Any:
        return item


async def test_the_downloader_is_seen_at_work() -> None:
    trace = await crawl_with(Downloading, pages=[page({"number": 1})])
    assert trace.crawler.get_item_pipeline(Downloading).seen == [True, False]


class FailsTwice(Starting):
    async def start(self) -> AsyncIterator[Any]:
        yield Request("http://127.0.0.1:9/", errback=self.recover)

    def recover(self, failure: Failure) -> Any:
        yield {"number": 1}
        raise ValueError("in an errback")


async def test_the_output_of_an_errback_comes_to_the_scraper_and_its_errors_are_scrapys() -> None:
    trace = await crawl_with(Downloading, spider=FailsTwice)
    assert [item["number"] for item in trace.scraped] == [1]
    (error,) = trace.of("spider_error")
    assert isinstance(error["failure"].value, ValueError)
    assert isinstance(error["response"], Failure)


class Scraping:
    """Notes what the scraper is given, and what it and the engine still have in work."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.crawler = crawler
        self.seen: list[Any] = []
        crawler.signals.connect(self.watch, signals.spider_opened)
        crawler.signals.connect(self.note_download, signals.request_reached_downloader)
        crawler.signals.connect(self.note_drop, signals.request_left_downloader)
        return self

    def watch(self) -> None:
        self.engine = self.crawler.engine
        _scrapy.wrap_scraping(
            self.engine.scraper,
            lambda request: self.note("begun", request),
            lambda request: self.note("ended", request),
            lambda request, error: self.note(type(error).__name__, request),
        )

    def note(self, what: str, request: Request) -> None:
        self.seen.append((what, _scrapy.is_in_work(self.engine, request)))

    def note_download(self, request: Request) -> None:
        self.note("downloading", request)

    def note_drop(self, request: Request) -> None:
        self.note("downloaded", request)

    def process_item(self, item: Any) -> Any:
        return item


def begun_and_ended(*between: tuple[str, bool]) -> list[tuple[str, bool]]:
    return [("begun", True), *between, ("ended", True)]


DOWNLOADED = [("downloading", True), ("downloaded", True)]


async def test_the_scraper_tells_when_it_begins_with_a_request_and_when_all_has_ended() -> None:
    trace = await crawl_with(Scraping, pages=[page({"number": 1})])
    seen = trace.crawler.get_item_pipeline(Scraping).seen
    assert seen == [*DOWNLOADED, *begun_and_ended()]


async def test_the_scraper_tells_what_a_download_and_its_errback_have_failed_with() -> None:
    trace = await crawl_with(Scraping, spider=FailsTwice)
    seen = trace.crawler.get_item_pipeline(Scraping).seen
    refused, *in_errback = [what for what, is_in in seen if is_in and what[0].isupper()]
    assert (refused, in_errback) == ("DownloadConnectionRefusedError", ["ValueError"])
    assert seen[-1] == ("ended", True)


class Waking(Starting):
    """Has the scheduler refuse to give anything until the engine is woken."""

    async def start(self) -> AsyncIterator[Any]:
        scheduler = self.crawler.engine._slot.scheduler
        give = scheduler.next_request
        scheduler.next_request = lambda: None
        async for request in super().start():
            yield request
        await turn()
        scheduler.next_request = give
        _scrapy.wake(self.crawler.engine)


async def test_an_engine_that_is_woken_asks_its_scheduler_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ExecutionEngine, "_SLOT_HEARTBEAT_INTERVAL", 1000)
    trace = await crawl_with(Downloading, spider=Waking, pages=[page({"number": 1})])
    assert [item["number"] for item in trace.scraped] == [1]


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (Scraper.enqueue_scrape, ["self", "result", "request"]),
        (Scraper.handle_spider_output_async, ["self", "result", "request", "response"]),
        (Scraper.start_itemproc_async, ["self", "item", "response"]),
        (ExecutionEngine.close_spider_async, ["self", "reason"]),
        (Scraper._check_if_closing, ["self"]),
    ],
)
def test_what_is_wrapped_or_called_takes_what_it_is_given(
    method: Any, parameters: list[str]
) -> None:
    taken = [
        name for name in inspect.signature(method).parameters if name != "spider"
    ]  # Scrapy 2.15
    assert taken == parameters


@pytest.mark.no_runtime
def test_a_command_makes_its_crawler_as_scrapy_does_on_any_version() -> None:
    class Process:
        def create_crawler(self, spider: Any) -> Any:
            return f"crawler of {spider}", self

    class Before:
        crawler_process = Process()

    class Now(Before):
        def _create_crawler(self, spider: Any) -> Any:
            return f"warned crawler of {spider}"

    assert _scrapy.crawler_for(Before(), "books") == ("crawler of books", Before.crawler_process)
    assert _scrapy.crawler_for(Now(), "books") == "warned crawler of books"
