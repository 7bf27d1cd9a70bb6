"""Cancelled at any point, a policy leaves no task, no timer and no slot behind."""

from __future__ import annotations

import asyncio
from typing import Any

import tenacity
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from scrapy_deferkit import CircuitBreaker, Fallback, Limit, Retry, Route, Tap, Timeout
from scrapy_deferkit._runtime import clock_set_to, to_deferred, turn, uses_asyncio

from ..scale import third_of
from ..steps import Broken


class Work:
    """A processor under the schedule's control; it counts what has not ended."""

    __name__ = "work"

    def __init__(self) -> None:
        self.pending: list[Deferred[Any]] = []

    async def __call__(self, item: Any) -> Any:
        from scrapy_deferkit._runtime import to_awaitable

        deferred: Deferred[Any] = Deferred()
        self.pending.append(deferred)
        try:
            return await to_awaitable(deferred)
        finally:
            self.pending.remove(deferred)

    def end(self, which: int, result: Any) -> None:
        live = [deferred for deferred in self.pending if not deferred.called]
        if live:
            live[which % len(live)].callback(result)


def policies(work: Work) -> Any:
    """Give a policy of each kind, and some nested."""
    fixed = tenacity.wait_fixed(2)
    limit = Limit(work, concurrency=2, per_second=1)
    return {
        "Retry": Retry(work, on=Broken, wait=fixed),
        "Timeout": Timeout(work, 3, grace=1),
        "Fallback": Fallback(work, work),
        "Limit": limit,
        "CircuitBreaker": CircuitBreaker(work, 0.5, 4, 2, open_for=3),
        "Tap": Tap(work),
        "Route": Route({dict: work}),
        "Retry(Timeout)": Retry(Timeout(work, 3), on=(Broken, TimeoutError), wait=fixed),
        "Timeout(Limit)": Timeout(limit, 3),
        "Limit(CircuitBreaker(Retry))": Limit(
            CircuitBreaker(Retry(work, on=Broken, wait=fixed), 0.5, 4, 2, open_for=3), concurrency=1
        ),
    }


actions = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "cancel", "end", "fail", "advance", "turn"]),
        st.integers(0, 5),
    ),
    max_size=20,
)


@settings(max_examples=third_of(1000))
@given(st.sampled_from(sorted(policies(Work()))), actions)
async def test_nothing_is_left_behind(name: str, schedule: Any) -> None:
    clock, work = Clock(), Work()
    before = tasks()
    with clock_set_to(clock):
        policy = policies(work)[name]
        calls: list[Deferred[Any]] = []
        for action, number in schedule:
            if action == "call":
                calls.append(to_deferred(policy({"n": number})))
                calls[-1].addErrback(lambda _: None)
            elif action == "cancel" and calls:
                calls[number % len(calls)].cancel()
            elif action == "end":
                work.end(number, {"n": number})
            elif action == "fail":
                work.end(number, Failure(Broken()))
            elif action == "advance":
                clock.advance(number)
            elif action == "turn":
                await turn()
        for call in calls:
            call.cancel()
        for _ in range(8):
            await turn()
        assert not work.pending, "what was running was cancelled"
        assert not clock.getDelayedCalls(), "no timer is left"
        assert tasks() == before, "no task is left"
        await assert_all_slots_are_free(policy, work, clock)


def tasks() -> int:
    """Count the tasks of the loop, where there is one."""
    if not uses_asyncio():
        return 0
    return len(asyncio.all_tasks(asyncio.get_running_loop()))


async def assert_all_slots_are_free(policy: Any, work: Work, clock: Clock) -> None:
    """See that as many calls as there are slots get through at once, when time has passed."""
    clock.advance(60)
    free = policy._concurrency if isinstance(policy, Limit) else 1
    calls = [to_deferred(policy({})) for _ in range(free)]
    for _ in range(8):
        await turn()
    clock.advance(1)  # for a second token; less than any of the timeouts
    for _ in range(8):
        await turn()
    assert len(work.pending) == free
    for call in calls:
        call.addErrback(lambda _: None).cancel()
    for _ in range(8):
        await turn()
    assert not clock.getDelayedCalls()
