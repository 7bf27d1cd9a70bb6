"""A CircuitBreaker opens on too many failures, and finds its way back."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scrapy.exceptions import CloseSpider, DropItem
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from scrapy_deferkit import CircuitBreaker, CircuitOpen, Retry, StackConfigError, step_of
from scrapy_deferkit._runtime import clock_set_to, to_deferred
from scrapy_deferkit.testing import mock_crawler

from ..steps import Broken, Held, until, wait


def answer(item: Any) -> Any:
    """End as the item says."""
    if isinstance(item, Exception):
        raise item
    return item


class Model:
    """A breaker written down as plainly as it goes: the last calls, and when it opened."""

    def __init__(self, rate: float, window: int, min_calls: int, open_for: float) -> None:
        self.rate, self.window, self.min_calls, self.open_for = rate, window, min_calls, open_for
        self.calls: list[bool] = []
        self.opened_at: float | None = None

    def call(self, fails: bool, now: float) -> str:
        if self.opened_at is not None:
            if now < self.opened_at + self.open_for:
                return "rejected"
            # The probe: its end alone decides.
            self.opened_at = now if fails else None
            self.calls = []
            return "failed" if fails else "passed"
        self.calls = [*self.calls, fails][-self.window :]
        if len(self.calls) >= self.min_calls and sum(self.calls) / len(self.calls) >= self.rate:
            self.opened_at, self.calls = now, []
        return "failed" if fails else "passed"


events = st.lists(
    st.sampled_from(["pass", "drop", "fail", "fail"]) | st.sampled_from([1.0, 4.0, 5.0, 9.0]),
    max_size=60,
)


@given(events, st.sampled_from([0.25, 0.5, 1.0]), st.integers(1, 6), st.integers(1, 6))
async def test_it_does_as_the_model(
    events: list[Any], rate: float, window: int, min_calls: int
) -> None:
    min_calls = min(min_calls, window)
    clock, model = Clock(), Model(rate, window, min_calls, 5)
    with clock_set_to(clock):
        stack = CircuitBreaker(answer, rate, window, min_calls, open_for=5)
        for event in events:
            if isinstance(event, float):
                clock.advance(event)
                continue
            item = {"pass": {}, "drop": DropItem("no"), "fail": Broken()}[event]
            try:
                await stack(item)
                outcome = "passed"
            except DropItem:
                outcome = "passed"
            except Broken:
                outcome = "failed"
            except CircuitOpen:
                outcome = "rejected"
            assert outcome == model.call(event == "fail", clock.seconds())


async def opened(clock: Clock, **arguments: Any) -> Any:
    """Give a breaker over a held processor that has just opened, with its crawler."""
    crawler = mock_crawler()
    held = Held("fetch")
    stack = CircuitBreaker(held, 0.5, 4, 2, open_for=30, name="shop", **arguments).bind(crawler)
    for _ in range(2):
        item = to_deferred(stack({}))
        await until(lambda: held.waiting)
        held.waiting.pop()[1].errback(Broken())
        with pytest.raises(Broken):
            await wait(item)
    return stack, held, crawler


async def test_an_open_breaker_fails_items_at_once_and_says_when_to_try_again(
    clock: Clock,
) -> None:
    stack, held, crawler = await opened(clock)
    clock.advance(10)
    with pytest.raises(CircuitOpen, match=r"breaker of shop/fetch is open; next try in 20 s") as it:
        await stack({})
    assert (it.value.step, it.value.key, it.value.retry_after) == ("shop/fetch", None, 20)
    assert not held.waiting
    assert crawler.stats.get_value("deferkit/shop/opened") == 1
    assert crawler.stats.get_value("deferkit/shop/rejected") == 1


@pytest.mark.parametrize("outcome", ["success", "failure", "cancelled", "CloseSpider"])
async def test_half_open_lets_one_probe_through_and_its_end_decides(
    clock: Clock, outcome: str
) -> None:
    stack, held, crawler = await opened(clock)
    clock.advance(30)
    probe = to_deferred(stack({"probe": 1}))
    await until(lambda: held.waiting)
    with pytest.raises(CircuitOpen):
        await stack({})
    if outcome == "cancelled":
        probe.cancel()
        with pytest.raises((CancelledError, asyncio.CancelledError)):
            await wait(probe)
        held.waiting.clear()
    elif outcome == "success":
        held.release()
        await wait(probe)
    else:
        ending = Broken() if outcome == "failure" else CloseSpider("full")
        held.waiting.pop()[1].errback(ending)
        with pytest.raises(type(ending)):
            await wait(probe)
    counts = {
        name: crawler.stats.get_value(f"deferkit/shop/{name}")
        for name in ("half_opened", "closed", "opened")
    }
    if outcome == "failure":
        with pytest.raises(CircuitOpen):
            await stack({})
        assert counts == {"half_opened": 1, "closed": None, "opened": 2}
        return
    following = to_deferred(stack({"next": 1}))
    await until(lambda: held.waiting)
    held.release()
    assert await wait(following) == {"next": 1}
    closed = 1 if outcome == "success" else None
    assert counts == {"half_opened": 1, "closed": closed, "opened": 1}


async def test_calls_that_began_before_it_opened_do_not_count_afterwards(clock: Clock) -> None:
    held = Held()
    stack = CircuitBreaker(held, 0.5, 4, 2, open_for=30)
    late, *early = [to_deferred(stack({})) for _ in range(3)]
    await until(lambda: len(held.waiting) == 3)
    for item in early:
        held.waiting.pop(1)[1].errback(Broken())
        with pytest.raises(Broken):
            await wait(item)
    clock.advance(30)
    probe = to_deferred(stack({}))
    await until(lambda: len(held.waiting) == 2)
    held.waiting.pop(0)[1].errback(Broken())
    with pytest.raises(Broken):
        await wait(late)
    held.release()
    await wait(probe)
    following = to_deferred(stack({}))
    await until(lambda: held.waiting)
    held.release()
    await wait(following)


async def test_there_is_one_breaker_per_key(clock: Clock) -> None:
    def fail_at(item: Any) -> Any:
        if item["host"] == "bad":
            raise Broken
        return item

    stack = CircuitBreaker(fail_at, 0.5, 4, 2, key=lambda item: item["host"])
    for _ in range(2):
        with pytest.raises(Broken):
            await stack({"host": "bad"})
    with pytest.raises(CircuitOpen, match="open for 'bad'"):
        await stack({"host": "bad"})
    assert await stack({"host": "good"}) == {"host": "good"}


async def test_the_least_recently_used_of_too_many_keys_goes(
    clock: Clock, monkeypatch: Any
) -> None:
    monkeypatch.setattr("scrapy_deferkit.breaker._MOST_KEYS", 2)
    stack = CircuitBreaker(answer_of, 1.0, 1, 1, key=lambda item: item[0])
    for key in "ab":
        with pytest.raises(Broken):
            await stack((key, Broken()))
    with pytest.raises(CircuitOpen):
        await stack(("a", {}))
    await stack(("c", {}))
    assert await stack(("b", {})) == ("b", {}), "b was used less recently than a, and forgotten"


def answer_of(item: Any) -> Any:
    """End as the second part of the item says."""
    answer(item[1])
    return item


async def test_state_changes_are_logged_once(clock: Clock, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="scrapy_deferkit"):
        stack, held, _ = await opened(clock)
        for _ in range(3):
            with pytest.raises(CircuitOpen):
                await stack({})
        clock.advance(30)
        probe = to_deferred(stack({}))
        await until(lambda: held.waiting)
        held.release()
        await wait(probe)
    messages = [it.getMessage() for it in caplog.records if it.name.startswith("scrapy_deferkit")]
    assert messages == [
        "shop: circuit breaker: 2 of 2 calls failed; open for 30 s",
        "shop: circuit breaker: half open",
        "shop: circuit breaker: closed",
    ]


async def test_a_retry_around_it_waits_until_it_may_be_tried(clock: Clock) -> None:
    stack, held, _ = await opened(clock)
    item = to_deferred(Retry(stack, on=CircuitOpen)({"a": 1}))
    await until(clock.getDelayedCalls)
    clock.advance(30)
    await until(lambda: held.waiting)
    held.release()
    assert await wait(item) == {"a": 1}


async def test_a_failure_has_the_path_of_its_step(clock: Clock) -> None:
    with pytest.raises(Broken) as caught:
        await CircuitBreaker(answer, name="shop")(Broken())
    assert step_of(caught.value) == "shop/answer"


@pytest.mark.no_runtime
def test_a_closed_breaker_costs_no_turn_of_the_loop() -> None:
    with pytest.raises(StopIteration) as end:
        CircuitBreaker(answer)("item").send(None)
    assert end.value.value == "item"


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"failure_rate": 2}, "failure_rate=2.*up to 1"),
        ({"failure_rate": 0}, "failure_rate=0"),
        ({"window": 0}, "window=0.*1 or more"),
        ({"min_calls": 0}, "min_calls=0"),
        ({"min_calls": 2.5}, "min_calls=2.5"),
        ({"window": 5, "min_calls": 6}, "never holds 6"),
        ({"open_for": -1}, "open_for=-1.*seconds"),
        ({"key": "domain"}, "key='domain'.*function of the item"),
    ],
)
def test_wrong_arguments_fail_when_it_is_built(arguments: Any, message: str) -> None:
    with pytest.raises(StackConfigError, match=message):
        CircuitBreaker(len, **arguments)
