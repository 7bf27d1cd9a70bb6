"""How late the loop is while a job is written to a disk that takes 100 ms for each transaction.

``python benchmarks/slow_disk.py`` crawls pages with a ``JOBDIR``, and shows how late calls come
that are due every millisecond.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from crawls import Pages, crawls
from scrapy.utils.defer import deferred_from_coro
from scrapy.utils.reactor import install_reactor

from scrapy_deferkit._jobfile import JobFile

PAGES = 3000
ADDON = {"ADDONS": {"scrapy_deferkit.Addon": 500}}


async def lateness() -> list[float]:
    """Crawl; return how many seconds too late each call came."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - due)

    ticking = asyncio.ensure_future(tick())
    await crawls(Pages, has_job=True, **ADDON)(PAGES)
    ticking.cancel()
    return sorted(late)


def slow_down() -> list[None]:
    """Let each transaction take 100 ms more; return what counts them."""
    write, written = JobFile.write, []

    def write_slowly(*args: Any) -> None:
        time.sleep(0.1)
        written.append(None)
        write(*args)

    JobFile.write = write_slowly  # type: ignore[method-assign]
    return written


def show(what: str, late: list[float]) -> None:
    shares = "".join(f"{late[int(len(late) * share)] * 1000:10.1f}" for share in (0.5, 0.99, 0.999))
    print(f"{what:<24}{shares}{late[-1] * 1000:10.1f}{len(late):10}")


async def main() -> None:
    print(f"{'ms late':<24}{'median':>10}{'99 %':>10}{'99.9 %':>10}{'most':>10}{'calls':>10}")
    show("as the disk is", await lateness())
    written = slow_down()
    show("100 ms a transaction", await lateness())
    print(f"{len(written)} transactions")


if __name__ == "__main__":
    install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")
    from twisted.internet import task

    task.react(lambda _: deferred_from_coro(main()))
