"""A token bucket, for calls per second."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred

from ._runtime import Timer, now


class TokenBucket:
    """*per_second* tokens a second, at most one second's worth kept, handed out in order."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second)
        self._tokens = self._most
        self._filled = now()
        self._waiting: deque[Deferred[None]] = deque()
        self._timer: Timer | None = None

    def take(self) -> bool:
        """Take a token, if there is one and nobody waits for it."""
        self._fill()
        if self._waiting or self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def wait(self) -> Deferred[None]:
        """Give a Deferred that fires with a token taken; cancelled, it leaves the queue."""
        waiting: Deferred[None] = Deferred(self._leave)
        self._waiting.append(waiting)
        self._set_timer()
        return waiting

    def give_back(self) -> None:
        """Put a token back that was not used."""
        self._fill()
        self._tokens = min(self._most, self._tokens + 1)
        self._hand_out()

    def _fill(self) -> None:
        time = now()
        self._tokens = min(self._most, self._tokens + (time - self._filled) * self._per_second)
        self._filled = time

    def _leave(self, waiting: Deferred[None]) -> None:
        self._waiting.remove(waiting)
        self._set_timer()

    def _set_timer(self) -> None:
        """Have a timer while somebody waits, and none else."""
        if self._timer is not None and not self._waiting:
            self._timer.cancel()
            self._timer = None
        elif self._timer is None and self._waiting:
            self._timer = Timer(max(0.0, 1 - self._tokens) / self._per_second, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._fill()
        # The timer was set for this token: a rounding error is no reason to wait once more.
        self._tokens = max(self._tokens, 1 - 1e-9)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._tokens >= 1 - 1e-9:
            self._tokens -= 1
            self._waiting.popleft().callback(None)
        self._set_timer()
