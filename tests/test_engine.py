"""What the engine has beside the helpers: iterations, ordered results, the ways to cancel."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from scrapy_deferkit import _engine
from scrapy_deferkit._engine import (
    END,
    PASSED,
    Gate,
    Iteration,
    cancel_and_wait,
    is_pending,
    ordered,
    resolve,
    settled,
    shield,
)
from scrapy_deferkit._runtime import CANCELLED, to_awaitable, to_deferred, turn, uses_asyncio


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


async def _as_async(numbers: Any) -> AsyncIterator[int]:
    for number in numbers:
        await turn()
        yield number


def begun_workers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Give a list of the workers that iterations have begun."""
    begun: list[Any] = []
    begin = _engine.begin

    def note(coroutine: Any) -> Any:
        begun.append(coroutine)
        return begin(coroutine)

    monkeypatch.setattr(_engine, "begin", note)
    return begun


@given(
    ends=st.lists(st.sampled_from(["at once", "fired", "later", "coroutine", "never"]), max_size=8),
    count=st.integers(1, 4),
    order=st.lists(st.integers(0, 9), min_size=8, max_size=8),
    made_async=st.booleans(),
)
async def test_an_iteration_calls_in_order_and_as_many_at_once_as_may_be(
    ends: list[str], count: int, order: list[int], made_async: bool
) -> None:
    calls = Calls()
    started: list[int] = []

    async def wait(number: int) -> None:
        await to_awaitable(calls.call(number))

    async def never_suspend() -> None:
        return

    def call(number: int) -> Any:
        started.append(number)
        return {
            "at once": lambda: number,
            "fired": lambda: succeed(number),
            "later": lambda: calls.call(number),
            "coroutine": lambda: wait(number),
            "never": never_suspend,
        }[ends[number]]()

    elements = range(len(ends))
    source = _as_async(elements) if made_async else elements
    ended = to_deferred(Iteration(source, count, call).run())
    waiting = [number for number, end in enumerate(ends) if end in ("later", "coroutine")]
    for choice in order:
        await some_turns()
        outstanding = list(calls.outstanding)
        assert sorted(outstanding) == [number for number in waiting if number in started]
        assert len(started) == len(ends) or len(outstanding) == count
        if outstanding:
            number = outstanding[choice % len(outstanding)]
            waiting.remove(number)
            calls.end(number)
    await to_awaitable(ended)
    assert started == list(elements)


async def test_coroutines_that_never_suspend_share_one_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = begun_workers(monkeypatch)
    monkeypatch.setattr("scrapy_deferkit._engine.monotonic", lambda: 0.0)
    done: list[int] = []

    async def call(number: int) -> None:
        done.append(number)

    await Iteration(range(2000), 16, call).run()
    assert done == list(range(2000))
    assert len(begun) == 1


async def test_coroutines_that_never_suspend_let_the_loop_have_a_turn_every_ten_milliseconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0
    done_at_turns: list[int] = []
    done: list[int] = []

    async def call(number: int) -> None:
        nonlocal now
        now += 4
        done.append(number)

    async def note_turn() -> None:
        done_at_turns.append(len(done))
        await turn()

    monkeypatch.setattr("scrapy_deferkit._engine.monotonic", lambda: now / 1000)
    monkeypatch.setattr("scrapy_deferkit._engine.turn", note_turn)
    await Iteration(range(9), 16, call).run()
    assert done_at_turns[:3] == [3, 6, 9]


async def test_one_alone_takes_from_a_source_however_often_the_loop_has_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = itertools.count(step=0.02)  # it is time for a turn at every element
    monkeypatch.setattr("scrapy_deferkit._engine.monotonic", lambda: next(times))
    done: list[int] = []

    async def source() -> AsyncIterator[int]:
        for number in range(200):
            for _ in range(number % 3):
                await turn()
            yield number

    async def call(number: int) -> None:
        for _ in range(number % 7):
            await turn()
        done.append(number)

    await Iteration(source(), 4, call).run()
    assert sorted(done) == list(range(200))


async def test_an_element_that_a_stopped_source_still_gives_is_called_for() -> None:
    given: Deferred[int] = Deferred()
    called: list[int] = []

    async def source() -> AsyncIterator[int]:
        yield await to_awaitable(given)
        raise AssertionError("no other is taken")

    iteration = Iteration(source(), 4, called.append)
    running = to_deferred(iteration.run())
    await some_turns()
    iteration.stop()
    given.callback(7)
    await to_awaitable(running)
    assert called == [7]


async def test_no_more_workers_begin_than_may_be_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = begun_workers(monkeypatch)
    await Iteration(range(200), 4, lambda _: turn()).run()
    assert len(begun) <= 4 + 1


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("suspends", [True, False])
@pytest.mark.parametrize("made_async", [True, False])
async def test_what_is_passed_comes_in_order_and_nothing_is_taken_beyond_it(
    count: int, suspends: bool, made_async: bool
) -> None:
    taken: list[int] = []

    def elements() -> Any:
        for number in range(12):
            taken.append(number)
            yield number

    async def work() -> None:
        if suspends:
            await turn()

    def call(number: int) -> Any:
        return PASSED if number % 3 == 2 else work()

    iteration = Iteration(_as_async(elements()) if made_async else elements(), count, call)
    passed = []
    while (element := await iteration.next()) is not END:
        await some_turns()
        passed.append(element)
        assert len(taken) <= element + 1 + 3  # those before the next one that is passed, and it
    assert passed == [2, 5, 8, 11]
    assert await iteration.next() is END


