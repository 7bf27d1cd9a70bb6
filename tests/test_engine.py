"""What the engine has beside the helpers: ordered results, and the ways to cancel."""

from __future__ import annotations

import gc
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from scrapy_deferkit._engine import (
    Gate,
    cancel_and_wait,
    is_pending,
    ordered,
    resolve,
    settled,
    shield,
)
from scrapy_deferkit._runtime import CANCELLED, to_awaitable, to_deferred, turn


class Boom(Exception):
    """What fails here."""


async def some_turns() -> None:
    """Let the loop run until all that can happen has happened."""
    for _ in range(20):
        await turn()


class Calls:
    """Calls that stay outstanding until they are ended by hand."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.outstanding: dict[int, Deferred[Any]] = {}
        self.cancelled: list[int] = []

    async def source(self, numbers: Any) -> AsyncIterator[int]:
        for number in numbers:
            await turn()
            self.taken.append(number)
            yield number

    def call(self, number: int) -> Deferred[Any]:
        self.outstanding[number] = Deferred(lambda _: self.cancelled.append(number))
        return self.outstanding[number]

    def end(self, number: int) -> None:
        self.outstanding.pop(number).callback(f"result {number}")


def collect(
    source: AsyncIterator[Any], count: int, call: Callable[[Any], Any]
) -> tuple[list[Any], Deferred[Any]]:
    """Iterate in the background; give the results so far, and a Deferred of the end."""
    given: list[Any] = []

    async def iterate() -> None:
        async for result in ordered(source, count, call):
            given.append(result)  # noqa: PERF401 - it is looked at meanwhile

    return given, to_deferred(iterate())


@given(
    ends=st.lists(st.sampled_from(["at once", "fired", "later", "coroutine"]), max_size=8),
    count=st.integers(1, 4),
    order=st.lists(st.integers(0, 9), min_size=8, max_size=8),
)
async def test_results_come_in_the_order_of_the_source_and_are_bounded(
    ends: list[str], count: int, order: list[int]
) -> None:
    calls = Calls()
    started: list[int] = []

    async def work(number: int) -> str:
        return await to_awaitable(calls.call(number))

    def call(number: int) -> Any:
        started.append(number)
        if ends[number] == "at once":
            return f"result {number}"
        if ends[number] == "fired":
            return succeed(f"result {number}")
        return calls.call(number) if ends[number] == "later" else work(number)

    results, ended = collect(calls.source(range(len(ends))), count, call)
    for choice in order:
        await some_turns()
        assert len(started) - len(results) <= count
        if calls.outstanding:
            calls.end(list(calls.outstanding)[choice % len(calls.outstanding)])
    await some_turns()
    assert ended.called
    assert started == list(range(len(ends)))
    assert results == [f"result {number}" for number in started]


@pytest.mark.parametrize("count", [1, 3])
async def test_an_endless_source_is_taken_as_results_are_given(count: int) -> None:
    calls = Calls()
    results, ended = collect(calls.source(itertools.count()), count, calls.call)
    ended.addErrback(lambda failure: failure.trap(*CANCELLED))
    for number in range(4):
        await some_turns()
        assert len(calls.taken) == number + count
        calls.end(number)
    await some_turns()
    assert results == [f"result {number}" for number in range(4)]
    ended.cancel()
    await some_turns()


async def test_nothing_is_taken_before_it_is_asked_for() -> None:
    calls = Calls()
    results = ordered(calls.source(itertools.count()), 3, lambda number: number)
    await some_turns()
    assert calls.taken == []
    assert [await anext(results), await anext(results)] == [0, 1]
    assert calls.taken == [0, 1]
    await results.aclose()


async def test_a_result_is_given_although_the_source_waits_for_its_next_element() -> None:
    stuck: Deferred[Any] = Deferred()
    calls = Calls()

    async def source() -> AsyncIterator[int]:
        yield 0
        await to_awaitable(stuck)

    results, ended = collect(source(), 3, calls.call)
    await some_turns()
    calls.end(0)
    await some_turns()
    assert results == ["result 0"]
    assert not ended.called
    stuck.callback(None)
    await some_turns()
    assert ended.called


async def test_what_came_before_the_source_failed_is_given_first() -> None:
    calls = Calls()

    async def source() -> AsyncIterator[int]:
        yield 0
        yield 1
        raise Boom

    results, ended = collect(source(), 5, calls.call)
    await some_turns()
    calls.end(1)
    await some_turns()
    assert not ended.called
    calls.end(0)
    with pytest.raises(Boom):
        await to_awaitable(ended)
    assert results == ["result 0", "result 1"]


async def test_a_source_that_fails_at_once_fails_the_iteration() -> None:
    async def source() -> AsyncIterator[int]:
        yield 0
        raise Boom

    results, ended = collect(source(), 5, lambda number: number)
    with pytest.raises(Boom):
        await to_awaitable(ended)
    assert results == [0]


async def test_a_call_that_fails_ends_the_iteration_and_cancels_the_others() -> None:
    calls = Calls()
    results, ended = collect(calls.source(itertools.count()), 3, calls.call)
    await some_turns()
    calls.end(0)
    await some_turns()
    calls.outstanding.pop(1).errback(Boom())
    with pytest.raises(Boom):
        await to_awaitable(ended)
    await some_turns()
    assert results == ["result 0"]
    assert sorted(calls.cancelled) == sorted(calls.outstanding)
    assert calls.taken == [0, 1, 2, 3]


async def test_ending_early_cancels_what_is_outstanding_and_takes_no_more() -> None:
    calls = Calls()
    results = ordered(calls.source(itertools.count()), 3, calls.call)
    first = to_deferred(anext(results))
    await some_turns()
    calls.end(0)
    assert await to_awaitable(first) == "result 0"
    await results.aclose()
    await some_turns()
    assert sorted(calls.cancelled) == [1, 2]
    assert calls.taken == [0, 1, 2]


async def test_ending_early_cancels_a_source_that_waits() -> None:
    cancelled: list[Any] = []
    stuck: Deferred[Any] = Deferred(cancelled.append)

    async def source() -> AsyncIterator[int]:
        yield 0
        await to_awaitable(stuck)
        yield 1

    results = ordered(source(), 3, succeed)
    assert await anext(results) == 0
    await some_turns()
    await results.aclose()
    await some_turns()
    assert cancelled == [stuck]


async def test_failures_of_what_is_cancelled_are_nobodys() -> None:
    def fail_instead(deferred: Deferred[Any]) -> None:
        deferred.errback(Boom("while cancelling"))

    results = ordered(
        Calls().source(range(3)), 3, lambda number: Deferred(fail_instead) if number else succeed(0)
    )
    assert await anext(results) == 0
    await some_turns()
    await results.aclose()
    await some_turns()
    del results
    gc.collect()  # an unheard failure would be logged now


async def test_a_shielded_deferred_goes_on_when_its_shield_is_cancelled() -> None:
    cancelled: list[Any] = []
    pending: Deferred[str] = Deferred(cancelled.append)
    shielded = shield(pending)
    failures: list[Any] = []
    shielded.addErrback(failures.append)
    shielded.cancel()
    assert failures[0].type is CancelledError
    assert (cancelled, pending.called) == ([], False)
    pending.callback("result")


async def test_a_shielded_failure_that_nobody_waits_for_is_not_heard() -> None:
    pending: Deferred[str] = Deferred()
    shielded = shield(pending)
    shielded.addErrback(lambda failure: failure.trap(CancelledError))
    shielded.cancel()
    pending.errback(Boom())
    del pending, shielded
    gc.collect()  # an unheard failure would be logged now


async def test_a_shield_gives_what_is_behind_it() -> None:
    async def work() -> str:
        await turn()
        return "result"

    assert await to_awaitable(shield(work())) == "result"
    with pytest.raises(Boom):
        await to_awaitable(shield(fail(Boom())))


async def test_cancelling_waits_until_the_last_has_ended() -> None:
    cleaning_up: Deferred[None] = Deferred()
    log: list[str] = []

    async def work() -> None:
        try:
            await to_awaitable(Deferred())
        except CANCELLED:
            log.append("cancelled")
            await to_awaitable(cleaning_up)
            log.append("cleaned up")
            raise

    working = to_deferred(work())
    await some_turns()
    ended = to_deferred(cancel_and_wait([working, succeed("already"), Deferred()]))
    await some_turns()
    assert not ended.called
    cleaning_up.callback(None)
    await to_awaitable(ended)
    assert log == ["cancelled", "cleaned up"]


async def test_cancelling_consumes_what_the_cancelled_fail_with() -> None:
    def fail_instead(deferred: Deferred[Any]) -> None:
        deferred.errback(Boom())

    await cancel_and_wait([Deferred(fail_instead), fail(Boom()), Deferred()])
    gc.collect()  # an unheard failure would be logged now


@pytest.mark.no_runtime
def test_a_gate_opens_once() -> None:
    gate = Gate([])
    gate.open("first")
    gate.open("second")
    assert gate.deferred.result == "first"


@pytest.mark.no_runtime
def test_cancelling_a_gate_cancels_them_all_and_nothing_opens_it_then() -> None:
    def open_it(deferred: Deferred[Any]) -> None:
        gate.open("too late")
        deferred.callback("kept")

    pending: list[Deferred[Any]] = [Deferred(open_it), Deferred(open_it)]
    gate = Gate(pending)
    failures: list[Any] = []
    gate.deferred.addErrback(failures.append)
    gate.deferred.cancel()
    assert failures[0].type is CancelledError
    assert [deferred.result for deferred in pending] == ["kept", "kept"]


async def test_a_failure_that_is_settled_is_not_raised() -> None:
    failure = await settled(fail(Boom()))
    assert failure.type is Boom


async def test_resolving_gives_a_value_and_raises_a_failure() -> None:
    assert await resolve("value") == "value"
    assert await resolve(succeed("value")) == "value"
    with pytest.raises(Boom):
        await resolve(await settled(fail(Boom())))


async def test_coroutines_deferreds_and_awaitable_generators_are_pending() -> None:
    coroutine = turn()
    assert is_pending(coroutine)
    assert is_pending(Deferred())
    assert not is_pending(number for number in range(3))
    assert not is_pending("item")
    await coroutine
