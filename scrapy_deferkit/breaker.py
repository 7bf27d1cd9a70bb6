"""A circuit breaker over the failure rate of a processor."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from scrapy.exceptions import DropItem

from ._runtime import now
from ._stack import PASSING, Policy, check_function, is_number_above_zero
from .exceptions import CircuitOpen, StackConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_CLOSED, _OPEN, _HALF_OPEN = "closed", "open", "half open"
_MOST_KEYS = 1000


class CircuitBreaker(Policy):
    """Stop calling *processor* for a while when too many of its calls fail.

    *Closed*, it counts failures over the last *window* calls; once there are *min_calls* and the
    share of failures reaches *failure_rate*, it *opens*: for *open_for* seconds items fail at
    once with ``CircuitOpen``. Then it is *half open*: one item goes through as a probe while the
    others still fail, and decides whether it closes or opens again. ``DropItem`` is a success;
    ``CloseSpider`` and cancellation count as neither.

    ``key(item)`` keeps one breaker per key, a domain, say; the least recently used go beyond
    1,000. State changes are logged and counted: ``opened``, ``half_opened``, ``closed``; items
    that are not let through: ``rejected``.

    After M. Nygard, "Release It!", 2007; the rate over a window is resilience4j's.
    """

    def __init__(
        self,
        processor: Any,
        failure_rate: float = 0.5,
        window: int = 50,
        min_calls: int = 20,
        open_for: float = 30.0,
        key: Callable[[Any], Any] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        if not is_number_above_zero(failure_rate) or failure_rate > 1:
            raise StackConfigError(
                f"CircuitBreaker(failure_rate={failure_rate!r}): failure_rate is a share above 0 "
                "and up to 1"
            )
        for argument, value in (("window", window), ("min_calls", min_calls)):
            if type(value) is not int or value < 1:
                raise StackConfigError(
                    f"CircuitBreaker({argument}={value!r}): {argument} is a number of calls, 1 or "
                    "more"
                )
        if min_calls > window:
            raise StackConfigError(
                f"CircuitBreaker(window={window}, min_calls={min_calls}): a window of {window} "
                f"calls never holds {min_calls}, and the breaker would never open"
            )
        if not is_number_above_zero(open_for):
            raise StackConfigError(
                f"CircuitBreaker(open_for={open_for!r}): open_for is a time in seconds above 0"
            )
        if key is not None:
            check_function(key, "CircuitBreaker: key", "key= is a function of the item, or None")
        self._failure_rate = failure_rate
        self._window = window
        self._min_calls = min_calls
        self._open_for = open_for
        self._key = key
        super().__init__([processor], name)

    def _begin(self) -> None:
        self._only = _Circuit(self._window)
        self._circuits: OrderedDict[Any, _Circuit] = OrderedDict()

    async def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._require_ready()
        if self._key is None:
            key, circuit = None, self._only
        else:
            key, circuit = self._own("key", self._circuit_of, item)
        if circuit.state is not _CLOSED:
            self._let_probe_through(circuit, key)
        turn = circuit.turn
        try:
            result = await self._run(item, *args, **kwargs)
        except DropItem:
            self._note(circuit, key, turn, failed=False)
            raise
        except PASSING:
            circuit.abandon(turn)
            raise
        except Exception:
            self._note(circuit, key, turn, failed=True)
            raise
        except BaseException:
            circuit.abandon(turn)
            raise
        self._note(circuit, key, turn, failed=False)
        return result

    def _circuit_of(self, item: Any) -> tuple[Any, _Circuit]:
        assert self._key is not None
        key = self._key(item)
        circuit = self._circuits.get(key)
        if circuit is None:
            circuit = self._circuits[key] = _Circuit(self._window)
            if len(self._circuits) > _MOST_KEYS:
                self._circuits.popitem(last=False)
        else:
            self._circuits.move_to_end(key)
        return key, circuit

    def _let_probe_through(self, circuit: _Circuit, key: Any) -> None:
        left = circuit.opened + self._open_for - now()
        if circuit.state is _OPEN and left <= 0:
            self._change(circuit, key, _HALF_OPEN)
        if circuit.state is _OPEN or circuit.is_probing:
            self._count("rejected")
            wait = left if circuit.state is _OPEN else None
            raise CircuitOpen(f"{self.path}/{self._step.name}", key, wait)
        circuit.is_probing = True

    def _note(self, circuit: _Circuit, key: Any, turn: int, *, failed: bool) -> None:
        """Count a call that ended, unless the state has changed since it began."""
        if turn != circuit.turn:
            return
        if circuit.state is _HALF_OPEN:
            self._change(circuit, key, _OPEN if failed else _CLOSED)
            return
        circuit.add(failed)
        calls = len(circuit.calls)
        if calls >= self._min_calls and circuit.failures / calls >= self._failure_rate:
            self._change(circuit, key, _OPEN)

    def _change(self, circuit: _Circuit, key: Any, state: str) -> None:
        failures, calls = circuit.failures, len(circuit.calls)
        was_closed = circuit.state is _CLOSED
        circuit.change(state)
        which = "" if key is None else f" for {key!r}"
        if state is _OPEN:
            why = f"{failures} of {calls} calls failed" if was_closed else "the probe failed"
            message = f"{why}; open for {self._open_for:g} s"
        else:
            message = state
        self._count({_OPEN: "opened", _HALF_OPEN: "half_opened", _CLOSED: "closed"}[state])
        self._log(
            logging.WARNING if state is _OPEN else logging.INFO,
            "circuit breaker%s: %s",
            which,
            message,
        )


class _Circuit:
    """The state of one breaker, and its last calls."""

    def __init__(self, window: int) -> None:
        self.state = _CLOSED
        self.calls: deque[bool] = deque(maxlen=window)
        self.failures = 0
        self.opened = 0.0
        self.is_probing = False
        self.turn = 0

    def add(self, failed: bool) -> None:
        """Add a call to the window, which may push the oldest out."""
        if len(self.calls) == self.calls.maxlen:
            self.failures -= self.calls[0]
        self.calls.append(failed)
        self.failures += failed

    def change(self, state: str) -> None:
        """Begin *state*: calls that began before it count no more."""
        self.state = state
        self.turn += 1
        self.is_probing = False
        self.calls.clear()
        self.failures = 0
        if state is _OPEN:
            self.opened = now()

    def abandon(self, turn: int) -> None:
        """Forget a call that came to no end of its own; another may be the probe."""
        if turn == self.turn:
            self.is_probing = False
