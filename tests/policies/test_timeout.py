"""A Timeout cancels what takes too long, and fails the item whatever that then does."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from scrapy.http import Response
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from scrapy_deferkit import Chain, NoItemReturned, StackConfigError, StepTimeout, Timeout, step_of
from scrapy_deferkit._runtime import to_deferred, turn
from scrapy_deferkit.testing import mock_crawler

from ..steps import Broken, Held, until, wait


async def test_what_ends_in_time_is_as_if_there_were_no_timeout(clock: Clock) -> None:
    held = Held()
    item = to_deferred(Timeout(held, 5)({"a": 1}))
    await until(clock.getDelayedCalls)
    clock.advance(4.9)
    held.release()
    assert await wait(item) == {"a": 1}


@pytest.mark.no_runtime
def test_what_does_not_wait_sets_no_timer(clock: Clock) -> None:
    with pytest.raises(StopIteration) as end:
        Timeout(lambda item: item, 5)("item").send(None)
    assert end.value.value == "item"


@pytest.mark.parametrize("style", ["Deferred", "coroutine"])
async def test_what_takes_too_long_is_cancelled_and_fails_with_step_and_seconds(
    clock: Clock, style: str
) -> None:
    held = Held("fetch")

    async def fetch(item: Any) -> Any:
        return await wait(held(item))

    crawler = mock_crawler()
    stack = Chain(Timeout(fetch if style == "coroutine" else held, 5), name="shop").bind(crawler)
    item = to_deferred(stack({}))
    await until(lambda: held.waiting)
    await until(clock.getDelayedCalls)
    clock.advance(5)
    with pytest.raises(StepTimeout, match=r"shop/Timeout/fetch did not end within 5 s") as caught:
        await wait(item)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.step, caught.value.seconds) == ("shop/Timeout/fetch", 5)
    assert step_of(caught.value) == "shop/Timeout/fetch"
    assert held.cancelled == [{}]
    assert crawler.stats.get_value("deferkit/shop/Timeout/timed_out") == 1


async def test_it_waits_a_grace_for_the_cancellation_to_finish(clock: Clock) -> None:
    cleaned: Deferred[None] = Deferred()
    log = []

    async def cleans_up(item: Any) -> Any:
        try:
            await wait(Deferred())
        finally:
            await wait(cleaned)
            log.append("cleaned up")

    item = to_deferred(Timeout(cleans_up, 5, grace=3)({}))
    ended: list[Any] = []
    item.addBoth(ended.append)
    await until(clock.getDelayedCalls)
    clock.advance(5)
    await turn()
    clock.advance(2)
    for _ in range(5):
        await turn()
    assert not ended
    cleaned.callback(None)
    await until(lambda: ended)
    assert log == ["cleaned up"]
    assert ended[0].check(StepTimeout)


async def test_what_would_not_die_is_left_behind_and_named(clock: Clock, caplog: Any) -> None:
    stubborn: Deferred[Any] = Deferred(lambda _: None)
    work: Deferred[Any] = Deferred()

    async def ignore_cancellation(item: Any, response: Any) -> Any:
        while True:
            try:
                return await wait(work)
            except (CancelledError, asyncio.CancelledError):
                await wait(stubborn)

    crawler = mock_crawler()
    stack = Timeout(ignore_cancellation, 5, grace=2, name="shop").bind(crawler)
    item = to_deferred(stack({}, Response("data:,")))
    await until(clock.getDelayedCalls)
    clock.advance(5)
    for _ in range(5):
        await turn()
    with caplog.at_level(logging.ERROR):
        clock.advance(2)
        with pytest.raises(StepTimeout):
            await wait(item)
    assert "shop: ignore_cancellation was cancelled after 5 s and has not ended 2 s" in caplog.text
    assert "later, with the item of data:,; its result is ignored" in caplog.text
    assert crawler.stats.get_value("deferkit/shop/stuck") == 1
    stubborn.errback(Broken("nobody hears this"))
    for _ in range(5):
        await turn()


@pytest.mark.parametrize("answer", ["too late", Failure(Broken())])
async def test_what_the_cancelled_step_then_gives_does_not_matter(
    clock: Clock, answer: Any
) -> None:
    item = to_deferred(Timeout(lambda item: Deferred(lambda d: d.callback(answer)), 5)({}))
    await until(clock.getDelayedCalls)
    clock.advance(5)
    with pytest.raises(StepTimeout):
        await wait(item)


async def test_cancelling_the_item_cancels_the_work_and_the_timer(clock: Clock) -> None:
    held = Held()
    item = to_deferred(Timeout(held, 5)({}))
    await until(lambda: held.waiting)
    item.cancel()
    with pytest.raises((CancelledError, asyncio.CancelledError)):
        await wait(item)
    await until(lambda: held.cancelled)
    assert not clock.getDelayedCalls()


async def test_failures_and_missing_items_come_out_as_they_are(clock: Clock) -> None:
    def fail(item: Any) -> Any:
        raise Broken

    async def fail_later(item: Any) -> Any:
        await turn()
        raise Broken

    async def forget(item: Any) -> None:
        await turn()

    for failing in (fail, fail_later, lambda item: Failure(Broken())):
        with pytest.raises(Broken) as caught:
            await Timeout(failing, 5, name="t")({})
        assert step_of(caught.value).startswith("t/")
    for forgetting in (forget, lambda item: None):
        with pytest.raises(NoItemReturned, match="t/.* returned None"):
            await Timeout(forgetting, 5, name="t")({})


@pytest.mark.no_runtime
@pytest.mark.parametrize("seconds", [0, -1, True, "5", None, float("nan"), float("inf")])
@pytest.mark.parametrize("argument", ["seconds", "grace"])
def test_wrong_arguments_fail_when_it_is_built(argument: str, seconds: Any) -> None:
    with pytest.raises(StackConfigError, match=f"{argument}=.+a number above 0"):
        Timeout(len, **{"seconds": 5, argument: seconds})
