"""An Each processes the elements of a field, and loses none in silence."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scrapy.exceptions import CloseSpider, DropItem
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure

from scrapy_deferkit import (
    Chain,
    DeferKitError,
    Each,
    NoItemReturned,
    StackConfigError,
    StepCancelled,
    step_of,
)
from scrapy_deferkit._runtime import to_deferred, turn
from scrapy_deferkit.testing import mock_crawler, run_stack

from ..items import KINDS
from ..steps import Broken, Held, until, wait


def make_processor(style: str, outcomes: list[str]) -> Any:
    def plain(element: int) -> Any:
        if outcomes[element] == "fail":
            raise Broken(element)
        if outcomes[element] == "drop":
            raise DropItem("no")
        return element * 10

    async def suspended(element: int) -> Any:
        await turn()
        return plain(element)

    return {"plain": plain, "suspended": suspended}[style]


outcome_lists = st.lists(st.sampled_from(["pass", "fail", "drop"]), max_size=6)


@given(st.sampled_from(["plain", "suspended"]), outcome_lists, st.integers(1, 3))
async def test_every_element_gives_a_result_or_an_accounted_failure(
    style: str, outcomes: list[str], concurrency: int
) -> None:
    failures: list[int] = []

    def account(failure: Failure, element: int) -> int:
        failures.append(element)
        return -element

    stack = Each("n", make_processor(style, outcomes), concurrency=concurrency, on_error=account)
    item = await stack({"n": list(range(len(outcomes)))})
    expected = [
        -element if outcome == "fail" else element * 10
        for element, outcome in enumerate(outcomes)
        if outcome != "drop"
    ]
    assert item == {"n": expected}
    assert sorted(failures) == [n for n, outcome in enumerate(outcomes) if outcome == "fail"]


@given(st.sampled_from(["plain", "suspended"]), outcome_lists)
async def test_raise_processes_all_and_fails_with_the_first_failure_and_notes_of_the_others(
    style: str, outcomes: list[str]
) -> None:
    processed: list[int] = []
    process = make_processor(style, outcomes)

    def noting(element: int) -> Any:
        processed.append(element)
        return process(element)

    elements = list(range(len(outcomes)))
    run = await run_stack(Each("n", noting, name="each"), [{"n": elements}])
    failing = [n for n, outcome in enumerate(outcomes) if outcome == "fail"]
    assert sorted(processed) == elements
    if not failing:
        assert len(run.scraped) == 1
    else:
        (failed,) = run.failed
        assert failed.exception.args == (failing[0],)
        assert failed.step == "each/noting"
        notes = "\n".join(failed.exception.__notes__)
        assert all(f"Element {n} failed too: Broken({n})" in notes for n in failing[1:])


async def test_drop_removes_logs_and_counts_what_fails(caplog: Any) -> None:
    crawler = mock_crawler()
    process = make_processor("suspended", ["pass", "fail", "pass"])
    with caplog.at_level(logging.WARNING):
        run = await run_stack(
            Each("n", process, on_error="drop", name="offers"), [{"n": [0, 1, 2]}], crawler=crawler
        )
    assert run.scraped == [{"n": [0, 20]}]
    assert (
        "offers: element 1 of the field 'n' of the item failed and was dropped: Broken(1)"
        in caplog.text
    )
    assert crawler.stats.get_value("deferkit/offers/elements_dropped") == 1


@given(st.integers(1, 3), st.integers(0, 7))
async def test_no_more_than_concurrency_are_processed_at_once(count: int, length: int) -> None:
    held = Held()
    item = to_deferred(Each("n", held, concurrency=count)({"n": list(range(length))}))
    for done in range(length):
        await until(lambda done=done: len(held.waiting) == min(count, length - done))
        held.release(-1, result="done")
    assert await wait(item) == {"n": ["done"] * length}


async def test_an_element_that_hangs_and_is_cancelled_fails_and_the_rest_are_processed() -> None:
    held = Held()
    item = to_deferred(Each("n", held, name="each")({"n": [0, 1, 2]}))
    await until(lambda: len(held.waiting) == 3)
    held.waiting[1][1].cancel()
    held.release(0, result="a")
    held.release(1, result="c")
    with pytest.raises(StepCancelled) as caught:
        await wait(item)
    assert step_of(caught.value) == "each/held"

    dropping = to_deferred(Each("n", held, on_error="drop")({"n": [0, 1, 2]}))
    await until(lambda: len(held.waiting) >= 3)
    held.waiting[-2][1].cancel()
    held.release(-1, result="c")
    held.release(-2, result="a")
    assert await wait(dropping) == {"n": ["a", "c"]}


async def test_cancelling_the_item_cancels_its_elements_and_calls_no_errback() -> None:
    held = Held()
    errbacks: list[Any] = []
    stack = Each("n", held, concurrency=2, on_error=lambda f, e: errbacks.append(e))
    item = to_deferred(stack({"n": [0, 1, 2]}))
    await until(lambda: len(held.waiting) == 2)
    item.cancel()
    with pytest.raises((CancelledError, asyncio.CancelledError)):
        await wait(item)
    await turn()
    assert held.cancelled == [0, 1]
    assert len(held.waiting) == 2, "the third is not taken"
    assert not errbacks


async def test_an_errback_gets_the_element_as_it_was() -> None:
    def spoil(element: Any) -> Any:
        element["seen"].append("spoilt")
        raise Broken

    async def errback(failure: Failure, element: Any, *args: Any) -> Any:
        return (type(failure.value), element, args)

    item = await Each("n", spoil_with(spoil), on_error=errback)({"n": [{"seen": []}]}, "response")
    assert item == {"n": [(Broken, {"seen": []}, ("response",))]}


def spoil_with(spoil: Any) -> Any:
    return lambda element, response: spoil(element)


async def test_an_errback_may_drop_the_element_or_fail_the_item() -> None:
    def drop(failure: Failure, element: Any) -> Any:
        raise DropItem("no")

    def forget(failure: Failure, element: Any) -> Any:
        return None

    process = make_processor("plain", ["pass", "fail"])
    assert await Each("n", process, on_error=drop)({"n": [0, 1]}) == {"n": [0]}
    with pytest.raises(NoItemReturned, match="each/forget returned None"):
        await Each("n", process, on_error=forget, name="each")({"n": [0, 1]})


async def test_an_element_processor_that_returns_nothing_is_named() -> None:
    with pytest.raises(NoItemReturned, match="each/lambda returned None"):
        await Each("n", lambda element: None, name="each")({"n": [0]})


async def test_close_spider_in_an_element_passes_whatever_on_error_says() -> None:
    def close(element: Any) -> Any:
        raise CloseSpider("disk full")

    for on_error in ("drop", lambda f, e: e):
        with pytest.raises(CloseSpider):
            await Each("n", close, on_error=on_error)({"n": [0]})


@pytest.mark.parametrize("kind", KINDS)
async def test_it_works_on_items_of_every_kind(kind: Any) -> None:
    item = kind(title="A", tags=[1, 2])
    assert await Each("tags", lambda n: n + 1)(item) == kind(title="A", tags=[2, 3])


async def test_a_field_that_is_missing_or_none_has_no_elements() -> None:
    for item in ({}, {"n": None}, {"n": []}):
        assert await Each("n", len)(item) == item


async def test_a_tuple_stays_a_tuple() -> None:
    assert await Each("n", lambda n: n + 1)({"n": (1, 2)}) == {"n": (2, 3)}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"n": "text"}, r"'n' holds 'text' \(str\); Each works on a list"),
        (KINDS[2](title="A", tags=[]), "Dataclass has no field 'n'; its fields are title, tags"),
        (3, r"3 \(int\) is not an item"),
    ],
)
async def test_what_has_no_such_list_fails_and_says_so(item: Any, message: str) -> None:
    with pytest.raises(DeferKitError, match=message) as caught:
        await Chain(Each("n", len), name="shop")(item)
    assert step_of(caught.value) == "shop/Each"


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concurrency": 0}, "concurrency=0.*1 or more"),
        ({"concurrency": True}, "concurrency=True"),
        ({"concurrency": 1.5}, "concurrency=1.5"),
        ({"on_error": "ignore"}, "on_error='ignore'.*'raise', 'drop'"),
        ({"on_error": 3}, r"3 \(int\) is not a processor"),
        ({"field": ""}, "the field is a name"),
    ],
)
def test_wrong_arguments_fail_when_the_stack_is_built(arguments: Any, message: str) -> None:
    with pytest.raises(StackConfigError, match=message):
        Each(**{"field": "n", "processor": len, **arguments})
