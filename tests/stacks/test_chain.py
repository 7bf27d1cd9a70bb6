"""A Chain hands the item from one processor to the next."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scrapy.exceptions import CloseSpider, DropItem

from scrapy_deferkit import Chain, DeferKitError, NoItemReturned, StackConfigError, step_of
from scrapy_deferkit.testing import run_stack

from ..steps import Broken, make_step, styles


@given(st.lists(styles, max_size=6))
async def test_it_keeps_the_order_of_its_processors(kinds: list[str]) -> None:
    steps = [make_step(number, style) for number, style in enumerate(kinds)]
    item = await Chain(*steps)({"seen": []})
    assert item == {"seen": list(range(len(kinds)))}


@given(st.lists(st.tuples(styles, st.sampled_from(["pass", "fail", "drop"])), max_size=5))
async def test_an_item_ends_exactly_once_and_where_its_first_step_ends_it(kinds: Any) -> None:
    steps = [make_step(number, *kind) for number, kind in enumerate(kinds)]
    run = await run_stack(Chain(*steps, name="shop"), [{"seen": []}])
    ends = [(n, outcome) for n, (_, outcome) in enumerate(kinds) if outcome != "pass"]
    assert len(run.scraped) + len(run.dropped) + len(run.failed) == 1
    if not ends:
        assert run.scraped == [{"seen": list(range(len(kinds)))}]
    elif ends[0][1] == "drop":
        assert run.dropped == [{"seen": []}]
    else:
        (failed,) = run.failed
        assert failed.item == {"seen": []}
        assert isinstance(failed.exception, Broken)
        assert failed.step == f"shop/step{ends[0][0]}"


async def test_extra_arguments_go_to_every_processor() -> None:
    def join(item: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        return [*item, args, kwargs]

    assert await Chain(join, join)([], "response", depth=1) == [("response",), {"depth": 1}] * 2


@pytest.mark.no_runtime
def test_plain_processors_pay_for_no_turn_of_the_loop() -> None:
    coroutine = Chain(lambda item: item + 1, Chain(lambda item: item * 2))(1)
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    assert end.value.value == 4


@pytest.mark.parametrize("style", ["plain", "async"])
async def test_a_processor_that_returns_nothing_is_named(style: str) -> None:
    def forget(item: Any) -> None:
        pass

    async def forget_async(item: Any) -> None:
        pass

    forgetful = {"plain": forget, "async": forget_async}[style]
    with pytest.raises(
        NoItemReturned, match=rf"shop/{forgetful.__name__} returned None.*return item"
    ):
        await Chain(forgetful, name="shop")({})


async def test_the_path_of_a_step_goes_through_all_stacks() -> None:
    inner = Chain(make_step(1, "plain"), make_step(2, "coroutine", "fail"), name="reviews")
    with pytest.raises(Broken) as caught:
        await Chain(make_step(0, "plain"), Chain(inner), name="catalogue")({"seen": []})
    assert step_of(caught.value) == "catalogue/Chain/reviews/step2"
    assert caught.value.__notes__ == ["In the step catalogue/Chain/reviews/step2"]


async def test_steps_of_one_name_are_told_apart() -> None:
    def strip(item: Any) -> Any:
        if item == 2:
            raise Broken
        return item + 1

    with pytest.raises(Broken) as caught:
        await Chain(strip, Chain(strip), Chain(strip))(0)
    assert step_of(caught.value) == "Chain/Chain#2/strip"


async def test_an_exception_object_raised_again_and_again_gathers_no_notes() -> None:
    error = Broken()

    def fail(item: Any) -> Any:
        raise error

    stack = Chain(fail, name="shop")
    for _ in range(3):
        with pytest.raises(Broken):
            await stack({})
    assert error.__notes__ == ["In the step shop/fail"]


@pytest.mark.parametrize("ending", [DropItem("no"), CloseSpider("disk full")])
async def test_control_flow_passes_as_it_is(ending: Exception) -> None:
    def end(item: Any) -> Any:
        raise ending

    with pytest.raises(type(ending)) as caught:
        await Chain(Chain(end))({})
    assert caught.value is ending


@pytest.mark.no_runtime
def test_a_stack_copies_to_itself() -> None:
    stack = Chain(len)
    assert copy.deepcopy({"stack": [stack]})["stack"][0] is stack
    assert copy.copy(stack) is stack


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Chain(42), r"Chain: 42 \(int\) is not a processor; allowed are"),
        (lambda: Chain("strip"), "Chain: 'strip' is not an import path; write it in full"),
        (lambda: Chain(len, name="a/b"), "name='a/b'.*without a slash"),
        (lambda: Chain(None, name="shop"), "Chain 'shop': None"),
    ],
)
def test_a_wrong_processor_fails_when_the_stack_is_built(make: Any, message: str) -> None:
    with pytest.raises(StackConfigError, match=message):
        make()


@pytest.mark.no_runtime
def test_a_stack_that_needs_a_crawler_says_so_when_it_is_called_without() -> None:
    stack = Chain("bookshop.processors.strip", len)
    with pytest.raises(DeferKitError, match=r"not bound.*bookshop.processors.strip.*bind"):
        stack({})


@pytest.mark.no_runtime
def test_a_class_that_is_no_component_is_a_plain_callable() -> None:
    with pytest.raises(StopIteration) as end:
        Chain(str, list)(12).send(None)
    assert end.value.value == ["1", "2"]
