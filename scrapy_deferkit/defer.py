"""The four helpers for stacks of callbacks, each in two faces.

``process_chain(...)`` gives a Deferred, which has already fired where nothing was pending;
``await process_chain_async(...)`` is the same without the Deferred, for code that is a coroutine.
The first four names are drop-in replacements for the functions that Scrapy had in
``scrapy.utils.defer``: moving over is one word in an import.

Wherever a callback is taken it may be a plain function, a coroutine function, or a function that
returns a Deferred or any other awaitable. Cancelling a Deferred that a helper returned cancels
what is outstanding and calls nothing further; it then fails with
:exc:`twisted.internet.defer.CancelledError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ._engine import (
    Coiterators,
    CoiteratorsInTurns,
    chain,
    chain_both,
    fan_out,
    start_chain,
    start_chain_both,
    start_fan_out,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Coroutine, Iterable

    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

__all__ = [
    "parallel",
    "parallel_async",
    "process_chain",
    "process_chain_async",
    "process_chain_both",
    "process_chain_both_async",
    "process_parallel",
    "process_parallel_async",
]

_T = TypeVar("_T")
_E = TypeVar("_E")
_P = ParamSpec("_P")


def parallel(
    iterable: Iterable[_T] | AsyncIterable[_T],
    count: int,
    callable: Callable[Concatenate[_T, _P], Any],
    *args: _P.args,
    **named: _P.kwargs,
) -> Deferred[list[tuple[bool, Any]]]:
    """Call *callable* for each element of *iterable*, with at most *count* calls outstanding.

    Elements are taken lazily, so the iterable may be endless, and may be asynchronous. Nothing is
    called before this returns, and the loop gets a turn every 10 ms.

    The result is a list of *count* pairs, one a worker: ``(True, iterator)``, where the iterator
    is the same for all, or ``(False, Failure)``. A *callable* that raises ends the iteration, and
    the elements that are left are not taken; a pending result that fails ends its worker alone.

    Raises :exc:`ValueError` when *count* is below 1.
    """
    return CoiteratorsInTurns(iterable, *_bounded(count, callable, args, named)).start()


def parallel_async(
    iterable: Iterable[_T] | AsyncIterable[_T],
    count: int,
    callable: Callable[Concatenate[_T, _P], Any],
    *args: _P.args,
    **named: _P.kwargs,
) -> Coroutine[Any, Any, list[tuple[bool, Any]]]:
    """Do as :func:`parallel` does, to be awaited; it waits only where a result is pending."""
    return Coiterators(iterable, *_bounded(count, callable, args, named)).results()


def _bounded(
    count: int, callable: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[int, Callable[[Any], Any]]:
    if count < 1:
        raise ValueError(f"count is the number of calls at once, 1 or more; got {count!r}")
    if args or named:
        return count, lambda element: callable(element, *args, **named)
    return count, callable


def process_chain(
    callbacks: Iterable[Callable[Concatenate[Any, _P], Any]],
    input: Any,
    *a: _P.args,
    **kw: _P.kwargs,
) -> Deferred[Any]:
    """Call the *callbacks* one after the other, each with the result of the one before it.

    The first gets *input*; all get the extra arguments as well. A failure, raised or returned as
    a ``Failure``, ends the chain and fails the Deferred; so does an *input* that is a ``Failure``.
    """
    return start_chain(_taken(callbacks), input, a, kw)


def process_chain_async(
    callbacks: Iterable[Callable[Concatenate[Any, _P], Any]],
    input: Any,
    *a: _P.args,
    **kw: _P.kwargs,
) -> Coroutine[Any, Any, Any]:
    """Do as :func:`process_chain` does, to be awaited; a failure is raised."""
    return chain(_taken(callbacks), input, a, kw)


def process_chain_both(
    callbacks: Iterable[Callable[Concatenate[Any, _P], Any] | None],
    errbacks: Iterable[Callable[Concatenate[Failure, _P], Any] | None],
    input: Any,
    *a: _P.args,
    **kw: _P.kwargs,
) -> Deferred[Any]:
    """Call the callback or the errback of each pair in turn, as ``Deferred.addCallbacks`` does.

    An errback gets a ``Failure`` and handles failures of the pairs before its own, never of its
    own callback; when it returns a value, the next pair goes on with its callback. ``None`` in
    either place passes the value or the failure through. When *input* is a ``Failure``, the first
    errback is the first to be called.

    Raises :exc:`ValueError` when there are not as many *errbacks* as *callbacks*.
    """
    return start_chain_both(_pairs(callbacks, errbacks), input, a, kw)


def process_chain_both_async(
    callbacks: Iterable[Callable[Concatenate[Any, _P], Any] | None],
    errbacks: Iterable[Callable[Concatenate[Failure, _P], Any] | None],
    input: Any,
    *a: _P.args,
    **kw: _P.kwargs,
) -> Coroutine[Any, Any, Any]:
    """Do as :func:`process_chain_both` does, to be awaited; a failure that is left is raised.

    Cancellation is no failure here: no errback sees it.
    """
    return chain_both(_pairs(callbacks, errbacks), input, a, kw)


def _taken(callbacks: Iterable[_T]) -> tuple[_T, ...]:
    """Take all *callbacks* before the first is called: calls may change where they came from."""
    return callbacks if isinstance(callbacks, tuple) else tuple(callbacks)


def _pairs(callbacks: Iterable[_T], errbacks: Iterable[_E]) -> list[tuple[_T, _E]]:
    callbacks, errbacks = list(callbacks), list(errbacks)
    if len(callbacks) != len(errbacks):
        raise ValueError(
            "process_chain_both takes callbacks and errbacks in pairs: got "
            f"{len(callbacks)} callbacks and {len(errbacks)} errbacks; "
            "put None where a pair has no callback or no errback"
        )
    return list(zip(callbacks, errbacks, strict=True))


def process_parallel(
    callbacks: Iterable[Callable[Concatenate[Any, _P], Any]],
    input: Any,
    *a: _P.args,
    **kw: _P.kwargs,
) -> Deferred[list[Any]]:
    """Call every callback with *input*; give their results, in the order of the *callbacks*.

    All are called, and what is pending is waited for together. The first failure fails the
    Deferred, as itself; what the others then do is not heard.
    """
    return start_fan_out(_taken(callbacks), input, a, kw)


def process_parallel_async(
    callbacks: Iterable[Callable[Concatenate[Any, _P], Any]],
    input: Any,
    *a: _P.args,
    **kw: _P.kwargs,
) -> Coroutine[Any, Any, list[Any]]:
    """Do as :func:`process_parallel` does, to be awaited; a failure is raised."""
    return fan_out(_taken(callbacks), input, a, kw)
