"""Which step an item waits in is known, wherever in stacks and policies that is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from scrapy_deferkit import (
    Chain,
    CircuitBreaker,
    Each,
    Fallback,
    Limit,
    Parallel,
    Retry,
    Route,
    Tap,
    Timeout,
    Tolerant,
)
from scrapy_deferkit._engine import Waits, waiting_in, watch_waits
from scrapy_deferkit._runtime import CANCELLED, clock_set_to, to_awaitable, to_deferred, turn
from scrapy_deferkit.testing import mock_crawler

from ..steps import Broken, Held, until, wait


def coroutine_of(held: Held) -> Callable[..., Any]:
    async def fetch(item: Any, *args: Any) -> Any:
        return await to_awaitable(held(item))

    return fetch


def deferred_of(held: Held) -> Callable[..., Any]:
    def fetch(item: Any, *args: Any) -> Any:
        return held(item)

    return fetch


def fail_at_once(item: Any) -> Any:
    raise Broken


WRAPPERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "Chain": (Chain, "shop/Chain/fetch"),
    "Tolerant": (Tolerant, "shop/Tolerant/fetch"),
    "errback": (
        lambda fetch: Tolerant((fail_at_once, lambda _, item: fetch(item))),
        "shop/Tolerant/lambda",
    ),
    "Parallel": (lambda fetch: Parallel(len, fetch), "shop/Parallel/fetch"),
    "Each": (lambda fetch: Each("n", fetch), "shop/Each/fetch"),
    "errback of Each": (
        lambda fetch: Each("n", fail_at_once, on_error=lambda _, item: fetch(item)),
        "shop/Each/lambda",
    ),
    "Route": (lambda fetch: Route({dict: fetch}), "shop/Route/fetch"),
    "Retry": (lambda fetch: Retry(fetch, on=OSError), "shop/Retry/fetch"),
    "Timeout": (lambda fetch: Timeout(fetch, 5), "shop/Timeout/fetch"),
    "Fallback": (lambda fetch: Fallback(fail_at_once, fetch), "shop/Fallback/fetch"),
    "Limit": (lambda fetch: Limit(fetch, concurrency=1), "shop/Limit/fetch"),
    "CircuitBreaker": (CircuitBreaker, "shop/CircuitBreaker/fetch"),
    "Tap": (Tap, "shop/Tap/fetch"),
    "nested": (
        lambda fetch: Timeout(Parallel(Each("n", Chain(str, Retry(Tap(fetch), on=OSError)))), 5),
        "shop/Timeout/Parallel/Each/Chain/Retry/Tap/fetch",
    ),
}


def begin(stack: Any, item: Any) -> tuple[Waits, Deferred[Any]]:
    """Process *item* beside what runs; give the steps that it waits in, and its end."""
    waits: Waits = {}
    before = watch_waits(waits)
    ended = to_deferred(stack(item))
    watch_waits(before)
    return waits, ended


@pytest.mark.parametrize("kind", [coroutine_of, deferred_of])
@pytest.mark.parametrize("name", WRAPPERS)
async def test_the_innermost_step_is_known_while_it_waits(name: str, kind: Any) -> None:
    wrap, path = WRAPPERS[name]
    held = Held()
    stack = Chain(wrap(kind(held)), name="shop").bind(mock_crawler())
    waits, ended = begin(stack, {"n": [1]})
    await until(lambda: held.waiting)
    assert waiting_in(waits) == path
    held.release()
    await wait(ended.addErrback(lambda _: None))
    assert (waits, waiting_in(waits)) == ({}, None)


@pytest.mark.parametrize("name", WRAPPERS)
async def test_a_step_that_is_cancelled_waits_no_more(name: str) -> None:
    wrap, _ = WRAPPERS[name]
    held = Held()
    stack = Chain(wrap(coroutine_of(held)), name="shop").bind(mock_crawler())
    waits, ended = begin(stack, {"n": [1]})
    await until(lambda: held.waiting)
    ended.addErrback(lambda _: None)
    ended.cancel()
    await until(lambda: not waits)


async def test_several_branches_are_named_together() -> None:
    one, other = Held("one"), Held("other")
    stack = Chain(Parallel(one, Each("n", other)), name="shop").bind(mock_crawler())
    waits, ended = begin(stack, {"n": [1, 2]})
    await until(lambda: len(other.waiting) == 2)
    assert waiting_in(waits) == "shop/Parallel/one, shop/Parallel/Each/other"
    one.release()
    other.release()
    await turn()
    await turn()
    assert waiting_in(waits) == "shop/Parallel/Each/other"
    other.release(result=2)
    await wait(ended)


async def test_items_beside_each_other_are_told_apart() -> None:
    one, other = Held("one"), Held("other")
    stack = Chain(Route({dict: one, list: other}), name="shop").bind(mock_crawler())
    begun = [begin(stack, item) for item in ({}, [])]
    await until(lambda: one.waiting and other.waiting)
    assert [waiting_in(waits) for waits, _ in begun] == ["shop/Route/one", "shop/Route/other"]
    one.release()
    other.release()
    for _, ended in begun:
        await wait(ended)


async def test_what_a_timeout_has_given_up_is_waited_for_no_more() -> None:
    released: Deferred[None] = Deferred()
    held = Held("after")

    async def heed_nothing(item: Any) -> Any:
        with suppress(*CANCELLED):
            await to_awaitable(Deferred())
        await to_awaitable(released)
        return item

    clock = Clock()
    with clock_set_to(clock):
        stack = Chain(Fallback(Timeout(Chain(heed_nothing), 5), held), name="shop")
        waits, ended = begin(stack.bind(mock_crawler()), {})
        path = "shop/Fallback/Timeout/Chain/heed_nothing"
        await until(lambda: waiting_in(waits) == path)
        clock.advance(5)
        await turn()
        clock.advance(1)
        await until(lambda: held.waiting)
        assert waiting_in(waits) == "shop/Fallback/after"
        released.callback(None)
        held.release()
        await wait(ended)
        for _ in range(5):
            await turn()
