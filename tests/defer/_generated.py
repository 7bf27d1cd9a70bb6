"""Generated stacks of callbacks, and a record of what each run of one did."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import scrapy.utils.defer
from hypothesis import strategies as st
from scrapy.exceptions import ScrapyDeprecationWarning
from scrapy.utils.defer import deferred_from_coro
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from scrapy_deferkit._runtime import is_awaitable, to_awaitable, turn

PLAIN = ["returns", "returns_none", "raises", "raises_base", "returns_failure"]
DEFERRED = ["fired", "fired_with_none", "fired_failed", "later", "later_failed"]
COROUTINE = ["coroutine", "coroutine_raises", "coroutine_waits", "coroutine_waits_raises"]

PENDING = "pending"

in_step = st.sampled_from([*PLAIN, *DEFERRED])
on_a_loop = st.sampled_from([*PLAIN, *DEFERRED, *COROUTINE])
inputs = st.sampled_from(["value", None, "failure"])
arguments = st.lists(st.integers(0, 9), max_size=2).map(tuple)
named = st.dictionaries(st.sampled_from(["depth", "spider"]), st.integers(0, 9))
# Which of the outstanding Deferreds is fired next.
orders = st.lists(st.integers(0, 9), min_size=12, max_size=12)


class Boom(Exception):
    """What callbacks fail with."""


class BaseBoom(BaseException):
    """What callbacks fail with that is no ``Exception``."""


class Run:
    """One run of generated callbacks: their calls in order, and what is outstanding."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.outstanding: dict[str, Callable[[], None]] = {}
        self.cancelled: list[str] = []
        self.failures: dict[str, Failure] = {}

    def input(self, kind: str | None) -> Any:
        return self.failure("input") if kind == "failure" else kind

    def callbacks(self, kinds: list[str], prefix: str = "callback") -> list[Callable[..., Any]]:
        return [self.callback(f"{prefix} {n}: {kind}", kind) for n, kind in enumerate(kinds)]

    def callback(self, name: str, kind: str) -> Callable[..., Any]:
        def call(value: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, self.describe(value), args, kwargs))
            return getattr(self, f"_{kind}")(name)

        return call

    def failure(self, name: str) -> Failure:
        self.failures[name] = Failure(Boom(name))
        return self.failures[name]

    def describe(self, value: Any) -> Any:
        """Give *value* in a form that compares with another run's, Failures with their identity."""
        if isinstance(value, Failure):
            known = [name for name, failure in self.failures.items() if failure is value]
            return ("failure", value.type, str(value.value), known)
        if isinstance(value, (list, tuple)):
            return type(value)(self.describe(element) for element in value)
        return "an iterator" if isinstance(value, (Iterator, AsyncIterator)) else value

    def fire(self, *choices: int) -> None:
        """Fire, of the Deferreds outstanding now, those that are chosen, one after the other."""
        due = sorted(self.outstanding)
        for choice in choices[: len(due)]:
            self.outstanding.pop(due.pop(choice % len(due)))()

    def _returns(self, name: str) -> Any:
        return f"what {name} gave"

    def _returns_none(self, name: str) -> Any:
        return None

    def _raises(self, name: str) -> Any:
        raise Boom(name)

    def _raises_base(self, name: str) -> Any:
        raise BaseBoom(name)

    def _returns_failure(self, name: str) -> Any:
        return self.failure(name)

    def _fired(self, name: str) -> Any:
        return succeed(self._returns(name))

    def _fired_with_none(self, name: str) -> Any:
        return succeed(None)

    def _fired_failed(self, name: str) -> Any:
        return fail(self.failure(name))

    def _wait(self, name: str) -> Deferred[Any]:
        def cancel(deferred: Deferred[Any]) -> None:
            self.cancelled.append(name)
            self.outstanding.pop(name, None)

        return Deferred(cancel)

    def _later(self, name: str) -> Any:
        deferred = self._wait(name)
        self.outstanding[name] = lambda: deferred.callback(self._returns(name))
        return deferred

    def _later_failed(self, name: str) -> Any:
        deferred = self._wait(name)
        self.outstanding[name] = lambda: deferred.errback(self.failure(name))
        return deferred

    def _later_deaf(self, name: str) -> Any:
        def answer(deferred: Deferred[Any]) -> None:
            self.cancelled.append(name)
            self.outstanding.pop(name)()

        deferred: Deferred[Any] = Deferred(answer)
        self.outstanding[name] = lambda: deferred.callback(self._returns(name))
        return deferred

    async def _coroutine(self, name: str) -> Any:
        return self._returns(name)

    async def _coroutine_raises(self, name: str) -> Any:
        raise Boom(name)

    async def _coroutine_waits(self, name: str) -> Any:
        return await to_awaitable(self._later(name))

    async def _coroutine_waits_raises(self, name: str) -> Any:
        await to_awaitable(self._later(name))
        raise Boom(name)

    async def _coroutine_deaf(self, name: str) -> Any:
        try:
            await to_awaitable(self._later(name))
        except BaseException:
            self.cancelled.append(f"{name}, which went on")
        return self._returns(name)


