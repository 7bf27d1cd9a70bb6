"""Jobs in the process of the test: schedulers under an engine that crawls nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import scrapy
from scrapy import signals
from scrapy.core.engine import ExecutionEngine
from scrapy.http import Request
from scrapy.utils.test import get_crawler

from scrapy_deferkit._runtime import sleep

from ..crawls.tracing import QUIET

OURS = "scrapy_deferkit.Scheduler"
SCRAPYS = "scrapy.core.scheduler.Scheduler"
PLAIN = "scrapy.pqueues.ScrapyPriorityQueue"
FIFO = {
    "SCHEDULER_DISK_QUEUE": "scrapy.squeues.PickleFifoDiskQueue",
    "SCHEDULER_MEMORY_QUEUE": "scrapy.squeues.FifoMemoryQueue",
}


class Quiet(scrapy.Spider):
    name = "quiet"

    async def start(self) -> AsyncIterator[Any]:
        return
        yield

    def other(self, response: Any) -> None:
        """Be a callback."""


class Opened:
    """An engine with an open spider and its scheduler, in which the test plays the downloader."""

    def __init__(self, engine: ExecutionEngine) -> None:
        self.engine = engine
        self.crawler = engine.crawler
        assert engine._slot is not None
        self.scheduler: Any = engine._slot.scheduler
        self.inprogress = engine._slot.inprogress

    def push(self, *urls: str, **kwargs: Any) -> None:
        for url in urls:
            self.scheduler.enqueue_request(Request(url, **kwargs))

    def pop(self) -> Request | None:
        """Take a request as the engine does: it is in work then."""
        request: Request | None = self.scheduler.next_request()
        if request is not None:
            self.inprogress.add(request)
        return request

    def end(self, *requests: Request | None) -> None:
        self.inprogress.difference_update(requests)

    @property
    def stats(self) -> dict[str, Any]:
        assert self.crawler.stats is not None
        return dict(self.crawler.stats.get_stats())

    async def written(self) -> None:
        """Wait until all that has happened is in the file."""
        await until(lambda: self.scheduler._timer is None and self.scheduler._writing is None)


@asynccontextmanager
async def opened(
    folder: Path | None, *, spider: type[scrapy.Spider] = Quiet, **settings: Any
) -> AsyncIterator[Opened]:
    settings = {**QUIET, "SCHEDULER": OURS, "JOBDIR": folder and str(folder), **settings}
    crawler = get_crawler(spider, settings)
    crawler.crawling = True
    crawler.spider = crawler._create_spider()
    crawler.engine = engine = crawler._create_engine()
    try:
        await engine.open_spider_async(close_if_idle=False)
        job = Opened(engine)
        yield job
    finally:
        assert engine._slot is not None
        engine._slot.inprogress.clear()
        await engine.close_spider_async(reason="finished")
        await crawler.signals.send_catch_log_async(signals.engine_stopped)


def rows(folder: Path, query: str = "SELECT id FROM requests ORDER BY id") -> list[Any]:
    """Return what is in the file of the job: values, or tuples if there are several columns."""
    with closing(sqlite3.connect(folder / "deferkit.sqlite")) as connection:
        found = connection.execute(query).fetchall()
    return [row[0] if len(row) == 1 else row for row in found]


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await sleep(0.005)
