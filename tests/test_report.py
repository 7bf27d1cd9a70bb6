"""The report at the end of a crawl: what became of the items, and where the time went."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from scrapy import signals
from scrapy.exceptions import CloseSpider, DropItem
from tenacity import wait_none
from twisted.python.failure import Failure

from scrapy_deferkit import Chain, Retry, StackPipeline, StackSpiderMiddleware
from scrapy_deferkit._runtime import sleep, turn
from scrapy_deferkit.exceptions import mark_step
from scrapy_deferkit.report import Report, _in_time, _table_of_steps, _tree
from scrapy_deferkit.stats import StepFigures
from scrapy_deferkit.testing import mock_crawler

from .itemprocessor.conftest import heartbeat
from .itemprocessor.crawling import crawl_with, numbered, page
from .steps import Broken

__all__ = ["heartbeat"]


async def check(item: Any) -> Any:
    if item["number"] == 1:
        raise DropItem("unwanted")
    if item["number"] in (2, 3):
        raise ValueError("no price\nat all")
    if item["number"] == 4:
        raise Broken("rare")
    return item


class Shop(StackPipeline):
    stack = Chain(check, name="shop")


class Slow:
    async def process_item(self, item: Any) -> Any:
        await sleep(0.01)
        return item


class Quick:
    def process_item(self, item: Any) -> Any:
        return item


def report_of(caplog: pytest.LogCaptureFixture) -> str:
    (text,) = [it.getMessage() for it in caplog.records if it.name == "scrapy_deferkit.report"]
    return text


def row(text: str, step: str) -> list[str]:
    """Give the cells of the row of *step*; a row of a step in a stack is indented."""
    line, *_ = [it for it in text.splitlines() if re.match(rf" *{re.escape(step)}  ", it)]
    return re.split(r"  +", line.strip())


def share(text: str, step: str) -> int:
    return int(row(text, step)[2].rstrip("%"))


def steps(text: str) -> list[str]:
    """Give the names of the steps in the tree, indented."""
    _, _, *lines = text[text.index("step  ") :].partition("\ntimes")[0].splitlines()
    return [re.split(r"(?<=\S)  +", it)[0] for it in lines]


def commonest(text: str, step: str) -> list[str]:
    """Give the number, the error and the page of the commonest failure of *step*."""
    told = text[text.index("commonest failure of each step") :]
    lines = told.splitlines()
    (at,) = [at for at, line in enumerate(lines) if f"  {step}: " in line]
    number, error = lines[at].strip().split("  ", 1)
    return [number, error.removeprefix(f"{step}: "), lines[at + 1].strip()]


async def test_it_tells_what_became_of_the_items_and_where_the_time_went(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    items = numbered(10)
    url = page(*items[:5])
    trace = await crawl_with(Shop, Slow, pages=[url], items=items[5:])
    assert trace.reason == "finished"
    text = report_of(caplog)
    assert text.startswith("Items of shop: 6 scraped, 1 dropped, 3 failed\n")
    assert steps(text) == ["Shop (shop)", "  check", "Slow"]
    for step in ("Shop (shop)", "check"):
        _, entered, *_, not_ok = row(text, step)
        assert (entered, not_ok) == ("10", "1 dropped, 3 failed")
    assert row(text, "Slow")[1] == "6"
    shares = [share(text, step) for step in ("Shop (shop)", "Slow")]
    assert 99 <= sum(shares) <= 101
    assert shares[1] > 50
    assert row(text, "Slow")[-1].endswith(" ms")
    times, error, example = commonest(text, "shop/check")
    assert (times, error) == ("2", "ValueError: no price")
    assert url.startswith(example)
    assert "rare" not in text
    assert "CONCURRENT_ITEMS" not in text


async def test_an_item_of_start_has_no_page(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await crawl_with(Shop, items=[{"number": 4}])
    assert commonest(report_of(caplog), "shop/check") == [
        "1",
        "Broken: rare",
        "no page: from start()",
    ]


async def test_it_is_short_where_nothing_happened(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await crawl_with(Quick)
    assert report_of(caplog) == "Items of shop: 0 scraped, 0 dropped, 0 failed"


async def test_it_is_not_there_where_it_is_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await crawl_with(Quick, pages=[page(*numbered(2))], DEFERKIT_REPORT=False)
    assert not [it for it in caplog.records if it.name == "scrapy_deferkit.report"]


# -------------------------------------------------------------------------- many failures


def a_failure(step: str, error: Exception) -> Failure:
    mark_step(error, step)
    return Failure(error)


class Page:
    url = "http://shop/1"


async def test_failures_that_all_differ_do_not_hide_those_of_other_steps() -> None:
    crawler = mock_crawler()
    report = Report(crawler)
    for number in range(1000):
        failure = a_failure("first", KeyError(number))
        crawler.signals.send_catch_log(signals.item_error, failure=failure, response=Page())
    for _ in range(3):
        failure = a_failure("second", Broken("again"))
        crawler.signals.send_catch_log(signals.item_error, failure=failure, response=Page())
    await turn()
    text = report.text()
    assert "1003 failed" in text
    assert commonest(text, "second") == ["3", "Broken", "http://shop/1"]
    assert commonest(text, "first")[:2] == ["1000", "KeyError"]
    assert len(report._kinds) < 250
    assert len(report._examples) < 250


async def test_failures_of_one_type_count_together_whatever_their_messages() -> None:
    crawler = mock_crawler()
    report = Report(crawler)
    errors = [*(Broken(f"no {it}") for it in range(3)), KeyError("x"), KeyError("x")]
    for error in errors:
        failure = a_failure("first", error)
        crawler.signals.send_catch_log(signals.item_error, failure=failure, response=Page())
    assert commonest(report.text(), "first")[:2] == ["3", "Broken, for example: no 0"]


async def test_a_long_message_is_cut_and_markup_is_text() -> None:
    crawler = mock_crawler()
    report = Report(crawler)
    for step, error in (("first", Broken("x" * 500)), ("second", Broken("[bold]y[/bold] [/]"))):
        crawler.signals.send_catch_log(
            signals.item_error, failure=a_failure(step, error), response=Page()
        )
    text = report.text()
    assert max(map(len, text.splitlines())) <= 100
    assert f"Broken: {'x' * 71}…" in text
    assert "Broken: [bold]y[/bold] [/]" in text


class Mute(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Mute(), "Mute: (a Mute that has no text)"),
        (ValueError("\n  at last\nand more"), "ValueError: at last"),
        (CloseSpider("disk full"), "CloseSpider: disk full"),
        (ValueError("\x1b[31mred"), "ValueError: \\x1b[31mred"),
    ],
)
async def test_an_error_says_what_it_can(error: Exception, told: str) -> None:
    crawler = mock_crawler()
    report = Report(crawler)
    failed = Failure(Broken())
    failed.request = Page()  # as the failure that an errback was called with
    crawler.signals.send_catch_log(
        signals.item_error, failure=a_failure("first", error), response=failed
    )
    assert commonest(report.text(), "first") == ["1", told, "http://shop/1"]


class Looking(StackPipeline):
    stack = Retry(Chain(check), on=Broken, attempts=2, wait=wait_none(), name="looking")


async def look(item: Any, response: Any) -> Any:
    for _ in range(3):
        await turn()
    return item


async def test_the_spiders_stack_has_its_share_and_a_pipeline_the_retries_of_its_stack(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    await crawl_with(
        Looking,
        pages=[page(*numbered(6))],
        SPIDER_MIDDLEWARES={StackSpiderMiddleware: 100},
        DEFERKIT_SPIDER_STACK=Chain(look, name="near"),
    )
    text = report_of(caplog)
    assert steps(text) == ["near", "  look", "Looking (looking)", "  Chain", "    check"]
    shares = [share(text, step) for step in ("Looking (looking)", "near", "look")]
    assert 99 <= shares[0] + shares[1] <= 101
    assert shares[2] <= shares[1]
    assert row(text, "near")[1] == "6"
    assert row(text, "Looking (looking)")[-1].endswith("1 retried")


async def test_an_error_whose_step_is_not_known_is_told_of() -> None:
    crawler = mock_crawler()
    report = Report(crawler)
    crawler.signals.send_catch_log(
        signals.item_error, failure=Failure(Broken("elsewhere")), response=None
    )
    assert commonest(report.text(), "(unknown)")[1] == "Broken: elsewhere"


# ----------------------------------------------------------------------------- the tree of steps


def figures(path: str, total: float, stack: str = "", **counts: int) -> StepFigures:
    none = dict.fromkeys(("entered", "ok", "dropped", "failed", "cancelled", "retried"), 0)
    times = dict.fromkeys(("p50", "p95", "p99", "longest"), total)
    return StepFigures(path=path, total=total, stack=stack, **{**none, **counts}, **times)


def tree(*steps: StepFigures) -> list[tuple[str, int]]:
    return [(name, round(100 * share)) for name, share, _ in _tree(steps)]


@pytest.mark.no_runtime
def test_the_tree_is_in_the_order_of_execution_each_step_under_its_stack() -> None:
    # As they are bound: what is inside comes first.
    assert tree(
        figures("page/look", 1.0),
        figures("page", 1.0),
        figures("shop/Retry/ask", 2.0),
        figures("shop/Retry", 2.0),
        figures("shop/clean", 1.0),
        figures("Shop", 3.0, stack="shop"),
        figures("Sink", 4.0),
    ) == [
        ("page", 12),
        ("  look", 12),
        ("Shop (shop)", 38),
        ("  Retry", 25),
        ("    ask", 25),
        ("  clean", 12),
        ("Sink", 50),
    ]


@pytest.mark.no_runtime
def test_the_share_of_a_stack_is_divided_among_what_runs_side_by_side_in_it() -> None:
    assert tree(
        figures("both/slow/one", 3.0),
        figures("both/slow", 9.0),
        figures("both/quick", 3.0),
        figures("Both", 10.0, stack="both"),
    ) == [("Both (both)", 100), ("  slow", 75), ("    one", 25), ("  quick", 25)]


@pytest.mark.no_runtime
def test_a_step_whose_stack_has_no_figures_stands_under_the_nearest_that_has() -> None:
    assert tree(figures("Shop", 2.0, stack="shop"), figures("shop/Route/clean", 1.0)) == [
        ("Shop (shop)", 100),
        ("  Route/clean", 50),
    ]
    assert tree(figures("else/where", 1.0)) == [("else/where", 100)]


@pytest.mark.no_runtime
def test_steps_that_took_no_time_have_no_share() -> None:
    assert tree(figures("Shop", 0.0, "Shop"), figures("Shop/clean", 0.0)) == [
        ("Shop", 0),
        ("  clean", 0),
    ]


@pytest.mark.no_runtime
def test_a_table_is_no_wider_than_100_columns_and_loses_nothing() -> None:
    deep = "/".join(f"a_step_with_a_long_name_{n}" for n in range(6))
    steps = [figures(deep[: deep.index(str(n)) + 1], 99.94, **MANY) for n in range(6)]
    text = _table_of_steps(steps)
    assert max(map(len, text.splitlines())) <= 100
    joined = re.sub(r"\s", "", text)
    assert "1234567dropped,1234567failed,1234567cancelled,1234567retried" in joined
    assert "99.9s" in joined


MANY = dict.fromkeys(("entered", "ok", "dropped", "failed", "cancelled", "retried"), 1_234_567)


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 µs"),
        (0.0009994, "999 µs"),
        (0.0009996, "1.0 ms"),
        (0.0999, "99.9 ms"),
        (0.09996, "100 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (3599.6, "3600 s"),
    ],
)
def test_a_time_takes_seven_columns_at_most(seconds: float, told: str) -> None:
    assert _in_time(seconds) == told
    assert len(told) <= 7


# -------------------------------------------------------------------------- what has been kept


async def kept(**settings: Any) -> str:
    crawler = mock_crawler(settings)
    crawler.stats.set_value("deferkit/items/dead_lettered", 5)
    crawler.stats.set_value("deferkit/replay/failed", 2)
    return Report(crawler).text().splitlines()[1]


async def test_it_says_how_many_are_kept_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scrapy_deferkit.report.inside_project", lambda: True)
    assert await kept() == "7 kept: scrapy deferkit dead-letters"
    monkeypatch.setattr("scrapy_deferkit.report.inside_project", lambda: False)
    monkeypatch.chdir(tmp_path)
    told = await kept()
    assert told.startswith("7 kept: scrapy deferkit dead-letters --url sqlite:///")
    assert told.endswith(".sqlite")
    told = await kept(DEFERKIT_DEAD_LETTERS_URL="postgresql://me:secret@host/letters")
    assert told == "7 kept: scrapy deferkit dead-letters --url URL"
