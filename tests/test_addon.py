"""One line in ADDONS switches on the item processor and the report; what the user set wins."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from scrapy import signals
from scrapy.core.scheduler import Scheduler as ScrapysScheduler
from scrapy.extensions.spiderstate import SpiderState
from scrapy.pipelines import ItemPipelineManager
from scrapy.settings import Settings, default_settings
from scrapy.utils.conf import build_component_list
from scrapy.utils.misc import load_object
from scrapy.utils.test import get_crawler

from scrapy_deferkit import Addon, DeferKitItemProcessor, Scheduler, StackConfigError
from scrapy_deferkit._runtime import to_deferred, turn
from scrapy_deferkit.gate import ItemGate
from scrapy_deferkit.report import Report
from scrapy_deferkit.testing import mock_crawler

from .crawls.tracing import Shop, crawl
from .itemprocessor.crawling import crawl_with, numbered, numbers, page
from .steps import Broken

ADDONS = {"scrapy_deferkit.Addon": 500}


class OwnScheduler(Scheduler):
    pass


class ScrapysOwn(ScrapysScheduler):
    pass


class OwnProcessor(DeferKitItemProcessor):
    pass


def settings_of(spider: Any = None, **settings: Any) -> Any:
    return get_crawler(spider, {"ADDONS": ADDONS, **settings}).settings


def opened(spider: Any = None, **settings: Any) -> Any:
    """Give a crawler whose spider is opened, with no extension of Scrapy's own."""
    crawler = get_crawler(spider, {"ADDONS": ADDONS, "EXTENSIONS_BASE": {}, **settings})
    if issubclass(load_object(crawler.settings["ITEM_PROCESSOR"]), DeferKitItemProcessor):
        DeferKitItemProcessor.from_crawler(crawler)
    crawler.signals.send_catch_log(signals.spider_opened, spider=crawler.spider)
    return crawler


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
    crawler = opened(ITEM_PROCESSOR=path)
    assert crawler.settings["ITEM_PROCESSOR"] == path
    (warning,) = messages(caplog, "WARNING")
    assert f"ITEM_PROCESSOR is {path}, set with the priority project" in warning
    assert "DEFERKIT_FALLBACK_ITEM_PROCESSOR" in warning
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
    settings.set("DEFERKIT_REPORT", False, "addon")
    Addon().update_settings(settings)
    assert settings["DEFERKIT_REPORT"] is False
    assert settings["DEFERKIT_DEAD_LETTERS"] is True


class Another:
    """Another add-on, which sets what it is told to."""

    def update_settings(self, settings: Any) -> None:
        for name, value in settings["ANOTHER"].items():
            settings.set(name, value, "addon")


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ITEM_PROCESSOR", ItemPipelineManager, "items are neither timed nor kept"),
        ("SPIDER_MIDDLEWARES", {}, "no longer holds the ItemGate"),
        ("SCHEDULER", ScrapysScheduler, "is that scheduler's to keep"),
    ],
)
def test_what_a_later_add_on_has_replaced_is_warned_about(
    caplog: pytest.LogCaptureFixture, name: str, value: Any, said: str
) -> None:
    opened(ANOTHER={name: value}, ADDONS={**ADDONS, Another: 900}, JOBDIR="jobs/books")
    (warning,) = messages(caplog, "WARNING")
    assert name in warning
    assert "priority addon" in warning
    assert said in warning


@pytest.mark.no_runtime
def test_a_gate_that_was_switched_off_is_not_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened(SPIDER_MIDDLEWARES={ItemGate: None})
    assert not messages(caplog, "WARNING")


class Fallback(ItemPipelineManager):
    """An item processor of another add-on."""

    async def process_item_async(self, item: Any) -> Any:
        item["seen"] = True
        return await super().process_item_async(item)


class OldFallback(ItemPipelineManager):
    """One that has the old name alone."""

    def process_item(self, item: Any, spider: Any) -> Any:
        item["seen"] = spider.name == "shop"
        return to_deferred(self.process_item_async(item))


class Foreign:
    """One of its own kind."""

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.pipeline = Noting()
        self.middlewares = [self.pipeline]
        return self

    async def open_spider_async(self) -> None:
        self.pipeline.open_spider()

    async def process_item_async(self, item: Any) -> Any:
        item["seen"] = True
        return await self.pipeline.process_item(item)

    def close_spider(self, spider: Any) -> None:
        self.pipeline.close_spider()


