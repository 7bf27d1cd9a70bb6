"""A Tolerant goes on where an errback says how."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scrapy.exceptions import CloseSpider, DropItem
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from scrapy_deferkit import Chain, NoItemReturned, StackConfigError, Tolerant, step_of
from scrapy_deferkit._runtime import to_deferred
from scrapy_deferkit.testing import run_stack

from ..steps import Broken, Held, make_step, styles, until, wait


def recover(failure: Failure, item: Any) -> Any:
    item["seen"].append("recovered")
    return item


@given(st.lists(styles, max_size=5), st.data())
async def test_without_failures_it_is_a_chain(kinds: list[str], data: Any) -> None:
    steps = [make_step(number, style) for number, style in enumerate(kinds)]
    pairs = [(step, recover) if data.draw(st.booleans()) else step for step in steps]
    assert await Tolerant(*pairs)({"seen": []}) == await Chain(*steps)({"seen": []})


@given(st.lists(st.tuples(styles, st.booleans(), st.booleans()), max_size=5))
async def test_an_errback_gets_the_item_as_it_was_before_the_step_that_failed(kinds: Any) -> None:
    # The law, in plain code: a failure looks for the next errback, its own first; that one gets
    # the item from before the failed step and takes the place of its own processor.
    expected: Any = {"seen": []}
    failed = None
    steps: list[Any] = []
    for number, (style, fails, is_guarded) in enumerate(kinds):
        step = make_step(number, style, "fail" if fails else "pass")
        steps.append((step, recover) if is_guarded else step)
        if failed is None and fails:
            failed = number
        elif failed is None:
            expected = {"seen": [*expected["seen"], number]}
        if failed is not None and is_guarded:
            failed, expected = None, {"seen": [*expected["seen"], "recovered"]}
    run = await run_stack(Tolerant(*steps, name="shop"), [{"seen": []}])
    if failed is None:
        assert run.scraped == [expected]
    else:
        assert [(it.step, it.item) for it in run.failed] == [(f"shop/step{failed}", {"seen": []})]


async def test_an_errback_that_handles_an_earlier_failure_replaces_its_own_processor() -> None:
    stack = Tolerant(
        make_step(1, "plain", "fail"), (make_step(2, "plain"), recover), make_step(3, "plain")
    )
    assert await stack({"seen": []}) == {"seen": ["recovered", 3]}


async def test_each_errback_gets_a_fresh_copy() -> None:
    given_items = []

    def spoil(failure: Failure, item: Any) -> Any:
        given_items.append(item)
        item["seen"].append("spoilt")
        raise Broken("again")

    stack = Tolerant((make_step(1, "plain", "fail"), spoil), (make_step(2, "plain"), recover))
    assert await stack({"seen": []}) == {"seen": ["recovered"]}
    assert given_items == [{"seen": ["spoilt"]}]


async def test_an_errback_gets_the_failure_the_item_and_the_extra_arguments() -> None:
    def note(failure: Failure, item: Any, *args: Any, **kwargs: Any) -> Any:
        return (type(failure.value), item, args, kwargs)

    def break_it(item: Any, *args: Any, **kwargs: Any) -> Any:
        raise Broken

    result = await Tolerant((break_it, note))({"a": 1}, "response", depth=2)
    assert result == (Broken, {"a": 1}, ("response",), {"depth": 2})


async def test_a_coroutine_can_be_an_errback() -> None:
    async def later(failure: Failure, item: Any) -> Any:
        return recover(failure, item)

    stack = Tolerant((make_step(1, "suspended", "fail"), later))
    assert await stack({"seen": []}) == {"seen": ["recovered"]}


async def test_on_narrows_what_is_handled() -> None:
    stack = Tolerant((make_step(1, "plain", "fail"), recover), on=(ValueError, KeyError))
    with pytest.raises(Broken):
        await stack({"seen": []})
    stack = Tolerant((make_step(1, "plain", "fail"), recover), on=Broken)
    assert await stack({"seen": []}) == {"seen": ["recovered"]}


@pytest.mark.parametrize(
    "ending", [DropItem("no"), CloseSpider("full"), CancelledError(), asyncio.CancelledError()]
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_control_flow_and_cancellation_see_no_errback(
    ending: BaseException, is_async: bool
) -> None:
    def end(item: Any) -> Any:
        raise ending

    async def end_async(item: Any) -> Any:
        raise ending

    errbacks: list[Any] = []
    stack = Tolerant((end_async if is_async else end, lambda f, i: errbacks.append(f)))
    with pytest.raises(type(ending)):
        await stack({})
    assert not errbacks


async def test_cancelling_the_item_runs_no_errback_and_no_further_step() -> None:
    held = Held()
    seen: list[str] = []
    stack = Tolerant((held, lambda f, i: seen.append("errback")), lambda i: seen.append("next"))
    item = to_deferred(stack({}))
    await until(lambda: held.waiting)
    item.cancel()
    with pytest.raises((CancelledError, asyncio.CancelledError)):
        await wait(item)
    assert held.cancelled == [{}]
    assert not seen


async def test_an_errback_that_returns_nothing_is_named() -> None:
    def forget(failure: Failure, item: Any) -> None:
        pass

    with pytest.raises(NoItemReturned, match="shop/forget returned None"):
        await Tolerant((make_step(1, "plain", "fail"), forget), name="shop")({"seen": []})


async def test_returning_nothing_is_a_failure_that_an_errback_may_handle() -> None:
    stack = Tolerant((lambda item: None, lambda failure, item: type(failure.value)))
    assert await stack({}) is NoItemReturned


async def test_a_failure_raised_again_stays_where_it_rose() -> None:
    def pass_on(failure: Failure, item: Any) -> Any:
        failure.raiseException()

    def other(failure: Failure, item: Any) -> Any:
        raise Broken("of the errback")

    with pytest.raises(Broken) as caught:
        await Tolerant((make_step(1, "plain", "fail"), pass_on), name="shop")({"seen": []})
    assert step_of(caught.value) == "shop/step1"
    with pytest.raises(Broken) as caught:
        await Tolerant((make_step(1, "plain", "fail"), other), name="shop")({"seen": []})
    assert step_of(caught.value) == "shop/other"


async def test_items_are_copied_only_where_an_errback_may_want_them() -> None:
    copies: list[Any] = []

    def count(item: Any) -> Any:
        copies.append(item)
        return item

    steps = [make_step(number, "plain") for number in range(3)]
    await Tolerant(*steps, copy=count)({"seen": []})
    assert not copies
    await Tolerant((steps[0], recover), *steps[1:], copy=count)({"seen": []})
    assert len(copies) == 1


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tolerant((len, len, len)), "pair .processor, errback.*has 3 parts"),
        (lambda: Tolerant((len,)), "has 1 part$"),
        (lambda: Tolerant((len, 3)), r"3 \(int\) is not a processor"),
        (lambda: Tolerant(len, on="ValueError"), "on='ValueError'.*exception class"),
        (lambda: Tolerant(len, on=()), "exception class"),
    ],
)
def test_a_wrong_step_fails_when_the_stack_is_built(make: Any, message: str) -> None:
    with pytest.raises(StackConfigError, match=message):
        make()
