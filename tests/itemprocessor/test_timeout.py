"""An item that stays is warned about, and fails after DEFERKIT_ITEM_TIMEOUT."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scrapy import signals
from scrapy.pipelines.files import FilesPipeline
from scrapy.utils.asyncio import call_later
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from scrapy_deferkit import Chain, Parallel, StackPipeline, StepTimeout, step_of, step_stats
from scrapy_deferkit._runtime import CANCELLED, clock_set_to, to_awaitable, to_deferred, turn
from scrapy_deferkit.itemprocessor import DeferKitItemProcessor
from scrapy_deferkit.testing import mock_crawler

from ..crawls.local_site import Site
from ..crawls.tracing import Trace
from ..steps import until
from .crawling import crawl_with, numbered, numbers, page

TIMEOUT = 0.3
after_it: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_after_it() -> Iterator[None]:
    after_it.clear()
    yield
    after_it.clear()


def never() -> Any:
    """Give what is never there."""
    return to_awaitable(Deferred())


def is_slow(item: Any) -> bool:
    return bool(item["number"] == 3)


class Stuck:
    async def process_item(self, item: Any) -> Any:
        if is_slow(item):
            await never()
        return item


class StuckDeferred:
    def process_item(self, item: Any) -> Any:
        return Deferred() if is_slow(item) else item


class Swallowing:
    """Takes its cancellation for something else, and returns the item."""

    async def process_item(self, item: Any) -> Any:
        if is_slow(item):
            try:
                await never()
            except BaseException as error:
                if not isinstance(error, CANCELLED):
                    raise
                await turn()
        return item


class Endless:
    """Heeds no cancellation at all."""

    async def process_item(self, item: Any) -> Any:
        while is_slow(item):
            try:
                await never()
            except BaseException as error:
                if not isinstance(error, CANCELLED):
                    raise
        return item


class After:
    def process_item(self, item: Any) -> Any:
        after_it.append(item["number"])
        return item


async def fetch(item: Any) -> Any:
    return await Stuck().process_item(item)


class Shop(StackPipeline):
    stack = Chain(Chain(fetch, name="reviews"), name="catalogue")


class Branches(StackPipeline):
    stack = Chain(Parallel(fetch, After().process_item), name="catalogue")


async def crawl_slowly(*pipelines: Any, **settings: Any) -> Trace:
    items = numbered(6)
    if settings.pop("from_start", False):
        source: dict[str, Any] = {"items": items}
    else:
        source = {"pages": [page(*items)]}
    settings.setdefault("DEFERKIT_ITEM_TIMEOUT", TIMEOUT)
    trace = await crawl_with(*pipelines, **source, **settings)
    assert trace.reason == "finished"
    return trace


@pytest.mark.filterwarnings("ignore::scrapy.exceptions.ScrapyDeprecationWarning")
@pytest.mark.parametrize("from_start", [False, True])
@pytest.mark.parametrize(
    ("pipeline", "step"),
    [
        (Stuck, "Stuck"),
        (StuckDeferred, "StuckDeferred"),
        (Swallowing, "Swallowing"),
        (Shop, "catalogue/reviews/fetch"),
        (Branches, "catalogue/Parallel/fetch"),
    ],
)
async def test_an_item_that_never_ends_fails_where_it_is_and_the_crawl_ends(
    pipeline: Any, step: str, from_start: bool
) -> None:
    trace = await crawl_slowly(pipeline, After, from_start=from_start)
    assert [(item["number"], *rest) for item, *rest in trace.failed] == [(3, step, "StepTimeout")]
    (error,) = [it["failure"].value for it in trace.of("item_error")]
    assert (error.step, error.seconds) == (step, TIMEOUT)
    assert numbers(trace.scraped) == [0, 1, 2, 4, 5]
    assert sorted(set(after_it)) == [0, 1, 2, 4, 5] or pipeline is Branches
    assert {number: after_it.count(number) for number in (3,)} == {3: int(pipeline is Branches)}
    figures = {it.path: it for it in step_stats(trace.crawler)}
    assert figures[pipeline.__name__].failed == 1
    assert figures["After"].entered == 5


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scrapy_deferkit._watchdog.GRACE", 0.2)


@pytest.mark.usefixtures("short_grace")
async def test_an_item_whose_step_heeds_no_cancellation_fails_after_the_grace() -> None:
    trace = await crawl_slowly(Endless, After)
    assert [(it["number"], *rest) for it, *rest in trace.failed] == [(3, "Endless", "StepTimeout")]
    assert sorted(after_it) == [0, 1, 2, 4, 5]
    assert any("Endless was cancelled" in message for message in trace.messages)


class FailsToCancel:
    """What it waits for cannot even be cancelled without an error."""

    def process_item(self, item: Any) -> Any:
        def cancel(_: Any) -> None:
            raise ZeroDivisionError

        return Deferred(cancel) if item["number"] in (2, 3) else item


@pytest.mark.usefixtures("short_grace")
@pytest.mark.filterwarnings("ignore::scrapy.exceptions.ScrapyDeprecationWarning")
async def test_a_cancellation_that_fails_leaves_the_other_items_their_timeouts(
    runtime: str,
) -> None:
    if runtime != "twisted":
        pytest.skip("asyncio cancels a Future of the Deferred")
    trace = await crawl_slowly(FailsToCancel, After)
    assert sorted(it["number"] for it, *_ in trace.failed) == [2, 3]


# ------------------------------------------------------------------------------ the warnings


def a_processor(*pipelines: Any, **settings: Any) -> DeferKitItemProcessor:
    settings["ITEM_PIPELINES"] = {it: position for position, it in enumerate(pipelines)}
    crawler = mock_crawler(settings)
    processor: DeferKitItemProcessor = DeferKitItemProcessor.from_crawler(crawler)
    return processor


async def test_an_item_that_stays_is_warned_about_at_doubling_intervals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    with clock_set_to(clock), caplog.at_level(logging.WARNING):
        processor = a_processor(After, Shop)
        await processor.open_spider_async()
        item = to_deferred(processor.process_item_async({"number": 3}))
        failures: list[Any] = []
        item.addErrback(failures.append)
        await until(lambda: list(processor._watchdog))
        warned = []
        for second in range(1, 3600):
            clock.advance(1)
            warned += [(second, it.getMessage()) for it in caplog.records]
            caplog.clear()
        assert [second for second, _ in warned] == [60, 120, 240, 480, 960, 1920]
        for second, message in warned:
            assert f"for {second} s, now in catalogue/reviews/fetch" in message
            assert "fails after 3600 s (DEFERKIT_ITEM_TIMEOUT)" in message
        assert not failures
        clock.advance(1)
        await until(lambda: failures)
        await processor.close_spider_async()
    (failure,) = failures
    assert isinstance(failure.value, StepTimeout)
    assert step_of(failure.value) == "catalogue/reviews/fetch"
    assert not clock.getDelayedCalls()


async def test_without_a_timeout_the_warnings_go_on(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with clock_set_to(clock), caplog.at_level(logging.WARNING):
        processor = a_processor(Stuck, DEFERKIT_ITEM_TIMEOUT=0)
        item = to_deferred(processor.process_item_async({"number": 3}))
        item.addErrback(lambda _: None)
        await until(lambda: list(processor._watchdog))
        clock.pump([60] * 2000)
        assert [int(it.getMessage().split(" for ")[1].split()[0]) for it in caplog.records] == [
            60 * 2**exponent for exponent in range(11)
        ]
        assert "DEFERKIT_ITEM_TIMEOUT" not in caplog.text
        item.cancel()
        await until(lambda: not list(processor._watchdog))
        processor._watchdog.stop()


async def test_an_item_in_its_grace_is_counted_where_it_is() -> None:
    clock = Clock()
    with clock_set_to(clock):
        processor = a_processor(Endless, After, LOGSTATS_INTERVAL=0)
        ended: list[Any] = []
        item = to_deferred(processor.process_item_async({"number": 3})).addBoth(ended.append)
        await until(lambda: list(processor._watchdog))
        clock.advance(3600)
        for _ in range(5):
            await turn()
        assert not ended
        assert processor.crawler is not None
        entered = {it.path: it.entered for it in step_stats(processor.crawler)}
        clock.advance(5)
        await until(lambda: ended)
    assert entered == {"Endless": 1, "After": 0}
    assert item is not None
    assert isinstance(ended[0].value, StepTimeout)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tasks count from Python 3.11 on")
@pytest.mark.parametrize("pipeline", [Stuck, Swallowing, Endless, Shop])
async def test_the_task_of_an_item_is_not_left_cancelled(runtime: str, pipeline: Any) -> None:
    if runtime == "twisted":
        pytest.skip("there are no tasks")
    import asyncio

    async def process() -> int:
        with pytest.raises(StepTimeout):
            await processor.process_item_async({"number": 3})
        task: Any = asyncio.current_task()
        await turn()  # a cancellation that is left would come here
        return int(task.cancelling())

    clock = Clock()
    with clock_set_to(clock):
        processor = a_processor(pipeline)
        task = asyncio.ensure_future(process())
        await until(lambda: list(processor._watchdog))
        for seconds in (3600, 5):
            clock.advance(seconds)
            for _ in range(5):
                await turn()
        assert await task == 0


# ----------------------------------------------------------------------------- media pipelines


class Release:
    """Lets the site answer shortly after an item has failed."""

    event: threading.Event

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        crawler.signals.connect(cls.release_soon, signals.item_error, weak=False)
        return cls()

    @classmethod
    def release_soon(cls) -> None:
        call_later(0.1, cls.event.set)


async def test_a_media_pipeline_is_not_cancelled_and_others_get_their_file(
    site: Site, tmp_path: Path
) -> None:
    """The first item has the only slot until its time is over; then the second asks as well."""
    site["/cover"], Release.event = site.held(b"a cover")
    trace = await crawl_with(
        Release,
        FilesPipeline,
        pages=[page(*({"number": it, "file_urls": [site.url("/cover")]} for it in (0, 1)))],
        FILES_STORE=str(tmp_path),
        DEFERKIT_CONCURRENT_ITEMS=1,
        DEFERKIT_ITEM_TIMEOUT=0.5,
    )
    ((late, step, error),) = trace.failed
    (item,) = trace.scraped
    assert (step, error) == ("FilesPipeline", "StepTimeout")
    assert {late["number"], item["number"]} == {0, 1}
    (file,) = item["files"]
    assert (tmp_path / file["path"]).read_bytes() == b"a cover"
    assert site.paths.count("/cover") == 1
