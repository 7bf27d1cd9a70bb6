"""The slots of the item stage: a bound across the crawl that items cannot starve under."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred

from ._engine import granted
from ._runtime import Timer, now

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

QUIET = 10.0
"""Seconds without an end after which an item that waits for another one may be let in."""

VERY_QUIET = 60.0
"""The same if no item has asked for a page: then the items may simply be slow."""


class Slots:
    """At most *bound* items at once (0: any number); the others wait in the order they came in.

    Items that wait for items which wait for a slot would starve them. So one more is let in when
    nothing has ended for :data:`QUIET` seconds and *is_asking* says that an item in the stage has
    asked for a page, or when nothing has ended for :data:`VERY_QUIET` seconds and *is_idle* says
    that nothing is being downloaded. *on_overdrawn* is called for each.
    """

    def __init__(
        self,
        bound: int,
        is_asking: Callable[[], bool],
        is_idle: Callable[[], bool],
        on_overdrawn: Callable[[], object],
    ) -> None:
        self._bound = bound
        self._is_asking = is_asking
        self._is_idle = is_idle
        self._on_overdrawn = on_overdrawn
        self._waiting: deque[Deferred[None]] = deque()
        self._last_end = 0.0
        self._timer: Timer | None = None
        self._giving: Timer | None = None
        self.taken = 0

    def take(self) -> bool:
        """Take a slot if one is free, and return whether one was."""
        if self._bound and (self.taken >= self._bound or self._waiting):
            return False
        self.taken += 1
        return True

    async def wait(self) -> None:
        """Wait until a slot is free, and take it."""
        if self.take():  # one has been given back since
            return
        turn: Deferred[None] = Deferred(self._waiting.remove)
        if not self._waiting:
            self._last_end = now()
        self._waiting.append(turn)
        if self._timer is None:
            self._look_after(QUIET)
        await granted(turn, self.release)

    def release(self) -> None:
        """Give a slot back."""
        self.taken -= 1
        if self._waiting:
            self._last_end = now()
            if self._giving is None:
                # On a turn of its own: the next item begins, and may end, before this returns.
                self._giving = Timer(0, self._give)

    def _give(self) -> None:
        self._giving = None
        while self._waiting and self.taken < self._bound:
            self._let_in()

    def _let_in(self) -> None:
        self.taken += 1
        self._waiting.popleft().callback(None)

    def _look_after(self, seconds: float) -> None:
        self._timer = Timer(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        quiet = now() - self._last_end
        if quiet < QUIET:
            self._look_after(QUIET - quiet)
            return
        if self._is_asking() or (quiet >= VERY_QUIET and self._is_idle()):
            self._on_overdrawn()
            self._let_in()
        self._look_after(QUIET)

    def close(self) -> None:
        """Let nobody in any more."""
        for timer in (self._timer, self._giving):
            if timer is not None:
                timer.cancel()