class Noting:
    """A pipeline that fails with the second item."""

    def open_spider(self) -> None:
        self.calls = ["open"]

    async def process_item(self, item: Any) -> Any:
        await turn()
        self.calls.append(item["number"])
        if item["number"] == 1:
            raise Broken
        return item

    def close_spider(self) -> None:
        self.calls.append("close")


@pytest.mark.filterwarnings("ignore::scrapy.exceptions.ScrapyDeprecationWarning")
@pytest.mark.parametrize("processor", [Fallback, OldFallback, Foreign])
@pytest.mark.parametrize("by", ["an earlier add-on", "the setting"])
async def test_another_item_processor_runs_in_ours(
    tmp_path: Path, processor: type, by: str
) -> None:
    if by == "the setting":
        chosen: dict[str, Any] = {"DEFERKIT_FALLBACK_ITEM_PROCESSOR": processor, "ADDONS": ADDONS}
    else:
        chosen = {"ANOTHER": {"ITEM_PROCESSOR": processor}, "ADDONS": {Another: 1, **ADDONS}}
    trace = await crawl_with(
        Noting,
        addon=False,
        pages=[page(*numbered(3))],
        DEFERKIT_DEAD_LETTERS_URL=f"sqlite:///{tmp_path}/letters.sqlite",
        **chosen,
    )
    assert [(it["number"], it["seen"]) for it in trace.scraped] == [(0, True), (2, True)]
    assert [step for _, step, _ in trace.failed] == [processor.__name__]
    assert len(trace.of("item_error")) == 1
    assert trace.crawler.get_item_pipeline(Noting).calls == ["open", 0, 1, 2, "close"]
    stats = trace.crawler.stats
    assert stats.get_value("deferkit/items/dead_lettered") == 1
    assert stats.get_value(f"deferkit/{processor.__name__}/ok") == 2
    assert not any("ITEM_PROCESSOR" in it for it in trace.messages)


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (OwnProcessor, "put it into ITEM_PROCESSOR"),
        ("shop.processors.Missing", "No module named 'shop'"),
        (5, "expected an item processor or its import path"),
        (mock_crawler, "this is not a class"),
        (Shop, "has open_spider_async()"),
    ],
)
def test_what_cannot_be_the_fallback_is_refused(value: Any, said: str) -> None:
    crawler = mock_crawler({"DEFERKIT_FALLBACK_ITEM_PROCESSOR": value})
    with pytest.raises(StackConfigError) as error:
        DeferKitItemProcessor.from_crawler(crawler)
    assert str(error.value).startswith(f"DEFERKIT_FALLBACK_ITEM_PROCESSOR = {value!r}: ")
    assert said in str(error.value)


@pytest.mark.no_runtime
@pytest.mark.parametrize("by", ["the project", "the spider"])
@pytest.mark.parametrize("off", [False, "False", 0])
def test_all_of_it_can_be_switched_off(caplog: pytest.LogCaptureFixture, by: str, off: Any) -> None:
    class Own(Shop):
        custom_settings = {"DEFERKIT_ENABLED": off} if by == "the spider" else {}

    more = {"DEFERKIT_ENABLED": off} if by == "the project" else {}
    crawler = opened(Own, **more, JOBDIR="jobs/books")
    settings = crawler.settings
    for name in ("ITEM_PROCESSOR", "SCHEDULER"):
        assert settings[name] == getattr(default_settings, name)
    assert not settings["SPIDER_MIDDLEWARES"]
    assert settings["EXTENSIONS"].getpriority(Report) is None
    assert settings["DEFERKIT_DEAD_LETTERS"] is None
    assert messages(caplog, "INFO") == ["scrapy-deferkit is switched off (DEFERKIT_ENABLED)"]
    assert not messages(caplog, "WARNING")


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
    "DEFERKIT_ENABLED": ["perhaps"],
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
    settings = opened(JOBDIR="jobs/books", **chosen).settings
    assert settings["SCHEDULER"] == (scheduler or "scrapy_deferkit.Scheduler")
    assert (SpiderState in settings["EXTENSIONS"]) == is_ours  # it is switched off there
    said = messages(caplog, "INFO")
    assert any("the scheduler that survives a crash" in line for line in said) == is_ours
    assert any(line.startswith("SCHEDULER is") for line in said) != is_ours