async def test_an_iteration_that_is_not_awaited_takes_no_second_element_that_is_passed() -> None:
    calls = Calls()
    numbers = iter(range(10))
    iteration = Iteration(
        numbers, 2, lambda number: calls.call(number) if number in (0, 2) else PASSED
    )
    assert await iteration.next() == 1
    calls.end(0)
    await some_turns()
    second = to_deferred(iteration.next())
    await some_turns()
    if 2 in calls.outstanding:
        calls.end(2)
    assert await to_awaitable(second) == 3
    await some_turns()
    assert next(numbers) in (4, 5)


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("is_fired", [True, False])
async def test_many_deferreds_do_not_nest(count: int, is_fired: bool) -> None:
    calls = Calls()
    call = succeed if is_fired else calls.call
    ended = to_deferred(Iteration(range(10_000), count, call).run())
    while not ended.called:
        await turn()
        for number in list(calls.outstanding):
            calls.end(number)
    await to_awaitable(ended)


@pytest.mark.parametrize("fails", ["source", "call", "pending", "fired"])
async def test_an_error_ends_the_source_and_is_raised_when_all_have_ended(fails: str) -> None:
    calls = Calls()
    taken: list[int] = []

    def elements() -> Any:
        for number in itertools.count():
            taken.append(number)
            if number == 1 and fails == "source":
                raise Boom
            yield number

    async def break_down() -> None:
        raise Boom

    def call(number: int) -> Any:
        if number == 1 and fails == "call":
            raise Boom
        if number == 1:
            return break_down() if fails == "pending" else fail(Boom())
        return calls.call(number)

    ended = to_deferred(Iteration(elements(), 2, call).run())
    failures: list[Any] = []
    ended.addErrback(failures.append)
    await some_turns()
    assert (taken, failures) == ([0, 1], [])
    calls.end(0)
    await some_turns()
    assert failures[0].type is Boom
    assert taken == [0, 1]


async def test_stopped_it_takes_nothing_more_and_what_is_outstanding_goes_on() -> None:
    calls = Calls()
    iteration = Iteration(itertools.count(), 2, calls.call)
    ended = to_deferred(iteration.run())
    await some_turns()
    iteration.stop()
    calls.end(0)
    await some_turns()
    assert not ended.called
    assert list(calls.outstanding) == [1]
    calls.end(1)
    await to_awaitable(ended)
    assert calls.cancelled == []


@pytest.mark.parametrize("made_async", [True, False])
async def test_cancelled_an_iteration_waits_until_all_have_ended_and_takes_nothing_more(
    made_async: bool,
) -> None:
    cleaning_up: Deferred[None] = Deferred()
    log: list[Any] = []

    async def swallow(number: int) -> None:
        log.append(number)
        try:
            await to_awaitable(Deferred())
        except CANCELLED:
            await to_awaitable(cleaning_up)
            log.append(f"{number} has ended")

    source = _as_async(itertools.count()) if made_async else itertools.count()
    ended = to_deferred(Iteration(source, 1, swallow).run())
    failures: list[Any] = []
    ended.addErrback(failures.append)
    await some_turns()
    ended.cancel()
    await some_turns()
    assert log == [0]
    cleaning_up.callback(None)
    await some_turns()
    assert log == [0, "0 has ended"]
    assert issubclass(failures[0].type, CANCELLED)


async def test_cancelled_at_once_it_leaves_no_coroutine_that_was_never_awaited() -> None:
    async def work(number: int) -> None:
        await turn()

    ended = to_deferred(Iteration(range(5), 2, work).run())
    ended.addErrback(lambda failure: failure.trap(*CANCELLED))
    for _ in range(2):
        await asyncio.sleep(0) if uses_asyncio() else None
        ended.cancel()
    await some_turns()
    gc.collect()  # a coroutine that was never awaited would be warned about now


async def test_closed_an_iteration_cancels_what_is_outstanding() -> None:
    calls = Calls()
    iterating = Iteration(itertools.count(), 2, calls.call).run()
    iterating.send(None)
    await some_turns()
    iterating.close()
    await some_turns()
    assert sorted(calls.cancelled) == list(calls.outstanding)


async def test_a_coroutine_runs_in_one_task_from_its_beginning() -> None:
    tasks: list[Any] = []

    async def call(number: int) -> None:
        before = asyncio.current_task() if uses_asyncio() else None
        await turn()
        tasks.append((before, asyncio.current_task() if uses_asyncio() else None))

    await Iteration(range(6), 3, call).run()
    assert all(before is after for before, after in tasks)


async def test_an_element_may_cancel_what_iterates() -> None:
    called: list[int] = []

    def call(number: int) -> Any:
        called.append(number)
        if number == 3:
            ended.cancel()
        return turn()

    ended = to_deferred(Iteration(itertools.count(), 2, call).run())
    failures: list[Any] = []
    ended.addErrback(failures.append)
    await some_turns()
    assert issubclass(failures[0].type, CANCELLED)
    assert len(called) <= 5


@pytest.mark.parametrize("turns", range(4))
async def test_cancelled_by_another_an_iteration_comes_to_its_end(turns: int) -> None:
    calls = Calls()
    taken = iter(range(10))

    async def work(number: int) -> None:
        await to_awaitable(calls.call(number))

    iteration = Iteration(taken, 2, work)
    ended = to_deferred(iteration.run())
    for _ in range(turns):
        await asyncio.sleep(0) if uses_asyncio() else await turn()
    iteration.cancel()
    await to_awaitable(ended)
    assert next(taken) <= 2
    assert sorted(calls.cancelled) == list(calls.outstanding)
