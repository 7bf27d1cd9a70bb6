"""The way between Deferreds and awaitables is the same on the three runtimes."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from scrapy_deferkit._runtime import (
    CANCELLED,
    Timer,
    WorkerThread,
    call_soon,
    clock_set_to,
    is_awaitable,
    monotonic,
    now,
    sleep,
    spawn,
    to_awaitable,
    to_deferred,
    turn,
    uses_asyncio,
)


class Boom(Exception):
    """What fails here."""


async def until_fired(deferred: Deferred[Any]) -> Any:
    """Let the loop run until *deferred* has fired; give its result, or its Failure."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    while not results:
        await turn()
    return results[0]


async def test_a_coroutine_knows_what_it_awaits_here(runtime: str) -> None:
    assert uses_asyncio() is (runtime != "twisted")


def test_without_a_loop_that_runs_the_reactor_decides(runtime: str) -> None:
    assert uses_asyncio() is {"asyncio": True, "twisted": False, "none": None}[runtime]


async def test_a_deferred_is_given_back_as_it_is() -> None:
    deferred = succeed("result")
    assert to_deferred(deferred) is deferred


async def test_a_coroutine_becomes_a_deferred_of_its_result() -> None:
    async def work() -> str:
        await turn()
        return "result"

    assert await until_fired(to_deferred(work())) == "result"


async def test_what_a_coroutine_raises_fails_its_deferred() -> None:
    async def work() -> None:
        await turn()
        raise Boom

    assert (await until_fired(to_deferred(work()))).type is Boom


async def test_any_awaitable_becomes_a_deferred() -> None:
    class Awaitable:
        def __await__(self) -> Any:
            return to_awaitable(succeed("result")).__await__()

    assert await until_fired(to_deferred(Awaitable())) == "result"


async def test_a_future_becomes_a_deferred(runtime: str) -> None:
    if runtime == "twisted":
        pytest.skip("there are no Futures on this reactor")
    future = asyncio.get_running_loop().create_future()
    deferred = to_deferred(future)
    future.set_result("result")
    assert await until_fired(deferred) == "result"


def test_with_no_loop_running_a_coroutine_that_waits_for_deferreds_runs_in_step(
    runtime: str,
) -> None:
    if runtime == "asyncio":
        pytest.skip("a coroutine is a task of the reactor's loop here")
    waiting: Deferred[str] = Deferred()

    async def work() -> str:
        return await to_awaitable(waiting)

    working = to_deferred(work())
    assert not working.called
    waiting.callback("result")
    assert working.result == "result"


async def test_a_deferred_is_awaited_for_its_result() -> None:
    waiting: Deferred[str] = Deferred()
    call_soon(lambda: waiting.callback("result"))
    assert await to_awaitable(waiting) == "result"


async def test_a_deferred_that_fails_raises_where_it_is_awaited() -> None:
    waiting: Deferred[str] = Deferred()
    call_soon(lambda: waiting.errback(Boom()))
    with pytest.raises(Boom):
        await to_awaitable(waiting)


async def test_cancelling_a_deferred_of_a_coroutine_cancels_what_it_awaits() -> None:
    cancelled: list[Any] = []
    waiting: Deferred[str] = Deferred(cancelled.append)

    async def work() -> None:
        await to_awaitable(waiting)

    working = to_deferred(work())
    await turn()
    working.cancel()
    assert (await until_fired(working)).check(*CANCELLED)
    assert cancelled == [waiting]


async def test_a_turn_lets_what_was_called_soon_happen() -> None:
    called: list[int] = []
    call_soon(lambda: called.append(1))
    assert called == []
    await turn()
    assert called == [1]


def test_with_no_loop_there_is_no_turn_to_wait_for(runtime: str) -> None:
    if runtime != "none":
        pytest.skip("there is a loop here")
    assert to_deferred(turn()).called


async def test_what_is_called_soon_can_be_called_off() -> None:
    called: list[int] = []
    call_soon(lambda: called.append(1)).cancel()
    await turn()
    await turn()
    assert called == []


async def test_what_is_spawned_runs_beside_what_is_running() -> None:
    waiting: Deferred[str] = Deferred()
    results: list[Any] = []

    async def work() -> None:
        results.append(await to_awaitable(waiting))

    spawn(work(), results.append)
    await turn()
    waiting.callback("result")
    while not results:
        await turn()
    assert results == ["result"]


