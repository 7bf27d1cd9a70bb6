"""A crawl in a process of its own, for tests that end it: ``python crawl.py PLAN``.

PLAN is a JSON file. What the crawl does is in files of its folder, one line for each event, which
are there whatever becomes of the process: ``entered``, ``dropped``, ``delivered``, ``scraped``,
``letters`` and ``closed``. The spider yields no item again that has entered in an earlier run.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import scrapy
from scrapy import signals
from scrapy.core.engine import ExecutionEngine
from scrapy.crawler import AsyncCrawlerProcess, CrawlerProcess
from scrapy.exceptions import DropItem

import scrapy_deferkit.signals
from scrapy_deferkit import Chain, StackSpiderMiddleware
from scrapy_deferkit._runtime import sleep

# What becomes of item n is told by n % 50.
FAIL, DROPPED, FAILS_IN_STACK, DROPPED_IN_STACK = (3, 13), 7, 11, 17


class Folder:
    """The files of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note(self, name: str, line: object) -> None:
        """Append *line* in one system call: it is there, or it is not."""
        file = os.open(self.path / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{line}\n".encode())
        os.close(file)

    def lines(self, name: str) -> list[str]:
        path = self.path / name
        return path.read_text("utf-8").splitlines() if path.exists() else []


PLAN: dict[str, Any] = {}
folder = Folder(Path())


def price_of(number: int) -> int:
    return number + 1


def page_of(number: int) -> int:
    return number // PLAN["per_page"]


def numbers_of(page: int) -> range:
    size = PLAN["per_page"]
    return range(page * size, min((page + 1) * size, PLAN["items"]))


def make_item(number: int) -> dict[str, Any]:
    return {"n": number, "price": price_of(number), "stacked": 0, "tags": ("a", b"b")}


class Killed(scrapy.Spider):
    """Yields the items of the plan: those of the first page from start(), others from pages."""

    name = "killed"

    @classmethod
    def from_crawler(cls, crawler: Any, *args: Any, **kwargs: Any) -> Killed:
        spider = super().from_crawler(crawler, *args, **kwargs)
        spider.gone = {*map(int, folder.lines("entered"))}
        connect = crawler.signals.connect
        connect(spider.note_opened, signals.spider_opened)
        connect(spider.note_scraped, signals.item_scraped)
        connect(spider.note_closed, signals.spider_closed)
        connect(spider.note_letter, scrapy_deferkit.signals.item_dead_lettered)
        return spider

    async def start(self) -> AsyncIterator[Any]:
        for item in self.items_of(0):
            yield item
        for page in range(1, page_of(PLAN["items"] - 1) + 1):
            if not self.gone.issuperset(numbers_of(page)):
                yield scrapy.Request(self.url_of(page), dont_filter=True, cb_kwargs={"page": page})

    def url_of(self, page: int) -> str:
        return f"data:,{page}"

    def parse(self, response: Any, page: int) -> Iterator[Any]:
        yield from self.items_of(page)

    def items_of(self, page: int) -> Iterator[Any]:
        for number in numbers_of(page):
            if number not in self.gone:
                self.gone.add(number)
                yield make_item(number)

    def note_opened(self) -> None:
        folder.note("opened", os.getpid())

    def note_scraped(self, item: Any, response: Any) -> None:
        url = None if response is None else response.url
        folder.note("scraped", f"{item['n']} {url}")

    def note_letter(self, item: Any, letter_id: str) -> None:
        folder.note("letters", letter_id)

    def note_closed(self, reason: str) -> None:
        stats = {name: str(value) for name, value in self.crawler.stats.get_stats().items()}
        folder.note("closed", json.dumps({"reason": reason, "stats": stats}))


class Note:
    """Notes what enters, and changes it."""

    def process_item(self, item: Any) -> Any:
        folder.note("entered", item["n"])
        item["price"] *= 2
        return item


class Sink:
    """Writes into a table with a key, after a while; refuses some and drops some."""

    _table: sqlite3.Connection | None = None
    _taken = 0

    def open_spider(self) -> None:
        self._table = sqlite3.connect(folder.path / "sink.sqlite", isolation_level=None)
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute(
            "CREATE TABLE IF NOT EXISTS items (n INTEGER PRIMARY KEY, price INTEGER, stacked INT)"
        )

    def close_spider(self) -> None:
        if self._table is not None:  # Scrapy closes what it could not open
            self._table.close()

    async def process_item(self, item: Any) -> Any:
        seconds = random.uniform(*PLAN["sink_seconds"]) / 2
        await sleep(seconds)
        number = item["n"]
        if not self._takes_another():
            while not (folder.path / "go").exists():
                await sleep(0.01)
        if number % 50 in FAIL:
            raise ValueError(f"item {number} is bad")
        if number % 50 == DROPPED:
            folder.note("dropped", number)
            raise DropItem(f"item {number} is not wanted")
        row = (number, item["price"], item["stacked"])
        self._table.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?)", row)
        folder.note("delivered", number)
        await sleep(seconds)
        return item

    def _takes_another(self) -> bool:
        self._taken += 1
        return PLAN["hold_after"] is None or self._taken <= PLAN["hold_after"]


