"""What the parts of this package share in one crawl: one object per crawler."""

from __future__ import annotations

import logging
from collections import Counter
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ._engine import Outstanding
from .exceptions import text_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from scrapy.crawler import Crawler

    Observer = Callable[[Any, str, Callable[..., Any]], Callable[..., Any]]

_SLOT = "_deferkit"

logger = logging.getLogger(__name__)


# What stands above this module can have no type here.
current_visit: ContextVar[Any] = ContextVar("deferkit_visit", default=None)
"""The ``Visit`` of the item that the running code belongs to; tasks and Deferreds inherit it."""


class Crawl:
    """The bound stacks of a crawl, who observes their steps, its dead letters, its items."""

    def __init__(self) -> None:
        self.stacks: dict[int, Any] = {}
        """The bound stacks, by the id of their description."""

        self.observers: list[Observer] = []
        """Called with ``(stack, name, call)`` as a step is bound; each returns what to call."""

        # What stands above this module can have no type here.
        self.stats: Any = None
        """The ``StepStats``; ``None`` if no steps are counted."""

        self.delivery: Any = None
        """The ``Delivery``; ``None`` before the spider opens, and if dead letters are disabled."""

        self.items = Outstanding()
        """The items that have entered and not ended."""

        self.spider_arguments: dict[str, str] = {}
        """What ``-a`` gave the spider, without secrets."""

        self.ended = 0
        """How many have ended, and are scraped, dropped or failed."""

        self.replayed: Counter[str] = Counter()
        """How many dead letters of a replay have ended, by how."""

        self.keep_request: Callable[[Any], bool] | None = None
        """Called with the request of an item that has no safe end; ``None`` without a job."""

        self.on_failed: Callable[[], object] | None = None
        """Called at each failure, before its dead letter is written."""


def crawl_of(crawler: Crawler) -> Crawl:
    """Return what is shared in the crawl of *crawler*."""
    # In the crawler itself: a mapping by crawler would keep each one alive, as stacks refer to it.
    known: Crawl | None = vars(crawler).get(_SLOT)
    if known is None:
        known = vars(crawler)[_SLOT] = Crawl()
    return known


def is_crawl(crawler: Crawler) -> bool:
    """Check whether this is a crawl: Scrapy's other commands put in a start() of their own."""
    start: Callable[..., Any] | None = getattr(crawler.spidercls, "start", None)
    module = getattr(start, "__module__", None) or ""
    return crawler.crawling and not module.startswith("scrapy.commands.")


def count(crawler: Crawler, what: str) -> None:
    """Count *what* in the stats of the crawl; what a collector that is down raises is logged."""
    try:
        crawler.stats.inc_value(f"deferkit/{what}")
    except Exception as error:
        logger.error(
            "Could not count deferkit/%s: %s",
            what,
            text_of(error),
            extra={"spider": getattr(crawler, "spider", None)},
        )