async def test_what_is_spawned_and_fails_is_heard() -> None:
    failures: list[Failure] = []

    async def work() -> None:
        await turn()
        raise Boom

    spawn(work(), failures.append)
    while not failures:
        await turn()
    assert failures[0].type is Boom


@pytest.mark.no_runtime
@pytest.mark.parametrize("value", [None, "item", ["item"], (n for n in range(3)), Failure(Boom())])
def test_ordinary_values_are_not_awaitable(value: object) -> None:
    assert not is_awaitable(value)


async def test_coroutines_and_deferreds_are_awaitable() -> None:
    coroutine = turn()
    assert is_awaitable(coroutine)
    assert is_awaitable(Deferred())
    await coroutine


@pytest.mark.no_runtime
def test_time_does_not_go_back() -> None:
    assert monotonic() <= monotonic()
    assert now() <= now()


@pytest.mark.no_runtime
def test_a_timer_calls_when_its_time_has_come_and_once() -> None:
    clock = Clock()
    called: list[int] = []
    with clock_set_to(clock):
        Timer(5, lambda: called.append(1))
        clock.advance(4.9)
        assert called == []
        clock.advance(0.1)
        clock.advance(100)
    assert called == [1]


@pytest.mark.no_runtime
def test_a_timer_can_be_cancelled_at_any_time() -> None:
    clock = Clock()
    called: list[int] = []
    with clock_set_to(clock):
        timer = Timer(5, lambda: called.append(1))
        timer.cancel()
        timer.cancel()
        assert clock.getDelayedCalls() == []
        over = Timer(5, lambda: called.append(2))
        clock.advance(5)
        over.cancel()
    assert called == [2]


async def test_a_timer_on_the_clock_of_the_runtime_calls_too() -> None:
    called: list[int] = []
    Timer(0, lambda: called.append(1))
    while not called:
        await turn()


async def test_sleep_ends_when_its_time_has_come() -> None:
    clock = Clock()
    with clock_set_to(clock):
        sleeping = to_deferred(sleep(3600))
        await turn()
        before = now()
        clock.advance(3599)
        await turn()
        assert not sleeping.called
        clock.advance(1)
        await until_fired(sleeping)
        assert now() - before == 3600


async def test_cancelled_sleep_leaves_no_timer_behind() -> None:
    clock = Clock()
    with clock_set_to(clock):
        sleeping = to_deferred(sleep(3600))
        await turn()
        assert len(clock.getDelayedCalls()) == 1
        sleeping.cancel()
        assert (await until_fired(sleeping)).check(*CANCELLED)
        assert clock.getDelayedCalls() == []


@pytest.mark.no_runtime
def test_the_clock_is_put_back_whatever_happens() -> None:
    clock = Clock()
    clock.advance(-1e9)

    def fail() -> None:
        with clock_set_to(clock):
            assert now() == -1e9
            raise Boom

    with pytest.raises(Boom):
        fail()
    assert now() > -1e9


async def test_a_thread_of_its_own_makes_calls_one_after_the_other() -> None:
    thread = WorkerThread("test")
    calls = [thread.call(lambda: threading.current_thread().name) for _ in range(3)]
    names = [await until_fired(call) for call in calls]
    thread.close()
    assert len(set(names)) == 1
    assert names[0] != threading.current_thread().name


async def test_what_fails_in_the_thread_fails_the_deferred_in_the_loop() -> None:
    def fail() -> None:
        raise Boom("in the thread")

    heard_in: list[str] = []
    thread = WorkerThread("test")
    call = thread.call(fail)
    call.addErrback(lambda it: heard_in.append(threading.current_thread().name) or it)
    failure = await until_fired(call)
    thread.close()
    assert failure.check(Boom)
    assert heard_in == [threading.current_thread().name]


async def test_a_call_in_the_thread_that_is_cancelled_goes_on_unheard() -> None:
    may_end, ended = threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait(10)
        ended.set()

    thread = WorkerThread("test")
    call = thread.call(work)
    call.cancel()
    assert (await until_fired(call)).check(*CANCELLED)
    may_end.set()
    assert await until_fired(thread.call(ended.is_set))
    thread.close()