async def enter_stack(item: Any, response: Any) -> Any:
    folder.note("entered", item["n"])
    folder.note("stacked", f"{item['n']} {response.url}")
    item["stacked"] += 1
    await sleep(random.uniform(*PLAN["sink_seconds"]))
    return item


def choose_in_stack(item: Any, response: Any) -> Any:
    if item["n"] % 50 == FAILS_IN_STACK:
        raise ValueError(f"item {item['n']} is bad in the stack")
    if item["n"] % 50 == DROPPED_IN_STACK:
        folder.note("dropped", item["n"])
        raise DropItem("not wanted in the stack")
    return item


STACK = Chain(enter_stack, choose_in_stack)


# ------------------------------------------------------------------------------------------ faults


def fail_to_count(message: str) -> None:
    """Let the dead letters be put in, and not be counted."""
    from scrapy_deferkit.deadletters import DeadLetters
    from scrapy_deferkit.exceptions import DeadLettersError

    def count(self: Any, selection: Any) -> int:
        raise DeadLettersError(message)

    DeadLetters.count = count


# ------------------------------------------------------------------------------------------- main


def settings_of(plan: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "ADDONS": {"scrapy_deferkit.Addon": 500},
        "ITEM_PIPELINES": {Note: 1, Sink: 2},
        "TELNETCONSOLE_ENABLED": False,
        "JOBDIR": str(folder.path / "job"),
        "LOG_FILE": str(folder.path / "log"),
        "LOG_LEVEL": "INFO",
        "DEFERKIT_DEAD_LETTERS_URL": f"sqlite:///{folder.path}/letters.sqlite",
        "DEFERKIT_CONCURRENT_ITEMS": 16,
        "CONCURRENT_ITEMS": 8,
    }
    if plan["runtime"] == "none":
        settings |= {"TWISTED_REACTOR_ENABLED": False}
        settings |= {"DOWNLOAD_HANDLERS": {"http": None, "https": None, "ftp": None}}
    if plan["runtime"] == "twisted":
        settings |= {"TWISTED_REACTOR": "twisted.internet.selectreactor.SelectReactor"}
    if plan["has_stack"]:
        settings |= {
            "DEFERKIT_SPIDER_STACK": STACK,
            "SPIDER_MIDDLEWARES": {StackSpiderMiddleware: 50},
        }
    return settings | plan["settings"]


def main(plan_path: Path, **own: Any) -> int:
    """Run the crawl of the plan; *own* has a spider, its settings and its faults by name."""
    ExecutionEngine._SLOT_HEARTBEAT_INTERVAL = 0.05  # in the place of 5 s: it notices the end
    PLAN.update(json.loads(plan_path.read_text("utf-8")))
    folder.path = plan_path.parent
    names = {**globals(), **own}
    for fault, argument in PLAN["faults"].items():
        names[fault](argument)
    kind = CrawlerProcess if PLAN["runtime"] == "twisted" else AsyncCrawlerProcess
    settings = own["settings"]() if "settings" in own else {}
    process = kind(settings_of(PLAN) | settings)
    process.crawl(names[PLAN["spider"]])
    process.start()
    return int(process.bootstrap_failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
