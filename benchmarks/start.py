"""What the add-on adds to the start of a crawl in which nothing fails, in whole processes.

``python benchmarks/start.py`` shows it in CPU time and by the clock, until the spider is open and
until it is closed: the least of many crawls with the add-on, less the least without it. What else
a machine does can only add to the time of a process, and adds up to half of it.
"""

from __future__ import annotations

import json
import operator
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import scrapy
from scrapy import signals
from scrapy.crawler import Crawler, CrawlerProcess

ROUNDS = 20


class Times(NamedTuple):
    """Seconds from the start of a process."""

    cpu_to_open: float
    clock_to_open: float
    cpu_to_closed: float
    clock_to_closed: float


class Start(scrapy.Spider):
    """One item from one page that needs no network."""

    name = "start"
    start_urls = ["data:,A Light in the Attic"]

    def parse(self, response):
        yield {"title": response.text}


class Clock:
    """Notes the CPU time and the time as the spider opens and when it is closed."""

    times: list[float] = []

    def __init__(self, crawler: Crawler) -> None:
        crawler.signals.connect(self._note, signals.spider_opened)
        crawler.signals.connect(self._note, signals.engine_stopped)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Clock:
        return cls(crawler)

    def _note(self) -> None:
        self.times += (time.process_time(), time.time())


def crawl(*, with_addon: bool) -> None:
    """Be one such process."""
    settings = {"EXTENSIONS": {Clock: 1_000_000}, "LOG_LEVEL": "INFO"}
    if with_addon:
        settings["ADDONS"] = {"scrapy_deferkit.Addon": 500}
    process = CrawlerProcess(settings)
    process.crawl(Start)
    process.start()
    print(json.dumps(Clock.times))


def measure(*, with_addon: bool) -> Times:
    """Run one such process."""
    command = [sys.executable, __file__, "--crawl", json.dumps(with_addon)]
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        ended = subprocess.run(
            command, check=True, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    cpu_to_open, open_at, cpu_to_closed, closed_at = json.loads(ended.stdout)
    return Times(cpu_to_open, open_at - began, cpu_to_closed, closed_at - began)


def added(rounds: int) -> Times:
    """Return what the add-on adds to the least times of crawls, made in turn."""
    measured: dict[bool, list[Times]] = {True: [], False: []}
    for number in range(rounds):
        for with_addon in (True, False) if number % 2 else (False, True):
            measured[with_addon].append(measure(with_addon=with_addon))
    ours, stock = (map(min, zip(*measured[side], strict=True)) for side in (True, False))
    return Times(*map(operator.sub, ours, stock))


def main() -> None:
    measure(with_addon=True)  # from here on, all is in the cache of the disk
    for name, seconds in added(ROUNDS)._asdict().items():
        print(f"{name.replace('_', ' '):<16}{seconds * 1000:+7.0f} ms")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--crawl"]:
        crawl(with_addon=json.loads(sys.argv[2]))
    else:
        main()
