"""What stays too long is warned about and cancelled; all that is watched shares one timer."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from scrapy_deferkit._runtime import clock_set_to
from scrapy_deferkit._watchdog import FIRST_WARNING, GRACE, Watchdog

pytestmark = pytest.mark.no_runtime

Event = tuple[float, int, str]


class Item:
    """Notes what the watchdog does to it."""

    def __init__(self, number: int, clock: Clock, events: list[Event]) -> None:
        self._number, self._clock, self._events = number, clock, events

    def warn(self, seconds: float) -> None:
        self._note(f"warned after {seconds:g}")

    def expire(self) -> None:
        self._note("expired")

    def give_up(self) -> None:
        self._note("given up")

    def _note(self, what: str) -> None:
        self._events.append((self._clock.seconds(), self._number, what))


def expected(number: int, begin: int, end: int, timeout: int) -> list[Event]:
    """Tell what happens to an item that is watched from *begin* to *end*, by the definition."""
    events: list[Event] = []
    after = FIRST_WARNING
    while not timeout or after < timeout:
        events.append((begin + after, number, f"warned after {after:g}"))
        after *= 2
        if after > 100_000:
            break
    if timeout:
        events.append((begin + timeout, number, "expired"))
        events.append((begin + timeout + GRACE, number, "given up"))
    return [event for event in events if event[0] < end]


stays = st.lists(
    st.tuples(st.integers(0, 500), st.one_of(st.integers(1, 30), st.integers(1, 5000))),
    max_size=30,
)


@given(stays, st.sampled_from([0, 1, 30, 60, 61, 120, 500, 3600]))
def test_each_is_told_of_at_its_own_times(stays: list[tuple[int, int]], timeout: int) -> None:
    clock = Clock()
    events: list[Event] = []
    # What ends in a second ends before the watchdog looks: so do the events it would have had.
    moments = [(begin, 1, number) for number, (begin, _) in enumerate(stays)]
    moments += [(begin + stay, 0, number) for number, (begin, stay) in enumerate(stays)]
    with clock_set_to(clock):
        dog: Watchdog[Item] = Watchdog(timeout)
        items: dict[int, Item] = {}
        for moment, begins, number in sorted(moments):
            if moment - 0.5 > clock.seconds():
                advance_to(clock, moment - 0.5)
            if begins:
                advance_to(clock, moment)
                dog.begin(items.setdefault(number, Item(number, clock, events)))
            else:
                dog.end(items[number])
            assert len(clock.getDelayedCalls()) <= 1
        assert not list(dog)
        dog.stop()
        assert not clock.getDelayedCalls()
    wanted = [
        event
        for number, (begin, stay) in enumerate(stays)
        for event in expected(number, begin, begin + stay, timeout)
    ]
    assert sorted(events) == sorted(wanted)


def advance_to(clock: Clock, time: float) -> None:
    """Let the clock run, and stop where a call is due, as real time does."""
    while True:
        due = min((call.getTime() for call in clock.getDelayedCalls()), default=time + 1)
        if due > time:
            break
        clock.advance(max(0.0, due - clock.seconds()))
    clock.advance(max(0.0, time - clock.seconds()))


def test_thousands_that_come_and_go_set_one_timer() -> None:
    clock = Clock()
    set_timers = []
    call_later = clock.callLater

    def counted(delay: float, function: Any, *args: Any) -> Any:
        set_timers.append(delay)
        return call_later(delay, function, *args)

    clock.callLater = counted  # type: ignore[method-assign]
    with clock_set_to(clock):
        dog: Watchdog[Item] = Watchdog(3600)
        for number in range(5000):
            item = Item(number, clock, [])
            dog.begin(item)
            clock.advance(0.001)
            dog.end(item)
        assert len(set_timers) == 1
        assert len(clock.getDelayedCalls()) == 1
        dog.stop()


def test_what_was_stopped_is_told_of_no_more() -> None:
    clock = Clock()
    events: list[Event] = []
    with clock_set_to(clock):
        dog: Watchdog[Item] = Watchdog(100)
        for number in range(3):
            dog.begin(Item(number, clock, events))
        clock.advance(70)
        assert len(events) == 3
        dog.stop()
        clock.advance(1000)
    assert len(events) == 3


class Failing(Item):
    def expire(self) -> None:
        super().expire()
        raise ZeroDivisionError


def test_one_that_cannot_be_cancelled_leaves_the_others_watched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    events: list[Event] = []
    with clock_set_to(clock), caplog.at_level(logging.ERROR):
        dog: Watchdog[Item] = Watchdog(10)
        for number, kind in enumerate([Failing, Item, Failing, Item]):
            dog.begin(kind(number, clock, events))
        clock.advance(10)
        clock.advance(5)
        dog.stop()
    assert [number for _, number, what in events if what == "expired"] == [0, 1, 2, 3]
    assert [number for _, number, what in events if what == "given up"] == [0, 1, 2, 3]
    assert len(caplog.records) == 2


class Ending(Item):
    """Ends with its cancellation, as most do; another begins at once."""

    dog: Watchdog[Any]

    def expire(self) -> None:
        super().expire()
        self.dog.end(self)
        self.dog.begin(Item(self._number + 10, self._clock, self._events))


def test_what_begins_while_another_is_cancelled_is_watched() -> None:
    clock = Clock()
    events: list[Event] = []
    with clock_set_to(clock):
        dog: Watchdog[Item] = Watchdog(10)
        item = Ending(0, clock, events)
        item.dog = dog
        dog.begin(item)
        clock.pump([1] * 30)
        dog.stop()
    assert events == [(10, 0, "expired"), (20, 10, "expired"), (25, 10, "given up")]
