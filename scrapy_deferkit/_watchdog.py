"""Items that stay too long in one place: they are warned about, then cancelled."""

from __future__ import annotations

import heapq
import itertools
import logging
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ._runtime import Timer, now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

FIRST_WARNING = 60.0
"""Seconds after which the first warning comes; each next one comes after twice the time."""

GRACE = 5.0
"""Seconds that what was cancelled has to end."""


class Watched(Protocol):
    """What a :class:`Watchdog` watches."""

    def warn(self, seconds: float) -> None:
        """Say that it has been there for *seconds*."""

    def expire(self) -> None:
        """Cancel it: its time is over."""

    def give_up(self) -> None:
        """End it, since it has not ended in its grace after :meth:`expire`."""


_W = TypeVar("_W", bound=Watched)


class Watchdog(Generic[_W]):
    """Warns of what stays, and cancels it after *timeout* seconds (0: never).

    Whatever its number, what is watched shares one timer: the first event of each comes after the
    same time, so a queue holds them in order; the few that live to see it go to a heap.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._first = min(FIRST_WARNING, timeout) if timeout else FIRST_WARNING
        self._young: dict[_W, float] = {}  # in order of their start
        self._old: list[tuple[float, int, _W, Callable[[], None]]] = []
        self._known: dict[_W, float] = {}
        self._numbers = itertools.count()
        self._timer: Timer | None = None
        self._next = float("inf")

    def __iter__(self) -> Iterator[_W]:
        yield from self._young
        yield from self._known

    def begin(self, watched: _W) -> None:
        """Watch *watched* from now on."""
        self._young[watched] = started = now()
        self._look_at(started + self._first, started)

    def end(self, watched: _W) -> None:
        """Watch *watched* no longer."""
        if self._young.pop(watched, None) is None:
            self._known.pop(watched, None)

    def stop(self) -> None:
        """Watch nothing any more."""
        self._young.clear()
        self._known.clear()
        self._old.clear()
        self._look_at(float("inf"), 0.0)

    def _look(self) -> None:
        self._timer, self._next = None, float("-inf")  # what begins meanwhile sets no timer
        time = now()
        while self._young:
            watched, started = next(iter(self._young.items()))
            if started + self._first > time:
                break
            del self._young[watched]
            self._known[watched] = started
            self._plan(watched, self._first)
        while self._old and self._old[0][0] <= time:
            _, _, watched, act = heapq.heappop(self._old)
            if watched in self._known:
                try:
                    act()
                except Exception:  # of a canceller: the others are watched all the same
                    logger.exception("%s could not be ended", watched)
        self._next = float("inf")
        if self._young:
            self._look_at(next(iter(self._young.values())) + self._first, time)
        if self._old:
            self._look_at(self._old[0][0], time)

    def _plan(self, watched: _W, after: float) -> None:
        """Have *watched* warned about, or ended, when it has stayed for *after* seconds."""
        started = self._known[watched]
        if self._timeout and after >= self._timeout:
            self._push(started + self._timeout, watched, lambda: self._expire(watched))
        else:
            self._push(started + after, watched, lambda: self._warn(watched, after))

    def _push(self, at: float, watched: _W, act: Callable[[], None]) -> None:
        heapq.heappush(self._old, (at, next(self._numbers), watched, act))

    def _warn(self, watched: _W, after: float) -> None:
        self._plan(watched, after * 2)
        watched.warn(after)

    def _expire(self, watched: _W) -> None:
        self._push(now() + GRACE, watched, watched.give_up)
        watched.expire()

    def _look_at(self, at: float, time: float) -> None:
        """See to it that :meth:`_look` is called no later than *at*; it is *time* now."""
        if at >= self._next and at != float("inf"):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._next = at
        self._timer = None if at == float("inf") else Timer(max(0.0, at - time), self._look)
