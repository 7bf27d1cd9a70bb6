"""Whole crawls: what they cost, in CPU time or by the clock, with the add-on and without."""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import scrapy
from scrapy.crawler import CrawlerRunner
from scrapy.http import Request
from scrapy.utils.defer import maybe_deferred_to_future

Measurement = Callable[[int], Awaitable[float]]

QUIET = {
    "LOG_ENABLED": False,
    "TELNETCONSOLE_ENABLED": False,
    "LOGSTATS_INTERVAL": 0,
    "CONCURRENT_REQUESTS_PER_DOMAIN": 16,
    "DOWNLOAD_DELAY": 0,
    "ROBOTSTXT_OBEY": False,
}


class PlainPipeline:
    def process_item(self, item: Any) -> Any:
        return item


class WaitingPipeline:
    async def process_item(self, item: Any) -> Any:
        await asyncio.sleep(0.05)
        return item


class Pages(scrapy.Spider):
    """One item from each of *number* pages of the local server."""

    name = "pages"

    def __init__(self, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.number = number

    async def start(self) -> AsyncIterator[Any]:
        for page in range(self.number):
            yield Request(f"http://127.0.0.1:{port()}/{page}")

    def parse(self, response: Any) -> Iterator[Any]:
        yield {"title": response.css("title::text").get(), "url": response.url}


class OnePage(Pages):
    """All *number* items from one page."""

    name = "one page"

    async def start(self) -> AsyncIterator[Any]:
        yield Request("data:,")

    def parse(self, response: Any) -> Iterator[Any]:
        for number in range(self.number):
            yield {"number": number, "url": response.url}


@functools.cache
def port() -> int:
    """Start the local server, the first time, and give its port."""
    script = Path(__file__).with_name("server.py")
    server = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    atexit.register(server.kill)
    assert server.stdout is not None
    return int(server.stdout.readline())


def crawls(
    spider: type[Pages],
    pipeline: type = PlainPipeline,
    clock: Callable[[], float] = time.process_time,
    *,
    has_job: bool = False,
    **settings: Any,
) -> Measurement:
    """Measure crawls of *spider* with so many pages or items, in seconds of *clock*.

    If it *has_job*, each has a ``JOBDIR`` of its own.
    """

    async def measure(number: int) -> float:
        port()
        with tempfile.TemporaryDirectory() as folder:
            job = {"JOBDIR": folder} if has_job else {}
            runner = CrawlerRunner({**QUIET, "ITEM_PIPELINES": {pipeline: 1}, **settings, **job})
            crawler = runner.create_crawler(spider)
            gc.collect()  # the garbage of earlier crawls is theirs
            started = clock()
            await maybe_deferred_to_future(runner.crawl(crawler, number=number))
            took = clock() - started
        scraped = crawler.stats.get_value("item_scraped_count")
        if scraped != number:
            raise RuntimeError(f"{scraped} items were scraped instead of {number}")
        return took

    return measure
