"""Cancelling `parallel` cancels its calls, and takes no further element."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred

from scrapy_deferkit._runtime import CANCELLED, to_deferred, turn
from scrapy_deferkit.defer import parallel

from ._generated import Observed, Run
from ._parallel import FACES, beginning, turns_by_hand

counts = st.integers(1, 4)


@given(
    kinds=st.lists(st.sampled_from(["returns", "fired", "later", "later_deaf"]), max_size=8),
    count=counts,
    firings=st.integers(0, 4),
)
def test_cancelling_cancels_what_is_outstanding_and_takes_nothing_further(
    kinds: list[str], count: int, firings: int
) -> None:
    with turns_by_hand() as turns:
        observed = Observed(beginning(parallel, [*kinds, *["later"] * 4, "returns"], count))
        for _ in range(min(firings, 3)):
            turns.take_all()
            observed.run.fire(0)
        calls, outstanding, _ = observed.snapshot()
        observed.deferred.cancel()
        turns.take_all()
        assert observed.outcomes[0].type is CancelledError
        assert sorted(observed.run.cancelled) == outstanding
        assert observed.run.calls == calls


@pytest.mark.no_runtime
def test_cancelling_before_the_first_turn_calls_nothing() -> None:
    called: list[int] = []
    with turns_by_hand() as turns:
        worked = parallel([1, 2, 3], 2, called.append)
        worked.addErrback(lambda failure: failure.trap(CancelledError))
        worked.cancel()
        turns.take_all()
    assert worked.result is CancelledError
    assert called == []


@pytest.mark.parametrize("helper", FACES)
@pytest.mark.parametrize("made_async", [False, True])
async def test_cancelling_cancels_coroutines_and_takes_nothing_further(
    helper: Any, made_async: bool
) -> None:
    kinds = ["coroutine_waits", "later", "coroutine_deaf", "later_deaf", "returns", "returns"]
    observed = Observed(beginning(helper, kinds, 4, made_async=made_async))
    await observed.until_quiet()
    calls, outstanding, _ = observed.snapshot()
    assert len(outstanding) == 4
    observed.deferred.cancel()
    await observed.until_quiet()
    assert issubclass(observed.outcomes[0].type, CANCELLED)
    assert set(outstanding) <= set(observed.run.cancelled)
    assert observed.run.calls == calls


@pytest.mark.parametrize("helper", FACES)
async def test_cancelling_cancels_an_element_that_is_waited_for(helper: Any) -> None:
    run = Run()

    async def source() -> AsyncIterator[int]:
        yield 1
        await run._coroutine_waits("the second element")
        yield 2

    called: list[int] = []
    worked = to_deferred(helper(source(), 2, called.append))
    failures: list[Any] = []
    worked.addErrback(failures.append)
    for _ in range(10):
        await turn()
    assert run.outstanding
    worked.cancel()
    for _ in range(10):
        await turn()
    assert run.cancelled == ["the second element"]
    assert issubclass(failures[0].type, CANCELLED)
    assert called == [1]


async def test_cancelled_it_fails_with_twisteds_cancelled_error_on_every_runtime() -> None:
    worked = parallel(itertools.count(), 2, lambda _: Deferred())
    failures: list[Any] = []
    worked.addErrback(failures.append)
    await turn()
    worked.cancel()
    assert failures[0].type is CancelledError


@pytest.mark.no_runtime
def test_a_call_may_cancel_what_it_is_part_of() -> None:
    called: list[int] = []
    outstanding: list[Deferred[Any]] = []

    def call(element: int) -> Deferred[Any]:
        called.append(element)
        if element == 2:
            worked.cancel()
        outstanding.append(Deferred())
        return outstanding[-1]

    with turns_by_hand() as turns:
        worked = parallel([1, 2, 3], 3, call)
        worked.addErrback(lambda failure: failure.trap(CancelledError))
        turns.take_all()
    assert called == [1, 2]
    assert worked.result is CancelledError
    assert all(deferred.called for deferred in outstanding)
