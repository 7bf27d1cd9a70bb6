"""What tests of `parallel` share: a loop turned by hand, and the plain formulation."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import Cooperator

from scrapy_deferkit import _runtime
from scrapy_deferkit._runtime import to_deferred, turn
from scrapy_deferkit.defer import parallel, parallel_async

from . import _generated as generated
from ._generated import Boom, Run, deferring

THE_SOURCE_RAISES = "the source raises"
FACES = [parallel, parallel_async]


class Turns:
    """Turns of a loop that are taken by hand."""

    def __init__(self) -> None:
        self.scheduled: list[Callable[[], object]] = []

    def call_soon(self, function: Callable[[], object]) -> Any:
        self.scheduled.append(function)
        return SimpleNamespace(cancel=lambda: self.scheduled.remove(function))

    def take_one(self) -> None:
        self.scheduled.pop(0)()

    def take_all(self) -> None:
        while self.scheduled:
            self.take_one()


@contextmanager
def turns_by_hand() -> Iterator[Turns]:
    """Give the turns that everything here is scheduled on, Scrapy's own function included."""
    turns = Turns()
    cooperator = functools.partial(Cooperator, scheduler=turns.call_soon)
    consuming = functools.partial(DeferredList, consumeErrors=True)
    with (
        mock.patch("scrapy_deferkit._engine.call_soon", turns.call_soon),
        mock.patch.object(_runtime, "call_soon", turns.call_soon),
        mock.patch("scrapy.utils.defer.Cooperator", cooperator),
        mock.patch("scrapy.utils.defer.DeferredList", consuming),
    ):
        yield turns


def plain_formulation(
    iterable: Any, count: int, callable: Any, *args: Any, **named: Any
) -> Deferred[Any]:
    work = (deferring(callable)(element, *args, **named) for element in iterable)
    cooperator = Cooperator(scheduler=_runtime.call_soon)
    return DeferredList([cooperator.coiterate(work) for _ in range(count)], consumeErrors=True)


def beginning(
    helper: Any,
    kinds: list[str],
    count: int,
    args: Any = (),
    kwargs: Any = None,
    made_async: bool = False,
) -> generated.Begin:
    def begin(run: Run) -> Deferred[Any]:
        def source() -> Iterator[Any]:
            for number, kind in enumerate(kinds):
                if kind == THE_SOURCE_RAISES:
                    raise Boom(kind)
                yield f"element {number}", kind

        async def async_source() -> AsyncIterator[Any]:
            for element in source():
                await turn()
                yield element

        def call(element: tuple[str, str], *args: Any, **kwargs: Any) -> Any:
            return run.callback(*element)(element, *args, **kwargs)

        elements = async_source() if made_async else source()
        return to_deferred(helper(elements, count, call, *args, **(kwargs or {})))

    return begin
