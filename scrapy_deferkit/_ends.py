"""How an item ends outside the pipelines: logged and signalled as Scrapy's scraper does it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scrapy import signals
from scrapy.utils.log import logformatter_adapter
from twisted.python.failure import Failure

from ._crawl import crawl_of
from ._runtime import to_deferred
from .exceptions import text_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from scrapy.crawler import Crawler
    from scrapy.exceptions import DropItem
    from twisted.internet.defer import Deferred

    from .delivery import Visit

logger = logging.getLogger(__name__)


async def end_as_dropped(crawler: Crawler, visit: Visit, response: Any, error: DropItem) -> None:
    """Log and signal that the item of *visit* was dropped."""
    visit.done("dropped")
    _log(crawler, "dropped", visit, error, response)
    await crawler.signals.send_catch_log_async(
        signals.item_dropped,
        item=visit.item,
        response=response,
        spider=crawler.spider,
        exception=error,
    )


async def end_as_failed(crawler: Crawler, visit: Visit, response: Any, error: Exception) -> None:
    """Keep the item of *visit*, which failed with *error*, as a dead letter; log and signal it."""
    await visit.failed(error)
    _log(crawler, "item_error", visit, error, response, exc_info=error)
    await crawler.signals.send_catch_log_async(
        signals.item_error,
        item=visit.item,
        response=response,
        spider=crawler.spider,
        failure=Failure(error),
    )


def spawn_ending(crawler: Crawler, ending: Coroutine[Any, Any, None]) -> Deferred[None]:
    """Run *ending* beside what is running now; the pipelines stay open until it has ended.

    Returns a Deferred of that, which does not fail: what goes wrong is logged.
    """
    items = crawl_of(crawler).items

    async def end() -> None:
        try:
            await ending
        finally:
            items.end()

    items.begin()
    done: Deferred[None] = to_deferred(end())
    return done.addErrback(lambda failure: _log_failure(crawler, failure))


def _log_failure(crawler: Crawler, failure: Failure) -> None:
    logger.error(
        "Could not report how an item ended: %s", failure.value, extra={"spider": crawler.spider}
    )


def _log(
    crawler: Crawler,
    how: str,
    visit: Visit,
    error: Exception,
    response: Any,
    exc_info: Exception | None = None,
) -> None:
    extra = {"spider": crawler.spider}
    item = visit.item
    try:
        entry = getattr(crawler.logformatter, how)(item, error, response, crawler.spider)
        if entry is not None:
            logger.log(
                *logformatter_adapter(entry), exc_info=exc_info, extra={**extra, "item": item}
            )
    except Exception as trouble:  # of the log formatter: the signal is sent all the same
        logger.error(
            "An item of %s ended, and LOG_FORMATTER failed: %s",
            visit.origin,
            text_of(trouble),
            extra=extra,
        )
