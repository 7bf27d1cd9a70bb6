"""Log lines and tracebacks name the page of an item, and its dead letter where it has one."""

from __future__ import annotations

import contextvars
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scrapy.exceptions import DropItem
from scrapy.http import Request, Response
from twisted.internet.task import Clock

from scrapy_deferkit import Chain, Each, Tap
from scrapy_deferkit._crawl import Crawl, current_visit
from scrapy_deferkit._ends import end_as_dropped, end_as_failed
from scrapy_deferkit._runtime import clock_set_to
from scrapy_deferkit._stack import naming
from scrapy_deferkit.deadletters import DeadLetters
from scrapy_deferkit.delivery import PIPELINES, Visit
from scrapy_deferkit.exceptions import mark_item, mark_step
from scrapy_deferkit.itemprocessor import _Wait
from scrapy_deferkit.testing import mock_crawler, run_stack

from .itemprocessor.crawling import crawl_with, numbered, page
from .steps import Broken

URL = "https://shop.example/1"
PAGE = Response(URL)


def visit_of(url: str | None, letter_id: str | None = None) -> Visit:
    letter: Any = letter_id and SimpleNamespace(id=letter_id, stage=PIPELINES)
    return Visit(Crawl(), PIPELINES, {}, url, letter)


def fail(*_: Any) -> Any:
    raise Broken("no")


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("visit", "item", "args", "name"),
    [
        (None, {}, (), "the item"),
        (visit_of(URL), {}, (), f"the item of {URL}"),
        (visit_of(None), {}, (), "the item of no page"),
        (visit_of(URL, "a-1"), {}, (), f"the item of {URL} (dead letter a-1)"),
        (visit_of(URL, "a-1"), {}, (PAGE,), f"the item of {URL} (dead letter a-1)"),
        (visit_of(URL, "a-1"), {}, (Response("data:,"),), "the item of data:,"),
        (None, {}, ("other", PAGE), f"the item of {URL}"),
        (None, Request(URL), (), f"<GET {URL}>"),
        (None, PAGE, (Request(URL),), f"<200 {URL}>"),
    ],
)
def test_an_item_is_named_by_its_page_and_its_letter(
    visit: Visit | None, item: Any, args: tuple[Any, ...], name: str
) -> None:
    def named() -> str:
        current_visit.set(visit)
        return naming(item, args)

    assert contextvars.copy_context().run(named) == name


async def test_an_element_that_is_dropped_is_named_with_its_page(caplog: Any) -> None:
    await run_stack(Each("n", fail, on_error="drop"), [{"n": [0]}], PAGE)
    assert f"element 0 of the field 'n' of the item of {URL} failed" in caplog.text


# ------------------------------------------------------------------------------------------ taps


def messages(caplog: Any) -> list[tuple[str, bool]]:
    return [(record.getMessage(), record.exc_info is not None) for record in caplog.records]


async def test_the_failures_of_a_tap_are_logged_once_and_then_as_a_number(caplog: Any) -> None:
    def look(item: Any, response: Any) -> None:
        raise item["error"]

    clock = Clock()
    stack = Chain(Tap(look, name="log"), name="shop").bind(mock_crawler())
    with clock_set_to(clock):
        await stack.open()
        for error in (Broken, ValueError, Broken, Broken, Broken):
            await stack({"error": error("no")}, PAGE)
            clock.advance(10)
        first = [(f"shop/log: look failed; the item of {URL} goes on", True)]
        assert messages(caplog) == first * 2
        clock.advance(50)
        await stack({"error": Broken("no")}, PAGE)
        text = f"Broken in the last 100 s: 4, the last of the item of {URL}; the items go on"
        assert messages(caplog)[2:] == [(f"shop/log: failures of look with {text}", False)]
        await stack({"error": ValueError("no")}, PAGE)  # its minute is over too
        await stack({"error": Broken("no")}, PAGE)
        clock.advance(5)
        await stack.close()
    assert [text.split(",")[0] for text, _ in messages(caplog)[3:]] == [
        "shop/log: failures of look with ValueError in the last 90 s: 1",
        "shop/log: failures of look with Broken in the last 5 s: 1",
    ]


async def test_the_kinds_of_failures_of_a_tap_are_bounded(caplog: Any) -> None:
    def look(item: Any) -> None:
        raise type(f"Error{item['n']}", (Exception,), {})

    await run_stack(Tap(look), [{"n": number} for number in range(200)])
    assert [has_traceback for _, has_traceback in messages(caplog)] == [*[True] * 101, False]
    assert "failures of look with errors of other kinds in the last" in messages(caplog)[-1][0]
    assert " s: 99, " in messages(caplog)[-1][0]


# -------------------------------------------------------------------------------------- failures


@pytest.mark.no_runtime
def test_an_exception_tells_of_its_last_item_alone() -> None:
    error = Broken()
    mark_item(error, "https://shop.example/1")
    mark_step(error, "shop/price")
    mark_item(error, "https://shop.example/2")
    assert error.__notes__ == ["In the step shop/price", "With an item of https://shop.example/2"]
    mark_item(error, None)
    mark_item(error, None)
    assert error.__notes__ == ["In the step shop/price"]


class Failing:
    def process_item(self, item: Any) -> Any:
        raise Broken("no")


async def test_a_failure_is_logged_with_its_page_and_letter(tmp_path: Path, caplog: Any) -> None:
    url = f"sqlite:///{tmp_path}/letters.sqlite"
    pages = [page(*numbered(1, start)) for start in range(2)]
    await crawl_with(Failing, pages=pages, DEFERKIT_DEAD_LETTERS_URL=url)
    errors = [it.exc_info[1] for it in caplog.records if it.name == "scrapy.core.scraper"]
    store = DeadLetters(url)
    letters = [*store.select()]
    store.close()
    expected = {f"With an item of {it.page_url} (dead letter {it.id})" for it in letters}
    assert len(expected) == 2
    assert {error.__notes__[-1] for error in errors} == expected
    assert len({it.traceback for it in letters}) == 1  # kept once for all pages
    assert "With an item" not in letters[0].traceback


async def test_an_item_that_no_log_formatter_takes_is_named_by_its_page(caplog: Any) -> None:
    crawler = mock_crawler()
    crawler.logformatter = None
    visit = visit_of(URL)
    await end_as_failed(crawler, visit, PAGE, Broken())
    await end_as_dropped(crawler, visit, PAGE, DropItem("no"))
    assert caplog.text.count(f"An item of {URL} ended, and LOG_FORMATTER failed") == 2


@pytest.mark.no_runtime
def test_the_watchdog_names_the_page(caplog: Any) -> None:
    processor: Any = SimpleNamespace(_timeout=10, _spider=None)

    class Given(_Wait):
        step = "Shop"  # type: ignore[assignment]

        def __init__(self) -> None:
            self.processor, self.visit = processor, visit_of(URL, "a-1")

        def cancel(self) -> None:
            """Cancel nothing."""

    waiting = Given()
    waiting.warn(60)
    waiting.expired_at, waiting.expired_in = 0, "Shop"
    waiting.give_up()
    warning, given_up = caplog.records
    origin = f"{URL} (dead letter a-1)"
    assert warning.getMessage().startswith(f"An item of {origin} has been in the pipelines")
    assert given_up.getMessage().endswith(f"the item of {origin} fails without it")
    assert str(waiting) == f"Shop, with the item of {origin},"
