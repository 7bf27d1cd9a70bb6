"""Processors for tests: of every style, failing ones, and ones that wait to be released."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from scrapy.exceptions import DropItem
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from scrapy_deferkit._runtime import to_awaitable, turn


class Broken(Exception):
    """What a failing step raises."""


def _act(item: dict[str, Any], number: int, outcome: str) -> dict[str, Any]:
    """Change the item, and then come to the end that *outcome* names."""
    item["seen"].append(number)
    if outcome == "fail":
        raise Broken(number)
    if outcome == "drop":
        raise DropItem(str(number))
    return item


def make_step(number: int, style: str, outcome: str = "pass") -> Callable[..., Any]:
    """Make a processor that notes its *number* in ``item["seen"]`` and ends as *outcome* says."""

    def plain(item: Any) -> Any:
        return _act(item, number, outcome)

    async def coroutine(item: Any) -> Any:
        return _act(item, number, outcome)

    async def suspended(item: Any) -> Any:
        await turn()
        return _act(item, number, outcome)

    def fired(item: Any) -> Any:
        try:
            return succeed(_act(item, number, outcome))
        except Exception:
            return fail(Failure())

    def returned_failure(item: Any) -> Any:
        try:
            return _act(item, number, outcome)
        except Exception:
            return Failure()

    step: Callable[..., Any] = {
        "plain": plain,
        "coroutine": coroutine,
        "suspended": suspended,
        "fired": fired,
        "failure": returned_failure,
    }[style]
    step.__name__ = f"step{number}"
    return step


styles = st.sampled_from(["plain", "coroutine", "suspended", "fired", "failure"])


class Held:
    """A processor whose items wait until the test releases them, and which sees cancellation."""

    def __init__(self, name: str = "held") -> None:
        self.__name__ = name
        self.waiting: list[tuple[Any, Deferred[Any]]] = []
        self.cancelled: list[Any] = []

    def __call__(self, item: Any, *args: Any) -> Deferred[Any]:
        deferred: Deferred[Any] = Deferred(lambda _: self.cancelled.append(item))
        self.waiting.append((item, deferred))
        return deferred

    def release(self, position: int = 0, result: Any = None) -> None:
        """Let the item at *position* go on, as *result* or as it came."""
        item, deferred = self.waiting.pop(position)
        deferred.callback(item if result is None else result)


async def until(condition: Callable[[], object], turns: int = 100) -> None:
    """Let the loop turn until *condition* holds; give up, with an error, after *turns*."""
    for _ in range(turns):
        if condition():
            return
        await turn()
    raise AssertionError(f"not reached in {turns} turns of the loop: {condition}")


async def wait(deferred: Deferred[Any]) -> Any:
    """Wait for *deferred* on this runtime."""
    return await to_awaitable(deferred)
