"""Each step is counted and timed, in bounded memory, and may be read while the crawl runs."""

from __future__ import annotations

import math
import sys
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scrapy.exceptions import DropItem
from scrapy.settings import Settings
from tenacity import wait_none
from twisted.internet.task import Clock

from scrapy_deferkit import (
    Chain,
    Parallel,
    Retry,
    StackConfigError,
    StackPipeline,
    StackSpiderMiddleware,
    Tolerant,
    step_stats,
)
from scrapy_deferkit._config import Config
from scrapy_deferkit._runtime import clock_set_to, to_deferred, turn
from scrapy_deferkit.itemprocessor import DeferKitItemProcessor
from scrapy_deferkit.stats import FOLD_AT, Latencies, StepStats
from scrapy_deferkit.testing import mock_crawler

from .itemprocessor.conftest import heartbeat
from .itemprocessor.crawling import crawl_with, numbered, page
from .steps import Broken, Held, until

__all__ = ["heartbeat"]

DAY = 86_400.0
durations = st.lists(st.floats(1e-6, DAY), min_size=1, max_size=300)


def counted(*values: float) -> Latencies:
    latencies = Latencies()
    for value in values:
        latencies.recent.append(value)
    return latencies


@pytest.mark.no_runtime
@given(durations, st.sampled_from([1, 25, 50, 90, 95, 99, 99.9, 100]))
def test_a_percentile_is_that_of_the_sorted_durations_to_within_an_eighth(
    values: list[float], percent: float
) -> None:
    exact = sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
    found = counted(*values).percentile(percent)
    assert exact <= found * (1 + 1e-9)
    assert found <= exact * 1.125


@pytest.mark.no_runtime
@given(st.lists(durations, max_size=4))
def test_it_does_not_matter_when_durations_are_folded(parts: list[list[float]]) -> None:
    at_once, in_parts = counted(*chain.from_iterable(parts)), Latencies()
    for part in parts:
        in_parts.recent.extend(part)
        in_parts.fold()
    assert at_once.count == in_parts.count == sum(map(len, parts))
    assert at_once.longest == in_parts.longest == max(chain.from_iterable(parts), default=0.0)
    assert at_once.total == pytest.approx(in_parts.total)
    for percent in (50, 95, 99):
        assert at_once.percentile(percent) == in_parts.percentile(percent)


@pytest.mark.no_runtime
def test_without_durations_all_figures_are_0() -> None:
    empty = Latencies()
    assert (empty.count, empty.total, empty.longest, empty.percentile(99)) == (0, 0, 0, 0)


@pytest.mark.no_runtime
@pytest.mark.parametrize("value", [0.0, 1e-9, 1e9])
def test_durations_off_the_scale_are_counted_too(value: float) -> None:
    latencies = counted(value, value)
    assert latencies.percentile(50) == latencies.longest == value


async def test_durations_are_kept_in_bounded_memory() -> None:
    class Pipeline:
        def process_item(self, item: Any) -> Any:
            return item

    class Last(Pipeline):
        pass

    crawler = mock_crawler({"ITEM_PIPELINES": {Pipeline: 1, Last: 2}})
    processor = DeferKitItemProcessor.from_crawler(crawler)
    for number in range(3 * FOLD_AT + 5):
        await processor.process_item_async({"number": number})
    for pipeline in processor._pipelines:
        work = pipeline.record.work
        assert work.count == 3 * FOLD_AT + 5
        assert len(work.recent) <= FOLD_AT
        assert sys.getsizeof(work._buckets) < 4000


# -------------------------------------------------------------------------------- in a crawl


def clean(item: Any, *_: Any) -> Any:
    item["clean"] = True
    return item


async def check(item: Any, *_: Any) -> Any:
    if item["number"] % 3 == 0:
        await turn()
    if item["number"] % 5 == 1:
        raise DropItem("unwanted")
    if item["number"] % 5 == 2:
        raise Broken
    return item


tried: set[int] = set()


def flaky(item: Any) -> Any:
    """Fail the first time."""
    if item["number"] in tried:
        return item
    tried.add(item["number"])
    raise Broken


class Shop(StackPipeline):
    stack = Chain(
        clean, Retry(flaky, on=Broken, attempts=3, wait=wait_none()), Parallel(check), name="shop"
    )


class Sink:
    async def process_item(self, item: Any) -> Any:
        await turn()
        if item["number"] % 5 == 3:
            raise Broken
        return item


