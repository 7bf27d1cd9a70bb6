"""A Limit bounds calls at once and calls per second, first come first served."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from scrapy_deferkit import Chain, Limit, Parallel, StackConfigError
from scrapy_deferkit._runtime import clock_set_to, to_deferred, turn
from scrapy_deferkit.testing import mock_crawler

from ..steps import Broken, Held, until, wait


async def turns(count: int = 5) -> None:
    """Let what is ready go on."""
    for _ in range(count):
        await turn()


@given(st.integers(1, 3), st.integers(0, 7))
async def test_no_more_than_concurrency_at_once_and_in_order(count: int, calls: int) -> None:
    held = Held()
    stack = Limit(held, concurrency=count)
    items = [to_deferred(stack(number)) for number in range(calls)]
    for done in range(calls):
        await until(lambda done=done: len(held.waiting) == min(count, calls - done))
        assert [item for item, _ in held.waiting] == list(range(done, min(done + count, calls)))
        held.release()
    assert [await wait(item) for item in items] == list(range(calls))


@pytest.mark.no_runtime
def test_a_free_slot_costs_no_turn_of_the_loop() -> None:
    with pytest.raises(StopIteration) as end:
        Limit(lambda item: item, concurrency=1, per_second=1)("item").send(None)
    assert end.value.value == "item"


async def test_a_call_that_fails_gives_its_slot_back() -> None:
    def fail(item: Any) -> Any:
        raise Broken

    stack = Limit(fail, concurrency=1)
    for _ in range(3):
        with pytest.raises(Broken):
            await stack({})


async def test_calls_per_second_come_from_a_bucket_of_tokens(clock: Clock) -> None:
    calls: list[float] = []

    def note(item: Any) -> Any:
        calls.append(clock.seconds())
        return item

    stack = Limit(note, per_second=2)
    items = [to_deferred(stack(number)) for number in range(6)]
    await turns()
    while len(calls) < 6:
        clock.advance(0.25)
        await turns()
    assert calls == [0, 0, 0.5, 1.0, 1.5, 2.0]
    assert [await wait(item) for item in items] == list(range(6))


async def test_a_rate_below_one_per_second_is_kept(clock: Clock) -> None:
    calls: list[float] = []
    stack = Limit(lambda item: calls.append(clock.seconds()) or item, per_second=0.1)
    items = [to_deferred(stack(number)) for number in range(1, 4)]
    for _ in range(5):
        await turns()
        clock.advance(5)
    for item in items:
        await wait(item)
    assert calls == [0, 10, 20]


async def test_unused_tokens_do_not_pile_up(clock: Clock) -> None:
    calls: list[float] = []
    stack = Limit(lambda item: calls.append(clock.seconds()) or item, per_second=3)
    await stack(1)
    clock.advance(1000)
    items = [to_deferred(stack(number)) for number in range(1, 6)]
    await turns()
    assert len(calls) == 1 + 3
    clock.advance(1)
    await turns()
    assert len(calls) == 1 + 5
    for item in items:
        await wait(item)


@given(
    st.floats(0.5, 4),
    st.lists(st.tuples(st.sampled_from(["call", "advance", "cancel"]), st.floats(0, 2))),
)
async def test_no_window_sees_more_calls_than_the_rate_and_its_bucket_allow(
    rate: float, schedule: Any
) -> None:
    clock = Clock()
    calls: list[float] = []

    def note(item: Any) -> Any:
        calls.append(clock.seconds())
        return item

    with clock_set_to(clock):
        stack = Limit(note, per_second=rate)
        items: list[Deferred[Any]] = []
        for what, amount in schedule:
            if what == "call":
                items.append(to_deferred(stack("item")))
            elif what == "advance":
                clock.advance(amount)
            elif items:
                items.pop(int(amount * 1000) % len(items)).addErrback(lambda _: None).cancel()
            await turns(2)
        for _ in range(200):
            if not clock.getDelayedCalls():
                break
            clock.advance(1)
            await turns(2)
        for item in items:
            assert await wait(item) == "item"
    assert not clock.getDelayedCalls()
    for first, start in enumerate(calls):
        for last in range(first, len(calls)):
            most = max(1.0, rate) + rate * (calls[last] - start)
            assert last - first + 1 <= most + 1e-6


async def test_cancelling_a_waiter_frees_nothing_that_it_did_not_hold(clock: Clock) -> None:
    held = Held()
    stack = Limit(held, concurrency=1, per_second=1)
    first, second, third = (to_deferred(stack(number)) for number in range(3))
    await until(lambda: held.waiting)
    second.cancel()
    with pytest.raises((CancelledError, asyncio.CancelledError)):
        await wait(second)
    await turns()
    assert [item for item, _ in held.waiting] == [0], "the slot is still taken"
    held.release()
    await turns()
    assert not held.waiting, "the slot is free, the token is not there yet"
    clock.advance(1)
    await until(lambda: held.waiting)
    held.release()
    assert [await wait(first), await wait(third)] == [0, 2]


async def test_cancelling_while_waiting_for_a_token_gives_the_slot_back(clock: Clock) -> None:
    stack = Limit(lambda item: item, concurrency=1, per_second=1)
    assert await stack(1) == 1
    waiting = to_deferred(stack(2))
    await until(clock.getDelayedCalls)
    waiting.cancel()
    with pytest.raises((CancelledError, asyncio.CancelledError)):
        await wait(waiting)
    await until(lambda: not clock.getDelayedCalls())
    clock.advance(1)
    assert await stack(3) == 3


async def test_one_limit_in_two_branches_and_two_components_is_one_limit() -> None:
    held = Held()
    limit = Limit(held, concurrency=1)
    crawler = mock_crawler()
    branches = Parallel(limit, limit, merge=lambda item, results: results).bind(crawler)
    other = Chain(limit).bind(crawler)
    waiting = [to_deferred(branches("a")), to_deferred(other("b"))]
    seen = []
    for _ in range(3):
        await until(lambda: held.waiting)
        await turns()
        seen += [item for item, _ in held.waiting]
        held.release()
    assert sorted(seen) == ["a", "a", "b"], "one at a time"
    assert [await wait(it) for it in waiting] == [["a", "a"], "b"]


async def test_calls_that_wait_are_counted(clock: Clock) -> None:
    crawler = mock_crawler()
    held = Held()
    stack = Limit(held, concurrency=1, per_second=1, name="shop").bind(crawler)
    items = [to_deferred(stack(number)) for number in range(2)]
    await until(lambda: held.waiting)
    held.release()
    await until(clock.getDelayedCalls)
    clock.advance(1)
    await until(lambda: held.waiting)
    held.release()
    assert [await wait(item) for item in items] == [0, 1]
    assert crawler.stats.get_value("deferkit/shop/waited") == 1
    assert crawler.stats.get_value("deferkit/shop/held_back") == 1


async def test_two_crawlers_have_limits_of_their_own() -> None:
    held = Held()
    limit = Limit(held, concurrency=1)
    waiting = [to_deferred(limit.bind(mock_crawler())("item")) for _ in range(2)]
    await until(lambda: len(held.waiting) == 2)
    for _ in waiting:
        held.release()
    assert [await wait(item) for item in waiting] == ["item", "item"]


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give concurrency=, per_second=, or both"),
        ({"concurrency": 0}, "concurrency=0.*1 or more"),
        ({"concurrency": True}, "concurrency=True"),
        ({"concurrency": 1.5}, "concurrency=1.5"),
        ({"per_second": 0}, "per_second=0.*above 0"),
        ({"per_second": -1}, "per_second=-1"),
        ({"per_second": "2"}, "per_second='2'"),
    ],
)
def test_wrong_arguments_fail_when_it_is_built(arguments: Any, message: str) -> None:
    with pytest.raises(StackConfigError, match=message):
        Limit(len, **arguments)
