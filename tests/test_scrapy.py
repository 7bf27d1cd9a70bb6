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


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (Scraper.handle_spider_output_async, ["self", "result", "request", "response"]),
        (Scraper.start_itemproc_async, ["self", "item", "response"]),
        (ExecutionEngine.close_spider_async, ["self", "reason"]),
        (Scraper._check_if_closing, ["self"]),
    ],
)
def test_what_is_wrapped_or_called_takes_what_it_is_given(
    method: Any, parameters: list[str]
) -> None:
    assert list(inspect.signature(method).parameters) == parameters
