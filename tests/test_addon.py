"""One line in ADDONS switches on the item processor and the report; what the user set wins."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from scrapy.core.scheduler import Scheduler as ScrapysScheduler
from scrapy.extensions.spiderstate import SpiderState
from scrapy.pipelines import ItemPipelineManager
from scrapy.settings import Settings
from scrapy.utils.conf import build_component_list
from scrapy.utils.test import get_crawler

from scrapy_deferkit import Addon, DeferKitItemProcessor, Scheduler, StackConfigError
from scrapy_deferkit.gate import ItemGate
from scrapy_deferkit.report import Report
from scrapy_deferkit.testing import mock_crawler

from .crawls.tracing import Shop, crawl
from .itemprocessor.crawling import crawl_with, numbered, numbers, page

ADDONS = {"scrapy_deferkit.Addon": 500}


class OwnScheduler(Scheduler):
    pass


class ScrapysOwn(ScrapysScheduler):
    pass


class OwnProcessor(DeferKitItemProcessor):
    pass


def settings_of(spider: Any = None, **settings: Any) -> Any:
    return get_crawler(spider, {"ADDONS": ADDONS, **settings}).settings


def messages(caplog: pytest.LogCaptureFixture, level: str) -> list[str]:
    return [
        it.getMessage()
        for it in caplog.records
        if it.levelname == level and it.name.startswith("scrapy_deferkit.addon")
    ]


@pytest.fixture(autouse=True)
def all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.no_runtime
def test_the_item_processor_and_the_report_are_switched_on_and_one_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = settings_of()
    assert settings["ITEM_PROCESSOR"] == "scrapy_deferkit.DeferKitItemProcessor"
    assert settings.getbool("DEFERKIT_REPORT")
    assert Report in settings["EXTENSIONS"]
    (line,) = messages(caplog, "INFO")
    assert "the item processor (100 items at once, 3600 s each)" in line
    assert "the report" in line
    assert not messages(caplog, "WARNING")


@pytest.mark.no_runtime
def test_the_line_tells_of_no_limits(caplog: pytest.LogCaptureFixture) -> None:
    settings_of(DEFERKIT_CONCURRENT_ITEMS=0, DEFERKIT_ITEM_TIMEOUT=0, DEFERKIT_REPORT=False)
    (line,) = messages(caplog, "INFO")
    assert "any number of items at once, any time each" in line
    assert "report" not in line


@pytest.mark.no_runtime
def test_an_item_processor_that_was_set_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    path = "scrapy.pipelines.ItemPipelineManager"
    assert settings_of(ITEM_PROCESSOR=path)["ITEM_PROCESSOR"] == path
    (warning,) = messages(caplog, "WARNING")
    assert path in warning
    assert "DeferKitItemProcessor" in warning
    (line,) = messages(caplog, "INFO")
    assert "the item processor" not in line


@pytest.mark.no_runtime
def test_one_that_is_derived_from_ours_counts_as_ours(caplog: pytest.LogCaptureFixture) -> None:
    assert settings_of(ITEM_PROCESSOR=OwnProcessor)["ITEM_PROCESSOR"] is OwnProcessor
    assert not messages(caplog, "WARNING")
    assert "the item processor" in messages(caplog, "INFO")[0]


@pytest.mark.no_runtime
def test_the_gate_stands_next_to_the_engine() -> None:
    settings = Settings({"ADDONS": {"scrapy_deferkit.Addon": 500}})
    near, far = type("Near", (), {}), type("Far", (), {})
    settings.set("SPIDER_MIDDLEWARES", {near: -10_000, far: 10_000}, "project")
    Addon().update_settings(settings)
    enabled = build_component_list(settings.getwithbase("SPIDER_MIDDLEWARES"))
    assert enabled[0] is ItemGate


@pytest.mark.no_runtime
def test_what_another_add_on_has_set_is_kept() -> None:
    settings = Settings({"ADDONS": {"scrapy_deferkit.Addon": 500}})
    settings.set("ITEM_PROCESSOR", "scrapy.pipelines.ItemPipelineManager", "addon")
    settings.set("DEFERKIT_REPORT", False, "addon")
    Addon().update_settings(settings)
    assert settings["ITEM_PROCESSOR"] == "scrapy.pipelines.ItemPipelineManager"
    assert settings["DEFERKIT_REPORT"] is False
    assert settings["DEFERKIT_DEAD_LETTERS"] is True


@pytest.mark.no_runtime
@pytest.mark.parametrize("off", [False, 0, "False", "0"])
def test_a_report_that_was_switched_off_stays_off(off: Any) -> None:
    settings = settings_of(DEFERKIT_REPORT=off)
    assert settings["DEFERKIT_REPORT"] == off
    crawler = get_crawler(None, {"ADDONS": ADDONS, "DEFERKIT_REPORT": off})
    assert not any(isinstance(it, Report) for it in crawler.extensions.middlewares)


@pytest.mark.no_runtime
@pytest.mark.parametrize("name", [Report, "scrapy_deferkit.report.Report"])
@pytest.mark.parametrize("priority", [None, 7])
def test_an_extension_that_was_set_keeps_its_priority(name: Any, priority: Any) -> None:
    crawler = get_crawler(None, {"ADDONS": ADDONS, "EXTENSIONS": {name: priority}})
    assert dict(crawler.settings["EXTENSIONS"]) == {name: priority}
    reports = [it for it in crawler.extensions.middlewares if isinstance(it, Report)]
    assert len(reports) == (0 if priority is None else 1)


@pytest.mark.no_runtime
def test_what_a_spider_sets_wins(caplog: pytest.LogCaptureFixture) -> None:
    class Own(Shop):
        custom_settings = {"ITEM_PROCESSOR": OwnProcessor, "DEFERKIT_CONCURRENT_ITEMS": 7}

    assert settings_of(Own)["ITEM_PROCESSOR"] is OwnProcessor
    assert "(7 items at once" in messages(caplog, "INFO")[0]


async def test_a_spider_may_switch_it_on_alone() -> None:
    class Own(Shop):
        custom_settings = {"ADDONS": ADDONS}

    url = page(*numbered(3))
    first, second = [await crawl(url, settings={}, spider=it) for it in (Own, Shop)]
    assert type(first.crawler.engine.scraper.itemproc) is DeferKitItemProcessor
    assert type(second.crawler.engine.scraper.itemproc) is ItemPipelineManager


async def test_two_crawls_of_one_process_have_counts_of_their_own() -> None:
    class Pipeline:
        def process_item(self, item: Any) -> Any:
            return item

    traces = [await crawl_with(Pipeline, pages=[page(*numbered(count))]) for count in (3, 5)]
    for trace, count in zip(traces, (3, 5), strict=True):
        assert numbers(trace.scraped) == list(range(count))
        assert trace.crawler.stats.get_value("deferkit/Pipeline/in") == count


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("DEFERKIT_CONCURENT_ITEMS", "DEFERKIT_CONCURRENT_ITEMS"),
        ("DEFERKIT_ITEMS_TIMEOUT", "DEFERKIT_ITEM_TIMEOUT"),
        ("DEFERKIT_MAX_FAILED_ITEM", "DEFERKIT_MAX_FAILED_ITEMS"),
        ("DEFERKIT_XYZZY_XYZZY_XYZZY", None),
    ],
)
def test_a_misspelt_setting_is_warned_about(
    caplog: pytest.LogCaptureFixture, name: str, nearest: str | None
) -> None:
    settings_of(**{name: 5})
    (warning,) = messages(caplog, "WARNING")
    assert name in warning
    assert (f"did you mean {nearest}?" in warning) if nearest else ("did you" not in warning)


BAD = {
    "DEFERKIT_CONCURRENT_ITEMS": [-1, "many", 2.5, True, [3]],
    "DEFERKIT_ITEM_TIMEOUT": [-1, "soon", float("inf"), float("nan"), True],
    "DEFERKIT_MAX_FAILED_ITEMS": [-1, "many", "0%", "101%", "x%", 2.5, True],
    "DEFERKIT_NONE_IS_FAILURE": ["perhaps"],
    "DEFERKIT_STEP_STATS": ["perhaps"],
    "DEFERKIT_REPORT": ["perhaps"],
}


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
@pytest.mark.parametrize("by_addon", [True, False])
def test_a_bad_value_fails_at_start_up_and_is_named(name: str, value: Any, by_addon: bool) -> None:
    def start() -> None:
        if by_addon:
            settings_of(**{name: value})
        else:
            DeferKitItemProcessor.from_crawler(mock_crawler({name: value}))

    with pytest.raises(StackConfigError, match=name) as caught:
        start()
    assert str(value) in str(caught.value)


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("scheduler", "is_ours"),
    [
        ("scrapy_deferkit.Scheduler", True),
        (OwnScheduler, True),
        (None, True),
        ("scrapy.core.scheduler.Scheduler", False),
        (ScrapysOwn, False),
    ],
)
def test_with_a_jobdir_our_scheduler_keeps_the_state_and_scrapys_extension_another(
    caplog: pytest.LogCaptureFixture, scheduler: Any, is_ours: bool
) -> None:
    chosen = {} if scheduler is None else {"SCHEDULER": scheduler}
    settings = settings_of(JOBDIR="jobs/books", **chosen)
    assert settings["SCHEDULER"] == (scheduler or "scrapy_deferkit.Scheduler")
    assert (SpiderState in settings["EXTENSIONS"]) == is_ours  # it is switched off there
    said = messages(caplog, "INFO")
    assert ("the scheduler that survives a crash" in said[-1]) == is_ours
    assert any(line.startswith("SCHEDULER is") for line in said) != is_ours
