"""A Parallel runs its branches together and makes one item of what they give."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, succeed

from scrapy_deferkit import (
    Chain,
    MergeConflict,
    NoItemReturned,
    Parallel,
    StackConfigError,
    StepCancelled,
    Tolerant,
    keep_item,
    merge_changes,
    step_of,
)
from scrapy_deferkit._runtime import to_deferred, turn

from ..steps import Broken, Held, make_step, until, wait


@given(st.permutations(range(4)), st.lists(st.sampled_from("abc"), min_size=4, max_size=4))
async def test_which_branch_ends_first_does_not_matter(order: list[int], fields: list[str]) -> None:
    async def outcome(order: list[int]) -> Any:
        held = [Held() for _ in fields]
        merging = to_deferred(Parallel(*held)({"a": 0, "b": 0, "c": 0}))
        await until(lambda: all(it.waiting for it in held))
        for branch in order:
            item, _ = held[branch].waiting[0]
            item[fields[branch]] = branch // 2
            held[branch].release()
        try:
            return await wait(merging)
        except MergeConflict as error:
            return str(error)

    assert await outcome(order) == await outcome(sorted(order))


async def test_every_branch_gets_a_copy_of_its_own() -> None:
    def append(number: int) -> Any:
        def branch(item: Any) -> Any:
            item["seen"].append(number)
            return item

        return branch

    item = {"seen": []}
    merged = await Parallel(append(1), append(2), merge=lambda it, results: results)(item)
    assert merged == [{"seen": [1]}, {"seen": [2]}]
    assert item == {"seen": []}


async def test_a_branch_may_return_nothing() -> None:
    assert await Parallel(lambda item: None, lambda item: {**item, "b": 2})({"a": 1}) == {
        "a": 1,
        "b": 2,
    }


@dataclass
class Book:
    title: str = " A "
    tags: list[Any] = field(default_factory=lambda: [{"n": 1}])


class Opaque:
    """Equal to nothing but itself."""


def change(item: Any) -> None:
    """Change *item* somewhere below."""
    tags = item["tags"] if isinstance(item, dict) else item.tags
    tags[0]["n"] = 2


async def change_later(item: Any) -> None:
    await turn()
    change(item)


def change_by_a_deferred(item: Any) -> Any:
    return succeed(item).addCallback(change)


@pytest.mark.parametrize("forgetful", [change, change_later, change_by_a_deferred])
@pytest.mark.parametrize("merge", [merge_changes, lambda item, results: item])
@pytest.mark.parametrize("make", [Book, lambda: {"tags": [{"n": 1}], "shared": Opaque()}])
async def test_a_branch_that_changed_its_copy_and_returns_nothing_fails(
    forgetful: Any, merge: Any, make: Any
) -> None:
    held = Held()
    running = to_deferred(Parallel(held, forgetful, merge=merge, name="shop")(make()))
    with pytest.raises(NoItemReturned, match="shop/change.* returned None.*changed its copy") as no:
        await wait(running)
    assert step_of(no.value) == f"shop/{forgetful.__name__}"
    assert held.cancelled


@pytest.mark.parametrize("later", [True, False])
async def test_a_branch_that_changed_nothing_may_return_nothing(later: bool) -> None:
    async def look(item: Any) -> None:
        await turn()

    item = {"tags": [{"n": 1}], "nan": float("nan"), "shared": Opaque(), "book": Book()}
    assert await Parallel(look if later else lambda item: None)(item) is item


async def test_where_no_copy_equals_its_original_nobody_can_tell() -> None:
    item = {"tags": [{"n": 1}], "own": Opaque()}
    assert await Parallel(lambda item: None, copy=copy.deepcopy)(item) is item


async def test_what_is_ignored_may_be_forgotten() -> None:
    item = {"tags": [{"n": 1}]}
    assert await Parallel(change, change_later, merge=keep_item)(item) == {"tags": [{"n": 1}]}


async def test_results_come_in_the_order_of_the_branches() -> None:
    one, other = Held(), Held()
    results = to_deferred(Parallel(one, other, merge=lambda it, results: results)({}))
    await until(lambda: one.waiting and other.waiting)
    other.release(result="second")
    one.release(result="first")
    assert await wait(results) == ["first", "second"]


async def test_on_the_first_failure_the_other_branches_are_cancelled_and_waited_for() -> None:
    slow, failing = Held("slow"), Held("failing")
    ending: Deferred[None] = Deferred()
    log: list[str] = []

    async def cleans_up(item: Any) -> Any:
        try:
            await wait(slow(item))
        finally:
            await wait(ending)
            log.append("cleaned up")

    item = to_deferred(Parallel(cleans_up, failing, name="shop")({}))
    item.addErrback(lambda failure: log.append(step_of(failure.value)))
    await until(lambda: slow.waiting and failing.waiting)
    failing.waiting[0][1].errback(Broken())
    await until(lambda: slow.cancelled)
    assert log == [], "the item does not fail before its branches have ended"
    ending.callback(None)
    await wait(item)
    assert log == ["cleaned up", "shop/failing"]


async def test_a_branch_that_fails_at_once_starts_no_further_branch() -> None:
    started: list[int] = []
    with pytest.raises(Broken):
        await Parallel(make_step(1, "plain", "fail"), started.append)({"seen": []})
    assert not started


async def test_cancelling_the_item_cancels_its_branches() -> None:
    branches = [Held(), Held()]
    item = to_deferred(Parallel(*branches)({"a": 1}))
    await until(lambda: all(it.waiting for it in branches))
    item.cancel()
    with pytest.raises((CancelledError, asyncio.CancelledError)):
        await wait(item)
    assert [it.cancelled for it in branches] == [[{"a": 1}], [{"a": 1}]]


async def test_a_branch_that_is_cancelled_from_within_fails_the_item() -> None:
    branch = Held()
    item = to_deferred(Parallel(branch, lambda item: None, name="shop")({}))
    await until(lambda: branch.waiting)
    branch.waiting[0][1].cancel()
    with pytest.raises(StepCancelled) as caught:
        await wait(item)
    assert step_of(caught.value) == "shop/held"


async def test_an_own_merge_decides() -> None:
    async def longest(item: Any, results: list[Any]) -> Any:
        return {"title": max((it["title"] for it in results), key=len)}

    stack = Parallel(lambda it: {"title": "a"}, lambda it: {"title": "bb"}, merge=longest)
    assert await stack({}) == {"title": "bb"}


async def test_keep_item_ignores_what_the_branches_return() -> None:
    item = {"a": 1}
    assert await Parallel(lambda it: {"a": 2}, lambda it: None, merge=keep_item)(item) is item


@pytest.mark.parametrize("failure", ["raises", "returns nothing"])
async def test_a_merge_that_fails_is_a_step_of_its_own(failure: str) -> None:
    def merge(item: Any, results: list[Any]) -> Any:
        if failure == "raises":
            raise Broken

    with pytest.raises((Broken, NoItemReturned)) as caught:
        await Parallel(lambda it: it, merge=merge, name="shop")({})
    assert step_of(caught.value) == "shop/merge"


async def test_a_conflict_names_the_field_and_can_be_handled() -> None:
    conflict = Parallel(lambda it: {"a": 1}, lambda it: {"a": 2})
    stack = Tolerant((conflict, lambda failure, item: str(failure.value)))
    assert "'a', to 1 and to 2" in await stack({"a": 0})


async def test_a_stack_can_be_a_branch() -> None:
    inner = Chain(make_step(1, "plain"), make_step(2, "suspended", "fail"), name="inner")
    with pytest.raises(Broken) as caught:
        await Parallel(inner, lambda item: None, name="outer")({"seen": []})
    assert step_of(caught.value) == "outer/inner/step2"


async def test_no_branches_leave_the_item_as_it_is() -> None:
    assert await Parallel()({"a": 1}) == {"a": 1}


@pytest.mark.no_runtime
def test_a_merge_that_is_no_function_fails_when_the_stack_is_built() -> None:
    with pytest.raises(StackConfigError, match=r"merge='keep'.*merge_changes or keep_item"):
        Parallel(len, merge="keep")  # type: ignore[arg-type]
