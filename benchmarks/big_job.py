"""What a job of a million waiting requests, and as many fingerprints, takes.

``python benchmarks/big_job.py`` begins a job with few requests and one with many, and goes on with
each, every time in a process of its own: peak memory, and how long the job takes to open.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import scrapy
from scrapy.core.engine import ExecutionEngine
from scrapy.utils.defer import deferred_from_coro
from scrapy.utils.reactor import install_reactor
from scrapy.utils.test import get_crawler

from scrapy_deferkit._runtime import turn

FEW, MANY = 1_000, 1_000_000
A_TURN = 100  # requests that come in one turn of the loop


class Waiting(scrapy.Spider):
    name = "waiting"


async def opened(folder: str) -> tuple[ExecutionEngine, float]:
    """Open the job in *folder*; return its engine and the seconds that it took."""
    crawler = get_crawler(
        Waiting,
        {"SCHEDULER": "scrapy_deferkit.Scheduler", "JOBDIR": folder, "LOG_LEVEL": "WARNING"},
    )
    crawler.crawling = True
    crawler.spider = crawler._create_spider()
    crawler.engine = engine = crawler._create_engine()
    started = time.perf_counter()
    await engine.open_spider_async(close_if_idle=False)
    return engine, time.perf_counter() - started


async def run(folder: str, begin: int) -> None:
    """Put *begin* requests into the job, or take a thousand out if it is zero; tell the figures."""
    engine, seconds = await opened(folder)
    assert engine._slot is not None
    scheduler = engine._slot.scheduler
    for number in range(begin):
        request = scrapy.Request(f"https://shop.example/books/{number}?page={number % 7}")
        assert scheduler.enqueue_request(request)
        if not number % A_TURN:
            await turn()
    if not begin:
        assert all(scheduler.next_request() is not None for _ in range(FEW))
    await engine.close_spider_async(reason="shutdown")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{peak / (1 if sys.platform == 'darwin' else 1024):.0f} {seconds:.2f}")


def measured(folder: str, begin: int) -> tuple[float, float]:
    """Return the peak memory in MB and the seconds to open, of a process of its own."""
    command = [sys.executable, __file__, folder, str(begin)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak, seconds = ended.stdout.split()
    return float(peak), float(seconds)


def main() -> None:
    print(f"{'':<24}{'begun: MB':>12}{'resumed: MB':>12}{'to open: s':>12}{'file: MB':>12}")
    for number in (FEW, MANY):
        with tempfile.TemporaryDirectory() as folder:
            begun, _ = measured(folder, number)
            resumed, seconds = measured(folder, 0)
            size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
        figures = f"{begun:>12.0f}{resumed:>12.0f}{seconds:>12.2f}{size:>12.0f}"
        print(f"{f'{number:,} requests':<24}{figures}")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")
        from twisted.internet import task

        folder, begin = sys.argv[1:]
        task.react(lambda _: deferred_from_coro(run(folder, int(begin))))
