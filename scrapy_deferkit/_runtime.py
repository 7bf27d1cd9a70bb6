"""The three runtimes, and the only module that knows them.

Scrapy runs on the asyncio reactor, on any other Twisted reactor, or on an event loop with no
reactor at all. Everything else in the package asks this module for time, threads, and the way
between Deferreds and awaitables.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any, TypeVar

from scrapy.utils.asyncio import call_later, is_asyncio_available
from scrapy.utils.defer import deferred_from_coro, maybe_deferred_to_future
from twisted.internet.defer import CancelledError, Deferred

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_T = TypeVar("_T")

CANCELLED: tuple[type[BaseException], ...] = (asyncio.CancelledError, CancelledError)
"""What cancellation looks like, whichever runtime it comes from."""

monotonic = time.monotonic


def uses_asyncio() -> bool | None:
    """Tell whether coroutines await Futures (``True``) or Deferreds (``False``) here.

    ``None`` where neither a reactor is installed nor an event loop is running.
    """
    try:
        return is_asyncio_available()
    except RuntimeError:
        return None


def to_deferred(awaitable: Awaitable[_T]) -> Deferred[_T]:
    """Start *awaitable* and give a Deferred of its result; a Deferred is given back as it is.

    With no event loop and no reactor, awaitables that wait for Deferreds alone still work.
    """
    if isinstance(awaitable, Deferred):
        return awaitable
    if uses_asyncio():
        return deferred_from_coro(awaitable)
    return Deferred.fromCoroutine(_await(awaitable))


async def _await(awaitable: Awaitable[_T]) -> _T:
    return await awaitable


def to_awaitable(deferred: Deferred[_T]) -> Awaitable[_T]:
    """Give *deferred* in the form that a coroutine can await on this runtime."""
    if uses_asyncio() is None:
        return deferred
    return maybe_deferred_to_future(deferred)


def call_soon(function: Callable[[], object]) -> Any:
    """Call *function* on a later turn of the loop; give what has a ``cancel()``."""
    return call_later(0, function)


async def turn() -> None:
    """Let the loop have a turn; with no loop there is nothing to wait for."""
    if uses_asyncio() is None:
        return
    passed: Deferred[None] = Deferred()
    call_soon(lambda: passed.callback(None))
    await to_awaitable(passed)


def spawn(awaitable: Awaitable[Any], on_error: Callable[[Any], object]) -> None:
    """Run *awaitable* beside what is running now; a Failure of it goes to *on_error*."""
    to_deferred(awaitable).addErrback(on_error)


def is_awaitable(value: object) -> bool:
    """Tell whether *value* can be awaited (a generator-based coroutine included)."""
    return inspect.isawaitable(value)
