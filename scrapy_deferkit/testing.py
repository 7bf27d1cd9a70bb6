"""What tests of stacks and components need: a crawler with no network, and a run of a stack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from itemadapter import is_item
from scrapy import Spider
from scrapy.exceptions import DropItem
from scrapy.utils.spider import DefaultSpider
from scrapy.utils.test import get_crawler
from twisted.python.failure import Failure

from ._engine import resolve, settled
from ._runtime import CANCELLED, to_deferred
from ._stack import cancelled_from_within
from .exceptions import StackConfigError, step_of
from .merge import copy_item
from .processor import stack_at

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scrapy.crawler import Crawler

    from ._stack import Stack


def mock_crawler(
    settings: dict[str, Any] | None = None, spider: Spider | type[Spider] | None = None
) -> Crawler:
    """Give a configured crawler with no engine and no network, on whatever runtime is there.

    It has settings, stats, signals, extensions, a request fingerprinter, a log formatter and a
    spider: *spider*, or one made of that class, or one of no consequence.
    """
    given = spider if isinstance(spider, Spider) else None
    cls = type(given) if given is not None else spider
    assert cls is None or isinstance(cls, type)
    crawler = get_crawler(cls, settings)
    if given is None:
        made = crawler.spidercls
        name = getattr(made, "name", None) or DefaultSpider.name
        given = made.from_crawler(crawler, name=name)
    else:
        given.crawler = crawler
        given.settings = crawler.settings
    crawler.spider = given
    return crawler


@dataclass(frozen=True)
class FailedItem:
    """An item that failed: as it was given, the step it failed in, and why."""

    item: Any
    step: str | None
    exception: Exception


@dataclass(frozen=True)
class StackRun:
    """What became of the items that :func:`run_stack` put through a stack."""

    scraped: list[Any] = field(default_factory=list)
    dropped: list[Any] = field(default_factory=list)
    failed: list[FailedItem] = field(default_factory=list)


async def run_stack(
    stack: Stack, items: Iterable[Any], *args: Any, crawler: Crawler | None = None
) -> StackRun:
    """Bind *stack*, open it, put the *items* through it one after the other, and close it.

    *args* are the extra arguments of the processors, such as a response; *crawler* is a
    :func:`mock_crawler` where none is given. Raises what opening and closing raise, and
    :exc:`~scrapy_deferkit.exceptions.StackConfigError` if the stack cannot be called like this.
    """
    if isinstance(items, str) or is_item(items):
        raise StackConfigError(f"run_stack(..., {items!r}): expected a list of items, as in [item]")
    bound = stack_at(stack).bind(mock_crawler() if crawler is None else crawler)
    bound.refuse_unless_taking("item", *(type(argument).__name__.lower() for argument in args))
    run = StackRun()
    await bound.open()
    try:
        for item in items:
            as_given = copy_item(item)
            try:
                # As a Deferred: its cancellation from within is a failure, not this coroutine's.
                result = await settled(to_deferred(bound(item, *args)))
                if isinstance(result, Failure) and result.check(*CANCELLED):
                    raise cancelled_from_within(result.value)
                run.scraped.append(await resolve(result))
            except DropItem:
                run.dropped.append(as_given)
            except Exception as error:  # whatever it is, it is a result here
                run.failed.append(FailedItem(as_given, step_of(error), error))
    finally:
        await bound.close()
    return run
