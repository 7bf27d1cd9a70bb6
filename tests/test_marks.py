"""A test that says that no runtime can matter to it cannot touch one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from scrapy_deferkit._runtime import Latch, Timer, WorkerThread, call_soon, sleep, to_deferred, turn

from .marks import RuntimeTouched, no_runtime_is_touched


def inner(test: Any) -> Any:
    """Return the function itself of a test that hypothesis runs."""
    by_hypothesis = getattr(test, "hypothesis", None)
    return test if by_hypothesis is None else by_hypothesis.inner_test


def test_no_coroutine_is_marked(request: pytest.FixtureRequest) -> None:
    tests = [it for it in request.session.items if isinstance(it, pytest.Function)]
    marked = [it for it in tests if it.get_closest_marker("no_runtime")]
    assert not [it.nodeid for it in marked if inspect.iscoroutinefunction(inner(it.obj))]


def use_the_reactor() -> None:
    from twisted.internet import reactor

    reactor.callLater(0, print)


def wait_in_vain() -> None:
    waiting = sleep(1)
    try:
        to_deferred(waiting)
    finally:
        waiting.close()


@pytest.mark.parametrize(
    "touch",
    [
        asyncio.new_event_loop,
        use_the_reactor,
        wait_in_vain,
        lambda: call_soon(print),
        lambda: Timer(1, print),
        lambda: WorkerThread("test").call(print),
        Latch,
        lambda: turn().send(None),
    ],
    ids=["loop", "reactor", "wait", "call soon", "timer", "thread", "latch", "turn"],
)
@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited:RuntimeWarning")
def test_whatever_touches_a_runtime_is_found(touch: Callable[[], object]) -> None:
    with no_runtime_is_touched(), pytest.raises(RuntimeTouched, match="no_runtime"):
        touch()


@pytest.mark.no_runtime
def test_a_marked_test_is_watched() -> None:
    with pytest.raises(RuntimeTouched):
        asyncio.new_event_loop()