def balance(figures: list[Any], inside: int = 0) -> None:
    for step in figures:
        assert step.entered == step.ok + step.dropped + step.failed + step.cancelled + inside, step
        assert 0 <= step.p50 <= step.p95 <= step.p99 <= step.longest <= step.total


@pytest.mark.parametrize("from_start", [False, True])
async def test_each_pipeline_and_each_step_is_counted(from_start: bool) -> None:
    tried.clear()
    items = numbered(50)
    source: dict[str, Any] = {"items": items} if from_start else {"pages": [page(*items)]}
    trace = await crawl_with(Shop, Sink, **source)
    figures = {step.path: step for step in step_stats(trace.crawler)}
    balance(list(figures.values()))
    counts = {
        path: (it.entered, it.ok, it.dropped, it.failed, it.retried) for path, it in figures.items()
    }
    assert counts == {
        "Shop": (50, 30, 10, 10, 0),
        "shop/clean": (50, 50, 0, 0, 0),
        "shop/Retry": (50, 50, 0, 0, 50),
        "shop/Retry/flaky": (100, 50, 0, 50, 0),
        "shop/Parallel": (50, 30, 10, 10, 0),
        "shop/Parallel/check": (50, 30, 10, 10, 0),
        "Sink": (30, 20, 0, 10, 0),
    }
    stats = trace.crawler.stats.get_stats()
    for path, step in figures.items():
        assert stats[f"deferkit/{path}/in"] == step.entered
        assert stats[f"deferkit/{path}/ok"] == step.ok
        assert stats.get(f"deferkit/{path}/dropped", 0) == step.dropped
        assert stats.get(f"deferkit/{path}/failed", 0) == step.failed
        for name in ("p50", "p95", "p99"):
            assert stats[f"deferkit/{path}/{name}"] == pytest.approx(getattr(step, name), abs=1e-6)
        assert stats[f"deferkit/{path}/max"] == pytest.approx(step.longest, abs=1e-6)


async def test_steps_of_the_spider_middleware_are_counted() -> None:
    trace = await crawl_with(
        pages=[page(*numbered(20))],
        SPIDER_MIDDLEWARES={StackSpiderMiddleware: 100},
        DEFERKIT_SPIDER_STACK=Tolerant(clean, check, name="near"),
    )
    figures = {step.path: step for step in step_stats(trace.crawler)}
    balance(list(figures.values()))
    assert figures["near/clean"].ok == 20
    assert (figures["near/check"].dropped, figures["near/check"].failed) == (4, 4)
    assert trace.crawler.stats.get_value("deferkit/near/check/failed") == 4


class One(StackPipeline):
    stack = Chain(clean)


class Two(StackPipeline):
    stack = Chain(clean, check)


class Three(StackPipeline):
    stack = Chain(clean, check)


async def test_stacks_of_one_name_share_what_became_of_their_items() -> None:
    trace = await crawl_with(Two, Three, pages=[page(*numbered(10))])
    (step,) = [it for it in step_stats(trace.crawler) if it.path == "Chain/check"]
    assert (step.entered, step.ok, step.dropped, step.failed) == (16, 12, 2, 2)


def forget(item: Any) -> Any:
    """Return nothing."""


async def forget_later(item: Any) -> Any:
    await turn()


@pytest.mark.parametrize("step", [forget, forget_later])
async def test_a_step_that_returns_nothing_has_failed(step: Any) -> None:
    class Forgetting(StackPipeline):
        stack = Chain(step, name="shop")

    trace = await crawl_with(Forgetting, pages=[page(*numbered(3))])
    figures = {it.path: (it.entered, it.ok, it.failed) for it in step_stats(trace.crawler)}
    assert figures == {f"shop/{step.__name__}": (3, 0, 3), "Forgetting": (3, 0, 3)}


async def test_the_stats_are_put_out_again_and_again_while_the_crawl_runs() -> None:
    clock = Clock()
    with clock_set_to(clock):
        crawler = mock_crawler({"ITEM_PIPELINES": {Sink: 1}, "LOGSTATS_INTERVAL": 10})
        processor = DeferKitItemProcessor.from_crawler(crawler)
        await processor.open_spider_async()
        for count in (1, 2):
            ended = to_deferred(processor.process_item_async({"number": 0}))
            await until(lambda: ended.called)  # noqa: B023
            clock.advance(10)
            assert crawler.stats.get_value("deferkit/Sink/in") == count
        await processor.close_spider_async()
    assert not clock.getDelayedCalls()


