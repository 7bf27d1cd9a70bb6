"""A crawl of a tree of pages over HTTP that is killed and goes on: ``python tree.py PLAN``.

Page n links to the pages 4n + 1 to 4n + 4, and has up to six items. Some pages redirect, some fail
the first time, some are not there: their errback yields an item and the links.
"""

from __future__ import annotations

import os
import random
import resource
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import scrapy
from scrapy import signals

from scrapy_deferkit import _jobfile
from scrapy_deferkit._runtime import sleep

if __package__:
    from . import crawl
else:  # the program
    sys.path.insert(0, str(Path(__file__).parent))
    import crawl  # type: ignore[import-not-found,no-redef]

PLAN = crawl.PLAN
IS_MISSING = 7  # page n is not there if n % 10 is this


def children(page: int, pages: int) -> Iterator[int]:
    return (child for child in range(4 * page + 1, 4 * page + 5) if child < pages)


def items_of(page: int) -> list[str]:
    if page % 10 == IS_MISSING:
        return [f"{page}.missing"]
    return [f"{page}.{number}" for number in range(page % 7)]


def is_to_fail(item: str) -> bool:
    return item.endswith(".2")


def expected(pages: int) -> set[str]:
    """Return the items of so many pages, and of start()."""
    return {"start"}.union(*(items_of(page) for page in range(pages)))


class Tree(scrapy.Spider):
    name = "tree"
    note_opened, note_closed = crawl.Killed.note_opened, crawl.Killed.note_closed

    @classmethod
    def from_crawler(cls, crawler: Any, *args: Any, **kwargs: Any) -> Any:
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.note_opened, signals.spider_opened)
        crawler.signals.connect(spider.note_closed, signals.spider_closed)
        return spider

    async def start(self) -> AsyncIterator[Any]:
        yield {"id": "start", "page": -1}
        yield self.request(0)

    def request(self, page: int) -> scrapy.Request:
        return scrapy.Request(
            f"{PLAN['site']}/{page}",
            self.parse,
            errback=self.fail,
            cb_kwargs={"page": page},
            meta={"page": page},
        )

    def parse(self, response: Any, page: int) -> Iterator[Any]:
        crawl.folder.note("crawled", page)
        self.state["pages"] = self.state.get("pages", 0) + 1
        if page == PLAN.get("killer"):
            os._exit(9)
        if page == PLAN.get("hungry"):
            eat_all_memory()
        yield from self.output_of(page)

    def fail(self, failure: Any) -> Iterator[Any]:
        page = failure.request.cb_kwargs["page"]
        crawl.folder.note("crawled", page)
        assert page % 10 == IS_MISSING, failure
        yield from self.output_of(page)

    def output_of(self, page: int) -> Iterator[Any]:
        links = [self.request(child) for child in children(page, PLAN["pages"])]
        yield from links[:2]
        for item in items_of(page):
            yield {"id": item, "page": page}
        yield from links[2:]


def eat_all_memory() -> None:
    eaten = []
    try:
        while True:
            eaten.append(bytes(1 << 20))
    finally:
        eaten.clear()  # else the traceback would have it


def limit_memory(megabytes: int) -> None:
    """Let the process take so much memory more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


class Sink:
    async def process_item(self, item: Any) -> Any:
        await sleep(random.uniform(0, 0.02))
        if is_to_fail(item["id"]):
            raise ValueError(f"{item['id']} is bad")
        crawl.folder.note("sunk", item["id"])
        return item


class DieWhenGiven:
    def process_request(self, request: Any) -> None:
        if request.meta.get("page") == PLAN.get("killer_when_given"):
            os._exit(9)


class Dying(sqlite3.Connection):
    """Ends the process at a statement of the writing thread."""

    left = 0

    def _count(self) -> None:
        if threading.current_thread().name.startswith("deferkit-job"):
            Dying.left -= 1
            if not Dying.left:
                os._exit(9)

    def execute(self, *args: Any) -> Any:
        self._count()
        return super().execute(*args)

    def executemany(self, *args: Any) -> Any:
        self._count()
        return super().executemany(*args)


def die_at(statement: int) -> None:
    Dying.left = statement
    connect = sqlite3.connect
    _jobfile.sqlite3.connect = lambda *args, **kwargs: connect(  # type: ignore[attr-defined]
        *args, factory=Dying, **kwargs
    )


def settings() -> dict[str, Any]:
    folder = crawl.folder.path
    return {
        "ITEM_PIPELINES": {Sink: 1},
        "DOWNLOADER_MIDDLEWARES": {DieWhenGiven: 1},
        "DOWNLOAD_HANDLERS": {},
        "DOWNLOAD_DELAY": 0,
        "CONCURRENT_REQUESTS": 16,
        "CONCURRENT_REQUESTS_PER_DOMAIN": 16,
        "RETRY_TIMES": 5,
        "FEEDS": {
            str(folder / "feed.jsonl"): {"format": "jsonlines"},
            str(folder / "feed.csv"): {"format": "csv"},
        },
    }


if __name__ == "__main__":
    sys.exit(
        crawl.main(
            Path(sys.argv[1]),
            Tree=Tree,
            die_at=die_at,
            limit_memory=limit_memory,
            settings=settings,
        )
    )
