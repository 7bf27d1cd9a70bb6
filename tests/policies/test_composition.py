"""Policies nest, and each does what its reading says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import tenacity
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from scrapy_deferkit import (
    CircuitBreaker,
    CircuitOpen,
    Each,
    Fallback,
    Limit,
    Parallel,
    Retry,
    StepTimeout,
    Tap,
    Timeout,
    Tolerant,
    step_of,
)
from scrapy_deferkit._runtime import to_deferred, turn

from ..steps import Broken, Held, until, wait

NO_WAIT = tenacity.wait_none()


async def settle(clock: Clock, seconds: float = 0) -> None:
    """Move the clock, and let what is ready go on."""
    for _ in range(6):
        await turn()
    clock.advance(seconds)
    for _ in range(6):
        await turn()


async def test_retry_of_timeout_gives_each_attempt_its_time(clock: Clock) -> None:
    held = Held()
    item = to_deferred(Retry(Timeout(held, 5), on=StepTimeout, wait=NO_WAIT)({"a": 1}))
    for _ in range(2):
        await until(lambda: held.waiting)
        await settle(clock, 5)
        held.waiting.pop(0)
    await until(lambda: held.waiting)
    await settle(clock, 4)
    held.release()
    assert await wait(item) == {"a": 1}
    assert clock.seconds() == 14


async def test_timeout_of_retry_gives_the_attempts_their_time_together(clock: Clock) -> None:
    calls = []

    def fail(item: Any) -> Any:
        calls.append(clock.seconds())
        raise Broken

    stack = Timeout(Retry(fail, on=Broken, attempts=99, wait=tenacity.wait_fixed(2)), 5)
    item = to_deferred(stack({}))
    for _ in range(6):
        await settle(clock, 1)
    with pytest.raises(StepTimeout):
        await wait(item)
    assert len(calls) == 3
    assert clock.seconds() == 6
    await settle(clock, 100)
    assert len(calls) == 3, "the attempts are over"


async def test_an_errback_runs_when_all_attempts_have_failed() -> None:
    attempts = []

    def fail(item: Any) -> Any:
        attempts.append(item)
        item["spoilt"] = True
        raise Broken(len(attempts))

    stack = Tolerant((Retry(fail, on=Broken, wait=NO_WAIT), lambda f, item: (f.value.args, item)))
    assert await stack({"a": 1}) == ((3,), {"a": 1})


async def test_a_branch_that_times_out_cancels_the_other(clock: Clock) -> None:
    slow, other = Held("slow"), Held("other")
    item = to_deferred(Parallel(Timeout(slow, 5, name="t"), other, name="p")({}))
    await until(lambda: slow.waiting and other.waiting)
    await settle(clock, 5)
    with pytest.raises(StepTimeout) as caught:
        await wait(item)
    assert step_of(caught.value) == "p/t/slow"
    assert other.cancelled == [{}]


async def test_each_element_is_tried_again_by_itself() -> None:
    left = {1: 2, 2: 0, 3: 9}

    def fail_at_first(element: int) -> int:
        if left[element]:
            left[element] -= 1
            raise Broken(element)
        return element * 10

    stack = Each("n", Retry(fail_at_first, on=Broken, wait=NO_WAIT), on_error="drop")
    assert await stack({"n": [1, 2, 3]}) == {"n": [10, 20]}
    assert left == {1: 0, 2: 0, 3: 6}


async def test_a_retry_inside_a_limit_keeps_its_slot_while_it_waits(clock: Clock) -> None:
    calls: list[Any] = []

    def fail_first(item: Any) -> Any:
        calls.append(item)
        if len(calls) == 1:
            raise Broken
        return item

    stack = Limit(Retry(fail_first, on=Broken, wait=tenacity.wait_fixed(5)), concurrency=1)
    items = [to_deferred(stack(name)) for name in "ab"]
    await settle(clock, 1)
    assert calls == ["a"]
    await settle(clock, 4)
    assert [await wait(item) for item in items] == ["a", "b"]
    assert calls == ["a", "a", "b"]


async def test_a_retry_around_a_limit_lets_others_go_first_while_it_waits(clock: Clock) -> None:
    calls: list[Any] = []

    def fail_first(item: Any) -> Any:
        calls.append(item)
        if len(calls) == 1:
            raise Broken
        return item

    stack = Retry(Limit(fail_first, concurrency=1), on=Broken, wait=tenacity.wait_fixed(5))
    items = [to_deferred(stack(name)) for name in "ab"]
    await settle(clock, 5)
    await settle(clock)
    assert [await wait(item) for item in items] == ["a", "b"]
    assert calls == ["a", "b", "a"]


async def test_a_breaker_around_a_timeout_counts_time_outs(clock: Clock) -> None:
    stack = CircuitBreaker(Timeout(lambda item: Deferred(), 5), 1.0, 1, 1)
    item = to_deferred(stack({}))
    await settle(clock, 5)
    with pytest.raises(StepTimeout):
        await wait(item)
    with pytest.raises(CircuitOpen):
        await stack({})


async def test_a_fallback_goes_past_an_open_breaker_at_once() -> None:
    def fail(item: Any) -> Any:
        raise Broken

    stack = Fallback(CircuitBreaker(fail, 1.0, 1, 1), lambda item: "from the cache")
    assert [await stack({}) for _ in range(2)] == ["from the cache"] * 2


async def test_a_tap_may_time_out_and_the_item_goes_on(clock: Clock) -> None:
    item = to_deferred(Tap(Timeout(lambda item: Deferred(), 5))({"a": 1}))
    await settle(clock, 5)
    assert await wait(item) == {"a": 1}


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Retry(Timeout(p, 5), on=Broken),
        lambda p: Timeout(Retry(p, on=Broken), 5),
        lambda p: Limit(CircuitBreaker(p), concurrency=1),
        lambda p: Tolerant((Fallback(p, p), lambda failure, item: "handled")),
        lambda p: Tap(Limit(p, concurrency=1)),
        lambda p: Parallel(Timeout(p, 5), Limit(p, concurrency=1)),
    ],
)
async def test_cancellation_passes_through_them_all(make: Any, clock: Clock) -> None:
    held = Held()
    item = to_deferred(make(held)({}))
    await until(lambda: held.waiting)
    count = len(held.waiting)
    item.cancel()
    with pytest.raises((CancelledError, asyncio.CancelledError)):
        await wait(item)
    await until(lambda: len(held.cancelled) == count)
    assert len(held.waiting) == count, "nothing was called again"