async def test_stacks_of_one_name_share_the_counts_of_their_steps() -> None:
    trace = await crawl_with(One, Two, pages=[page(*numbered(10))])
    paths = [step.path for step in step_stats(trace.crawler)]
    assert len(paths) == len(set(paths))
    assert trace.crawler.stats.get_value("deferkit/Chain/clean/in") == 20
    assert trace.crawler.stats.get_value("deferkit/Chain/check/in") == 10


async def test_without_the_setting_nothing_is_counted() -> None:
    trace = await crawl_with(Shop, Sink, pages=[page(*numbered(5))], DEFERKIT_STEP_STATS=False)
    assert step_stats(trace.crawler) == []
    keys = [key for key in trace.crawler.stats.get_stats() if key.startswith("deferkit/")]
    assert not [key for key in keys if key.endswith(("/in", "/ok", "/p50", "/seconds"))]


async def test_the_counts_are_right_while_items_are_inside() -> None:
    held = Held()

    class Waiting(StackPipeline):
        stack = Chain(held, name="shop")

    crawler = mock_crawler({"ITEM_PIPELINES": {Waiting: 1}})
    processor = DeferKitItemProcessor.from_crawler(crawler)
    ended = [to_deferred(processor.process_item_async(item)) for item in numbered(3)]
    await until(lambda: len(held.waiting) == 3)
    for released in range(3):
        figures = step_stats(crawler)
        assert [step.path for step in figures] == ["shop/held", "Waiting"]
        balance(figures, inside=3 - released)
        assert {step.ok for step in figures} == {released}
        assert {step.entered for step in figures} == {3}
        held.release()
        await until(lambda: sum(it.called for it in ended) > released)  # noqa: B023
    await processor.close_spider_async()
    assert crawler.stats.get_value("deferkit/Waiting/ok") == 3


async def test_compact_stats_are_six_figures_of_all_items() -> None:
    trace = await crawl_with(Shop, Sink, pages=[page(*numbered(50))], DEFERKIT_STEP_STATS="compact")
    stats = trace.crawler.stats.get_stats()
    figures = {key: value for key, value in stats.items() if key.startswith("deferkit/")}
    del figures["deferkit/items/dead_lettered"]  # in any crawl that keeps them
    retried = {key: figures.pop(key) for key in [*figures] if key.endswith("/retried")}
    assert len(retried) <= 1  # what a policy counts itself
    counts = {name: figures.pop(f"deferkit/items/{name}") for name in ("in", "ok", "dropped")}
    assert counts == {"in": 50, "ok": 20, "dropped": 10}
    assert figures.pop("deferkit/items/failed") == 20
    assert 0 < figures.pop("deferkit/items/p95") <= figures.pop("deferkit/items/max")
    assert not figures
    assert {step.path for step in step_stats(trace.crawler)} >= {"Shop", "shop/clean", "Sink"}


async def test_compact_stats_have_the_items_that_are_inside_and_no_failure_too() -> None:
    held = Held()

    class Waiting(StackPipeline):
        stack = Chain(held)

    crawler = mock_crawler({"ITEM_PIPELINES": {Waiting: 1}, "DEFERKIT_STEP_STATS": "compact"})
    processor = DeferKitItemProcessor.from_crawler(crawler)
    ended = [to_deferred(processor.process_item_async(item)) for item in numbered(2)]
    await until(lambda: len(held.waiting) == 2)
    held.release()
    await until(lambda: any(it.called for it in ended))
    StepStats.of(crawler).publish()
    value = crawler.stats.get_value
    assert [value(f"deferkit/items/{name}") for name in ("in", "ok", "failed")] == [2, 1, 0]
    held.release()
    await until(lambda: all(it.called for it in ended))
    await processor.close_spider_async()
    assert value("deferkit/items/ok") == 2


@pytest.mark.no_runtime
def test_what_step_stats_may_be_is_said() -> None:
    for value, meant in (("compact", "compact"), ("False", False), ("1", True), ("", True)):
        assert Config.from_settings(Settings({"DEFERKIT_STEP_STATS": value})).step_stats == meant
    with pytest.raises(StackConfigError) as refused:
        Config.from_settings(Settings({"DEFERKIT_STEP_STATS": "brief"}))
    assert str(refused.value) == (
        "DEFERKIT_STEP_STATS = 'brief': True, False or \"compact\" is expected"
    )
