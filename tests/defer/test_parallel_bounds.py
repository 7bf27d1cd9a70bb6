"""`parallel` takes elements as calls end, and leaves the loop its turns."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred

from scrapy_deferkit._runtime import CANCELLED, call_soon, monotonic, to_deferred, turn
from scrapy_deferkit.defer import parallel, parallel_async

from ._generated import Boom
from ._parallel import FACES, turns_by_hand


class Bounded:
    """Calls that stay outstanding until one is let go, and the most there ever were."""

    def __init__(self) -> None:
        self.outstanding: list[Deferred[Any]] = []
        self.most = 0
        self.calls = 0

    def call(self, element: int) -> Deferred[Any]:
        assert element == self.calls
        self.calls += 1
        self.outstanding.append(Deferred())
        self.most = max(self.most, len(self.outstanding))
        return self.outstanding[-1]


@pytest.mark.no_runtime
def test_nothing_is_called_before_it_returns() -> None:
    called: list[int] = []
    with turns_by_hand() as turns:
        worked = parallel([1, 2, 3], 2, called.append)
        assert (called, worked.called) == ([], False)
        turns.take_all()
    assert (called, worked.called) == ([1, 2, 3], True)


@pytest.mark.no_runtime
@pytest.mark.parametrize("count", [1, 3])
def test_an_endless_iterator_is_taken_as_calls_end(count: int) -> None:
    bounded = Bounded()
    source = itertools.count()
    with turns_by_hand() as turns:
        worked = parallel(source, count, bounded.call)
        for ended in range(10):
            turns.take_all()
            assert bounded.calls == ended + count
            bounded.outstanding.pop(0).callback(None)
        worked.addErrback(lambda failure: failure.trap(CancelledError))
        worked.cancel()
    assert bounded.most == count
    assert next(source) == bounded.calls


@pytest.mark.parametrize("helper", FACES)
async def test_an_endless_async_generator_is_taken_as_calls_end(helper: Any) -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in itertools.count():
            await turn()
            yield number

    bounded = Bounded()
    worked = to_deferred(helper(numbers(), 3, bounded.call))
    for ended in range(5):
        for _ in range(30):
            await turn()
        assert bounded.calls == ended + 3
        bounded.outstanding.pop(0).callback(None)
    worked.addErrback(lambda failure: failure.trap(*CANCELLED))
    worked.cancel()
    assert bounded.most == 3


@pytest.mark.parametrize("helper", FACES)
async def test_the_loop_has_its_turns_while_there_is_work_without_end(helper: Any) -> None:
    def numbers() -> Iterator[int]:
        too_late = monotonic() + 10
        for number in itertools.count():
            if monotonic() > too_late:
                raise Boom("the loop had no turn")
            yield number

    outcomes: list[Any] = []
    worked = to_deferred(helper(numbers(), 3, lambda _: None)).addBoth(outcomes.append)
    call_soon(worked.cancel)
    while not outcomes:
        await turn()
    assert issubclass(outcomes[0].type, CANCELLED)


@pytest.mark.no_runtime
def test_the_loop_has_a_turn_every_ten_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    calls_at_turns: list[int] = []
    called: list[int] = []

    def call(element: int) -> None:
        nonlocal now
        now += 4
        called.append(element)

    monkeypatch.setattr("scrapy_deferkit._engine.monotonic", lambda: now / 1000)
    with turns_by_hand() as turns:
        worked = parallel(range(9), 2, call)
        while not worked.called:
            turns.take_one()
            calls_at_turns.append(len(called))
    assert calls_at_turns[:3] == [3, 6, 9]


async def test_awaited_the_loop_has_a_turn_every_ten_milliseconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0
    calls_at_turns: list[int] = []
    called: list[int] = []

    def call(element: int) -> None:
        nonlocal now
        now += 4
        called.append(element)

    async def note_turn() -> None:
        calls_at_turns.append(len(called))
        await turn()

    monkeypatch.setattr("scrapy_deferkit._engine.monotonic", lambda: now / 1000)
    monkeypatch.setattr("scrapy_deferkit._engine.turn", note_turn)
    await parallel_async(range(9), 2, call)
    assert calls_at_turns[:3] == [3, 6, 9]


async def test_the_coroutine_does_not_wait_where_nothing_is_pending() -> None:
    coroutine = parallel_async([1, 2], 100, str)
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    assert len(ended.value.value) == 100
