"""Crawls in this process, on the runtime of the tests, with every signal traced."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import scrapy
import scrapy.signals
from scrapy.crawler import Crawler
from scrapy.http import Request, Response
from scrapy.utils.asyncio import call_later
from scrapy.utils.reactor import is_reactor_installed
from scrapy.utils.test import get_crawler
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scrapy_deferkit import step_of
from scrapy_deferkit._runtime import to_awaitable, to_deferred

A_HANG = 50.0
"""Seconds after which a crawl that has not ended fails its test."""

SIGNALS = {name: it for name, it in vars(scrapy.signals).items() if type(it) is object}

QUIET = {
    "LOG_ENABLED": False,
    "TELNETCONSOLE_ENABLED": False,
    "RETRY_ENABLED": False,
    "DOWNLOAD_DELAY": 0,
    "DOWNLOAD_TIMEOUT": 10,
    "USER_AGENT": "tests",
}


class Shop(scrapy.Spider):
    """Yields what the JSON of a page lists: items, and requests for the paths in it."""

    name = "shop"

    def __init__(self, urls: Iterable[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.urls = list(urls)
        self.parsed: list[Response] = []
        self.failures: list[Failure] = []

    async def start(self) -> AsyncIterator[Any]:
        for url in self.urls:
            yield Request(url, errback=self.note)

    def note(self, failure: Failure) -> None:
        self.failures.append(failure)

    def parse(self, response: Any) -> Any:
        self.parsed.append(response)
        for output in response.json():
            is_path = isinstance(output, str)
            yield response.follow(output, errback=self.note) if is_path else output


@dataclass
class Trace:
    """What a crawl did: its signals with their arguments, and its log from WARNING up."""

    crawler: Crawler
    signals: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    log: list[logging.LogRecord] = field(default_factory=list)

    def of(self, signal: str) -> list[dict[str, Any]]:
        """The arguments of each *signal*, in order."""
        return [arguments for name, arguments in self.signals if name == signal]

    @property
    def scraped(self) -> list[Any]:
        return [it["item"] for it in self.of("item_scraped")]

    @property
    def dropped(self) -> list[Any]:
        return [it["item"] for it in self.of("item_dropped")]

    @property
    def failed(self) -> list[tuple[Any, str | None, str]]:
        """The item, the step and the exception of each item error."""
        errors = [(it["item"], it["failure"].value) for it in self.of("item_error")]
        return [(item, step_of(error), type(error).__name__) for item, error in errors]

    @property
    def reason(self) -> str:
        (closed,) = self.of("spider_closed")
        return str(closed["reason"])

    @property
    def spider(self) -> Any:
        return self.crawler.spider

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.log]


async def crawl(
    *urls: str, settings: dict[str, Any], spider: type[scrapy.Spider] = Shop, **kwargs: Any
) -> Trace:
    """Crawl *urls* and give what happened; an exception of the crawl is raised."""
    trace = Trace(get_crawler(spider, {**QUIET, **settings}))
    for name, signal in SIGNALS.items():

        def note(name: str = name, **arguments: Any) -> None:
            trace.signals.append((name, arguments))

        trace.crawler.signals.connect(note, signal, weak=False)
    with _logging_to(trace.log):
        await _run(trace.crawler, urls=urls, **kwargs)
    return trace


async def _run(crawler: Crawler, **kwargs: Any) -> None:
    """Run the crawl to its end, and do not wait for one that hangs: it may not heed a cancel."""
    ended: Deferred[Any] = Deferred()
    hang = call_later(A_HANG, ended.errback, AssertionError("the crawl does not end"))
    crawl = crawler.crawl if is_reactor_installed() else crawler.crawl_async
    to_deferred(crawl(**kwargs)).addBoth(lambda end: ended.called or ended.callback(end))
    try:
        await to_awaitable(ended)
    finally:
        hang.cancel()


@contextmanager
def _logging_to(records: list[logging.LogRecord]) -> Iterator[None]:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "is experimental" not in record.getMessage():  # Scrapy, of its download handlers
                records.append(record)

    handler = Handler(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