Begin = Callable[[Run], "Deferred[Any]"]


class Observed:
    """A Deferred with its run, seen from outside: what happened, and the outcome so far."""

    def __init__(self, begin: Begin) -> None:
        self.run = Run()
        self.outcomes: list[Any] = []
        self.deferred = begin(self.run)
        self.deferred.addBoth(self.outcomes.append)

    def snapshot(self) -> tuple[Any, ...]:
        outcome = [self.run.describe(each) for each in self.outcomes] or PENDING
        return list(self.run.calls), sorted(self.run.outstanding), outcome

    async def until_quiet(self) -> None:
        """Let the loop run until nothing happens any more."""
        before, quiet_turns = self.snapshot(), 0
        while quiet_turns < 6:
            await turn()
            now = self.snapshot()
            quiet_turns = quiet_turns + 1 if now == before else 0
            before = now


def observe_in_step(begin: Begin, order: list[int]) -> list[tuple[Any, ...]]:
    """Fire Deferreds in *order*, with no loop; tell what was to be seen after each."""
    observed = Observed(begin)
    seen = [observed.snapshot()]
    for choice in order:
        if observed.run.outstanding:
            observed.run.fire(choice)
            seen.append(observed.snapshot())
    return seen


async def observe(begin: Begin, order: list[int]) -> list[tuple[Any, ...]]:
    """Fire Deferreds in *order*, letting the loop run; tell what was to be seen after each."""
    observed = Observed(begin)
    await observed.until_quiet()
    seen = [observed.snapshot()]
    for choice in order:
        if observed.run.outstanding:
            observed.run.fire(choice)
            await observed.until_quiet()
            seen.append(observed.snapshot())
    return seen


def without_identity(seen: Any) -> Any:
    """Leave out which Failure it was: an exception that is raised makes a new one."""
    if isinstance(seen, tuple) and seen[:1] == ("failure",):
        return seen[:3]
    if isinstance(seen, (list, tuple)):
        return type(seen)(without_identity(each) for each in seen)
    return seen


def deferring(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Make *callback* give a Deferred wherever it gives another awaitable."""

    def call(*args: Any, **kwargs: Any) -> Any:
        result = callback(*args, **kwargs)
        is_foreign = is_awaitable(result) and not isinstance(result, Deferred)
        return deferred_from_coro(result) if is_foreign else result

    return call


def scrapys(name: str) -> list[Callable[..., Deferred[Any]]]:
    """Give Scrapy's own function, without its warning, where there still is one."""
    function = getattr(scrapy.utils.defer, name, None)
    if function is None:
        return []

    def call(*args: Any, **kwargs: Any) -> Deferred[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScrapyDeprecationWarning)
            return function(*args, **kwargs)

    call.__name__ = f"scrapys_{name}"
    return [call]
