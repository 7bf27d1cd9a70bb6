"""What the parts of this package share in one crawl: one object per crawler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._engine import Outstanding

if TYPE_CHECKING:
    from collections.abc import Callable

    from scrapy.crawler import Crawler

    Observer = Callable[[Any, str, Callable[..., Any]], Callable[..., Any]]

_SLOT = "_deferkit"


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


def crawl_of(crawler: Crawler) -> Crawl:
    """Return what is shared in the crawl of *crawler*."""
    # In the crawler itself: a mapping by crawler would keep each one alive, as stacks refer to it.
    known: Crawl | None = vars(crawler).get(_SLOT)
    if known is None:
        known = vars(crawler)[_SLOT] = Crawl()
    return known
