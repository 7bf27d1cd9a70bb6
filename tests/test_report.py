"""The report at the end of a crawl: what became of the items, and where the time went."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from scrapy import signals
from scrapy.exceptions import CloseSpider, DropItem
from tenacity import wait_none
from twisted.python.failure import Failure

from scrapy_deferkit import Chain, Retry, StackPipeline, StackSpiderMiddleware
from scrapy_deferkit._runtime import sleep, turn
from scrapy_deferkit.exceptions import mark_step
from scrapy_deferkit.report import Report
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


def row(text: str, first: str) -> list[str]:
    """Give the cells of the row of *first*."""
    line, *_ = [it for it in text.splitlines() if it.lstrip("| ").startswith(f"{first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def failures(text: str, step: str) -> list[str]:
    """Give the row of *step* in the table of failures."""
    return row(text[text.index("commonest failure in") :], step)


async def test_it_tells_what_became_of_the_items_and_where_the_time_went(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    items = numbered(10)
    url = page(*items[:5])
    trace = await crawl_with(Shop, Slow, pages=[url], items=items[5:])
    assert trace.reason == "finished"
    text = report_of(caplog)
    assert text.startswith("Items: 6 scraped, 1 dropped, 3 failed\n")
    assert row(text, "Shop")[1:6] == ["10", "6", "1", "3", "0"]
    assert row(text, "shop/check")[1:6] == ["10", "6", "1", "3", "0"]
    assert row(text, "Slow")[1:6] == ["6", "6", "0", "0", "0"]
    shares = [int(row(text, step)[6].rstrip("%")) for step in ("Shop", "Slow")]
    assert 99 <= sum(shares) <= 101
    assert shares[1] > 50
    assert row(text, "Slow")[9].endswith(" ms")
    step, times, error, example = failures(text, "shop/check")
    assert (step, times, error) == ("shop/check", "2", "ValueError: no price")
    assert url.startswith(example)
    assert "rare" not in text
    assert "CONCURRENT_ITEMS" not in text


async def test_an_item_of_start_has_no_page(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await crawl_with(Shop, items=[{"number": 4}])
    assert failures(report_of(caplog), "shop/check") == [
        "shop/check",
        "1",
        "Broken: rare",
        "no page: from start()",
    ]


async def test_it_is_short_where_nothing_happened(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await crawl_with(Quick)
    assert report_of(caplog) == "Items: 0 scraped, 0 dropped, 0 failed"


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
    assert failures(text, "second") == ["second", "3", "Broken", "http://shop/1"]
    assert failures(text, "first")[2] == "KeyError"
    assert len(report._kinds) < 250
    assert len(report._examples) < 250


async def test_a_long_message_is_cut_and_markup_is_text() -> None:
    crawler = mock_crawler()
    report = Report(crawler)
    for step, error in (("first", Broken("x" * 500)), ("second", Broken("[bold]y[/bold] [/]"))):
        crawler.signals.send_catch_log(
            signals.item_error, failure=a_failure(step, error), response=Page()
        )
    text = report.text()
    assert max(map(len, text.splitlines())) <= 160
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
    assert failures(report.text(), "first") == ["first", "1", told, "http://shop/1"]


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
    shares = [int(row(text, step)[6].rstrip("%")) for step in ("Looking", "near", "near/look")]
    assert 99 <= shares[0] + shares[1] <= 101
    assert shares[2] <= shares[1]
    assert row(text, "near")[1:6] == ["6", "6", "0", "0", "0"]
    assert row(text, "Looking")[5] == "1"


async def test_an_error_whose_step_is_not_known_is_told_of() -> None:
    crawler = mock_crawler()
    report = Report(crawler)
    crawler.signals.send_catch_log(
        signals.item_error, failure=Failure(Broken("elsewhere")), response=None
    )
    assert failures(report.text(), "(unknown)")[2] == "Broken: elsewhere"
