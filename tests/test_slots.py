"""The slots of the item stage: bounded, in order, and items that wait for items do not starve."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from scrapy_deferkit._runtime import clock_set_to, to_deferred, turn
from scrapy_deferkit._slots import Slots


class Stage:
    """Slots, with who waits for one, and what the crawl says."""

    def __init__(self, bound: int, *, is_asking: bool = False, is_idle: bool = False) -> None:
        self.overdrawn = 0
        self.entered: list[int] = []
        self._entering: list[Deferred[Any]] = []
        self.slots = Slots(bound, lambda: is_asking, lambda: is_idle, self._count)

    def _count(self) -> None:
        self.overdrawn += 1

    def enter(self, number: int) -> Deferred[Any]:
        async def enter() -> None:
            if not self.slots.take():
                await self.slots.wait()
            self.entered.append(number)

        self._entering.append(to_deferred(enter()))
        return self._entering[-1]

    async def clear(self) -> None:
        """Leave nobody waiting."""
        for entering in self._entering:
            entering.addErrback(lambda _: None).cancel()
        await settle()


async def settle() -> None:
    """Let what may go on do so."""
    for _ in range(3):
        await turn()


@pytest.fixture
def clock() -> Any:
    clock = Clock()
    with clock_set_to(clock):
        yield clock


async def test_items_enter_in_their_order_as_slots_are_given_back(clock: Clock) -> None:
    stage = Stage(2)
    for number in range(5):
        stage.enter(number)
    await settle()
    assert stage.entered == [0, 1]
    stage.slots.release()
    clock.advance(0)
    await settle()
    assert stage.entered == [0, 1, 2]
    stage.slots.release()
    stage.slots.release()
    clock.advance(0)
    await settle()
    assert stage.entered == [0, 1, 2, 3, 4]
    assert stage.slots.taken == 2
    await stage.clear()


async def test_a_slot_that_is_given_back_before_one_waits_for_it_is_not_missed(
    clock: Clock,
) -> None:
    stage = Stage(1)
    assert stage.slots.take()
    assert not stage.slots.take()
    stage.slots.release()
    await stage.slots.wait()
    assert stage.slots.taken == 1


async def test_who_is_cancelled_while_it_waits_takes_no_slot(clock: Clock) -> None:
    stage = Stage(1)
    stage.enter(0)
    waiting = stage.enter(1)
    await settle()
    waiting.addErrback(lambda _: None).cancel()
    await settle()
    stage.enter(2)
    await settle()
    stage.slots.release()
    clock.advance(0)
    await settle()
    assert stage.entered == [0, 2]
    assert stage.slots.taken == 1
    await stage.clear()


async def test_items_that_asked_for_a_page_let_one_more_in_after_ten_quiet_seconds(
    clock: Clock,
) -> None:
    stage = Stage(2, is_asking=True)
    for number in range(5):
        stage.enter(number)
    await settle()
    clock.advance(9.9)
    await settle()
    assert stage.entered == [0, 1]
    clock.advance(0.1)
    await settle()
    assert stage.entered == [0, 1, 2]
    clock.advance(10)
    await settle()
    assert (stage.entered, stage.overdrawn) == ([0, 1, 2, 3], 2)
    # What was overdrawn is paid back before the next enters.
    stage.slots.release()
    stage.slots.release()
    clock.advance(0)
    await settle()
    assert stage.entered == [0, 1, 2, 3]
    stage.slots.release()
    clock.advance(0)
    await settle()
    assert stage.entered == [0, 1, 2, 3, 4]
    assert stage.slots.taken == 2
    await stage.clear()


async def test_an_end_begins_the_ten_seconds_anew(clock: Clock) -> None:
    stage = Stage(2, is_asking=True)
    for number in range(4):
        stage.enter(number)
    await settle()
    clock.advance(9)
    stage.slots.release()
    clock.advance(9)
    await settle()
    assert stage.entered == [0, 1, 2]
    clock.advance(1)
    await settle()
    assert stage.entered == [0, 1, 2, 3]
    await stage.clear()


@pytest.mark.parametrize("is_idle", [True, False])
async def test_slow_items_keep_the_bound_unless_nothing_is_downloaded_for_long(
    clock: Clock, is_idle: bool
) -> None:
    stage = Stage(2, is_idle=is_idle)
    for number in range(5):
        stage.enter(number)
    await settle()
    for _ in range(59):
        clock.advance(1)
    await settle()
    assert stage.entered == [0, 1]
    for _ in range(10):
        clock.advance(1)
    await settle()
    assert len(stage.entered) == (3 if is_idle else 2)
    await stage.clear()


async def test_there_is_one_timer_however_often_somebody_begins_to_wait(clock: Clock) -> None:
    stage = Stage(1, is_asking=True)
    stage.enter(0)
    for number in range(1, 50):
        stage.enter(number)
        await settle()
        clock.advance(0.1)
        stage.slots.release()
        clock.advance(0)
        await settle()
    assert len(clock.getDelayedCalls()) == 1
    stage.enter(50)
    stage.enter(51)
    await settle()
    clock.advance(30)
    await settle()
    assert stage.overdrawn <= 3
    await stage.clear()
    stage.slots.close()
    assert not clock.getDelayedCalls()


async def test_items_of_fifteen_seconds_never_exceed_the_bound(clock: Clock) -> None:
    stage = Stage(3, is_idle=True)
    for number in range(12):
        stage.enter(number)
    await settle()
    for _ in range(4):
        clock.advance(15)
        for _ in range(3):
            stage.slots.release()
            clock.advance(0)
            await settle()
            assert stage.slots.taken <= 3
    await settle()
    assert stage.entered == list(range(12))
    await settle()
    assert stage.overdrawn == 0
    await stage.clear()


async def test_zero_is_no_bound_and_no_timer_is_left(clock: Clock) -> None:
    stage = Stage(0)
    for number in range(1000):
        stage.enter(number)
    await settle()
    assert len(stage.entered) == 1000
    bounded = Stage(1)
    bounded.enter(0)
    bounded.enter(1)
    await settle()
    bounded.slots.close()
    assert not clock.getDelayedCalls()
    await stage.clear()
    await bounded.clear()
