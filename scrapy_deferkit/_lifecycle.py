"""Opening and closing stacks of components that Scrapy does not open and close itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scrapy import signals
from scrapy.exceptions import CloseSpider

from ._runtime import spawn, turn
from ._scrapy import engine_of, is_closing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scrapy.crawler import Crawler
    from twisted.python.failure import Failure

    from ._stack import Stack

logger = logging.getLogger(__name__)


class Lifecycle:
    """Opens *stacks* when the spider opens, and closes them when it is closed.

    A stack that cannot be opened ends the crawl, with the reason ``stack_not_opened`` or that of
    its ``CloseSpider``: going on would send items and requests through processors that are not
    ready.
    """

    def __init__(self, crawler: Crawler, stacks: Iterable[Stack]) -> None:
        self._crawler = crawler
        self._stacks = tuple(stacks)
        self._opened: list[Stack] = []
        crawler.signals.connect(self._open, signals.spider_opened)
        crawler.signals.connect(self._give_up, signals.engine_started)
        crawler.signals.connect(self._close, signals.spider_closed)
        self._reason: str | None = None

    async def _open(self) -> None:
        for stack in self._stacks:
            try:
                await stack.open()
            except CloseSpider as error:
                self._reason = error.reason or "cancelled"
                return
            except Exception:
                logger.exception(
                    "%s could not be opened; closing the spider",
                    stack,
                    extra={"spider": self._crawler.spider},
                )
                self._reason = "stack_not_opened"
                return
            self._opened.append(stack)

    def _give_up(self) -> None:
        reason = self._reason
        if reason is not None and self._crawler.engine is not None:
            self._crawler.engine.pause()  # nothing is downloaded any more
            spawn(
                self._close_when_running(reason),
                lambda failure: log_failed_close(self._crawler, reason, failure),
            )

    async def _close_when_running(self, reason: str) -> None:
        # Closed before it runs, the engine would never be stopped.
        engine = self._crawler.engine
        assert engine is not None
        while engine.spider is not None and not engine.running:
            await turn()
        if engine.spider is not None:
            await engine.close_spider_async(reason=reason)

    async def _close(self) -> None:
        for stack in reversed(self._opened):
            try:
                await stack.close()
            except Exception:
                logger.exception(
                    "%s failed to close", stack, extra={"spider": self._crawler.spider}
                )
        self._opened.clear()


def heed_close_spider(crawler: Crawler, error: BaseException) -> None:
    """Have the crawl closed if *error*, which a step has raised, is ``CloseSpider``.

    Every component does so: Scrapy itself heeds those of callbacks alone. The item or the request
    fails with it all the same.
    """
    if isinstance(error, CloseSpider):
        close_spider(crawler, error.reason or "cancelled")


def close_spider(crawler: Crawler, reason: str) -> None:
    """Have the crawl closed with *reason*, beside what is running now: waiting would deadlock.

    Without a crawl there is nothing to close.
    """
    engine = engine_of(crawler)
    if engine is None or is_closing(crawler):
        return
    spawn(
        engine.close_spider_async(reason=reason),
        lambda failure: log_failed_close(crawler, reason, failure),
    )


def log_failed_close(crawler: Crawler, reason: str, failure: Failure) -> None:
    """Log that closing the spider failed; nobody waits for it."""
    logger.error(
        "closing the spider (%s) failed: %s",
        reason,
        failure.value,
        extra={"spider": crawler.spider},
    )
