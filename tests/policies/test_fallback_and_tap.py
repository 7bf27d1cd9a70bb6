"""A Fallback tries one after the other; a Tap looks on."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from scrapy.exceptions import CloseSpider, DropItem

from scrapy_deferkit import Chain, Fallback, NoItemReturned, StackConfigError, Tap, step_of
from scrapy_deferkit.testing import mock_crawler, run_stack

from ..steps import Broken, make_step

first_fails = make_step(1, "plain", "fail")
then_fails = make_step(2, "suspended", "fail")


@pytest.mark.parametrize("style", ["plain", "coroutine", "suspended", "fired", "failure"])
async def test_the_first_that_succeeds_gives_the_item(style: str) -> None:
    crawler = mock_crawler()
    stack = Fallback(make_step(1, style, "fail"), make_step(2, style), first_fails, name="f")
    run = await run_stack(stack, [{"seen": []}, {"seen": [0]}], crawler=crawler)
    assert run.scraped == [{"seen": [2]}, {"seen": [0, 2]}], "each gets a copy of its own"
    assert crawler.stats.get_value("deferkit/f/fell_back") == 2


async def test_when_all_fail_the_last_failure_is_raised_with_notes_of_the_others() -> None:
    item: Any = {"seen": []}
    with pytest.raises(Broken) as caught:
        await Chain(Fallback(first_fails, then_fails, name="f"), name="shop")(item)
    assert caught.value.args == (2,)
    assert step_of(caught.value) == "shop/f/step2"
    assert "Before, f/step1 failed: Broken(1)" in caught.value.__notes__
    assert item == {"seen": []}


async def test_returning_nothing_is_a_failure_too() -> None:
    assert await Fallback(lambda item: None, lambda item: "kept")({}) == "kept"
    with pytest.raises(NoItemReturned, match="f/lambda#2 returned"):
        await Fallback(lambda item: None, lambda item: None, name="f")({})


@pytest.mark.parametrize("ending", [DropItem("no"), CloseSpider("full")])
async def test_control_flow_tries_no_other(ending: Exception) -> None:
    def end(item: Any) -> Any:
        raise ending

    calls: list[Any] = []
    with pytest.raises(type(ending)):
        await Fallback(end, calls.append)({})
    assert not calls


@pytest.mark.no_runtime
def test_one_processor_is_too_few_to_fall_back_on() -> None:
    with pytest.raises(StackConfigError, match="two processors or more.*got 1"):
        Fallback(len)


@pytest.mark.parametrize("style", ["plain", "suspended"])
async def test_a_tap_sees_a_copy_and_the_item_goes_on(style: str) -> None:
    item: Any = {"seen": []}
    assert await Tap(make_step(1, style))(item) is item
    assert item == {"seen": []}


async def test_what_a_tap_returns_does_not_matter() -> None:
    for result in (None, "other"):
        assert await Tap(lambda item, result=result: result)({"a": 1}) == {"a": 1}


@pytest.mark.parametrize("style", ["plain", "coroutine", "suspended", "fired", "failure"])
async def test_a_failure_in_a_tap_is_logged_and_counted(style: str, caplog: Any) -> None:
    crawler = mock_crawler()
    with caplog.at_level(logging.ERROR):
        run = await run_stack(
            Chain(Tap(make_step(1, style, "fail"), name="log"), name="shop"),
            [{"seen": []}],
            crawler=crawler,
        )
    assert run.scraped == [{"seen": []}]
    assert crawler.stats.get_value("deferkit/shop/log/tap_failed") == 1
    (record,) = caplog.records
    assert record.getMessage() == "shop/log: step1 failed; the item goes on"
    assert record.exc_info[0] is Broken


@pytest.mark.parametrize("ending", [DropItem("no"), CloseSpider("full")])
async def test_control_flow_passes_through_a_tap(ending: Exception) -> None:
    def end(item: Any) -> Any:
        raise ending

    with pytest.raises(type(ending)) as caught:
        await Tap(end, name="log")({})
    assert step_of(caught.value) == "log/end"
