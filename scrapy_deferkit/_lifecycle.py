"""Opening and closing stacks of components that Scrapy does not open and close itself."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scrapy import signals

from ._runtime import spawn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scrapy.crawler import Crawler
    from twisted.python.failure import Failure

    from ._stack import Stack

logger = logging.getLogger(__name__)


class Lifecycle:
    """Opens *stacks* when the spider opens, and closes them when it is closed.

    A stack that cannot be opened ends the crawl, with the reason ``stack_not_opened``: going on
    would send items and requests through processors that are not ready.
    """

    def __init__(self, crawler: Crawler, stacks: Iterable[Stack]) -> None:
        self._crawler = crawler
        self._stacks = tuple(stacks)
        self._opened: list[Stack] = []
        crawler.signals.connect(self._open, signals.spider_opened)
        crawler.signals.connect(self._close, signals.spider_closed)

    async def _open(self) -> None:
        for stack in self._stacks:
            try:
                await stack.open()
            except Exception:
                logger.exception(
                    "%s could not be opened; closing the spider",
                    stack,
                    extra={"spider": self._crawler.spider},
                )
                close_spider(self._crawler, "stack_not_opened")
                return
            self._opened.append(stack)

    async def _close(self) -> None:
        for stack in reversed(self._opened):
            try:
                await stack.close()
            except Exception:
                logger.exception(
                    "%s failed to close", stack, extra={"spider": self._crawler.spider}
                )
        self._opened.clear()


def close_spider(crawler: Crawler, reason: str) -> None:
    """Have the crawl closed with *reason*, beside what is running now: waiting would deadlock."""

    def log(failure: Failure) -> None:
        logger.error(
            "closing the spider (%s) failed: %s",
            reason,
            failure.value,
            extra={"spider": crawler.spider},
        )

    engine = crawler.engine
    assert engine is not None
    spawn(engine.close_spider_async(reason=reason), log)
