"""An item processor that bounds, times and contains the item stage."""

from __future__ import annotations

import logging
import sys
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass
from operator import length_hint
from time import perf_counter
from typing import TYPE_CHECKING, Any

from scrapy import signals
from scrapy.exceptions import CloseSpider, DropItem
from scrapy.pipelines import ItemPipelineManager
from scrapy.pipelines.media import MediaPipeline
from scrapy.settings import Settings
from scrapy.utils.python import global_object_name
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.python.failure import Failure

from ._config import Config
from ._engine import (
    Gate,
    advance,
    granted,
    is_pending,
    not_stopping,
    resolve,
    resume,
    settled,
    shield,
    waiting_in,
    watch_waits,
)
from ._lifecycle import close_spider, engine_of
from ._runtime import CANCELLED, Repeated, Started, Timer, call_soon, to_deferred
from ._stack import contained
from ._watchdog import FIRST_WARNING, GRACE, Watchdog
from .delivery import Delivery
from .exceptions import ClosingError, StepTimeout, mark_step, step_of, text_of
from .processor import is_stack
from .stats import FOLD_AT, StepStats

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from scrapy.crawler import Crawler

    from ._engine import Waits
    from .stats import StepRecord

logger = logging.getLogger(__name__)

_ERRORS: tuple[type[BaseException], ...] = (Exception, *CANCELLED)
_NO_ARGUMENTS: dict[str, Any] = {}
_RECHECK_AFTER = 0.1


@dataclass(frozen=True, slots=True)
class _Pipeline:
    """One ``process_item`` of ``ITEM_PIPELINES``."""

    name: str
    call: Callable[[Any], Any]
    holds_stack: bool
    record: StepRecord | None


class DeferKitItemProcessor(ItemPipelineManager):
    """Scrapy's item pipeline manager, on the engine of this package.

    Runs ``ITEM_PIPELINES`` as Scrapy does, whatever their style, and adds to that:

    * at most ``DEFERKIT_CONCURRENT_ITEMS`` items are in pipelines at once, across the crawl;
    * an item that stays is warned about, and fails after ``DEFERKIT_ITEM_TIMEOUT`` seconds with a
      :exc:`~scrapy_deferkit.exceptions.StepTimeout` that names the step it was in;
    * failures carry the step where they rose, and steps are counted and timed
      (:mod:`scrapy_deferkit.stats`);
    * ``CloseSpider`` raised in a pipeline closes the crawl with its reason;
    * ``DEFERKIT_MAX_FAILED_ITEMS`` closes it with the reason ``item_failures``;
    * when the spider closes, every pipeline is closed, whatever the others do.

    Raises :exc:`~scrapy_deferkit.exceptions.StackConfigError` where a setting is wrong.
    """

    def __init__(self, *middlewares: Any, crawler: Crawler | None = None) -> None:
        super().__init__(*middlewares, crawler=crawler)
        config = Config.from_settings(Settings() if crawler is None else crawler.settings)
        counts = config.step_stats and crawler is not None
        self._stats = StepStats.of(crawler) if counts and crawler is not None else None
        self._pipelines = tuple(self._make_pipelines())
        self._calls = tuple(pipeline.call for pipeline in self._pipelines)
        self._timed = tuple(
            (pipeline.call, pipeline.record.work.recent, pipeline.record.work.recent.append)
            for pipeline in self._pipelines
            if pipeline.record is not None
        )
        bound = config.concurrent_items
        self._slots = DeferredSemaphore(bound) if bound else None
        self._timeout = config.item_timeout
        self._watchdog: Watchdog[_Visit] = Watchdog(self._timeout)
        self._limit = config.max_failed_items
        self._ended = 0
        self._failures: deque[int] = deque()
        self._delivery: Delivery | None = None
        self._keeps_rows = False
        self._copy: Callable[[Any], Any] | None = None
        self._inside = 0
        self._emptied: Gate | None = None
        self._rechecking: Timer | None = None
        self._publishing: Repeated | None = None
        self._publish_interval = 0.0
        if self._stats is not None:
            self._stats.before_reading = self._note_inside
        if crawler is not None:
            self._publish_interval = crawler.settings.getfloat("LOGSTATS_INTERVAL")
            crawler.signals.connect(self._on_item_error, signals.item_error)
            if self._limit is not None and self._limit.of_last is not None:
                for signal in (signals.item_scraped, signals.item_dropped, signals.item_error):
                    crawler.signals.connect(self._on_item_ended, signal)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Any:
        """Build the pipelines of *crawler*, with the steps of their stacks counted."""
        if Config.from_settings(crawler.settings).step_stats:
            StepStats.of(crawler)
        return super().from_crawler(crawler)

    def _make_pipelines(self) -> Iterator[_Pipeline]:
        taken: set[str] = set()
        owners = (it for it in self.middlewares if hasattr(it, "process_item"))
        for pipeline, method in zip(owners, self.methods["process_item"], strict=True):
            assert method is not None
            kind = type(pipeline).__name__
            name, number = kind, 1
            while name in taken:
                number += 1
                name = f"{kind}#{number}"
            taken.add(name)
            bound = getattr(pipeline, "bound", None)
            root: str = getattr(bound, "path", "") if is_stack(bound) else ""
            yield _Pipeline(
                name,
                self._adapted(method, pipeline),
                bool(root),
                None if self._stats is None else self._stats.add(name.__str__, root),
            )

    def _adapted(self, method: Callable[..., Any], pipeline: Any) -> Callable[[Any], Any]:
        """Give *method* in the form ``call(item)``."""
        call = method
        if method in self._mw_methods_requiring_spider:

            def call(item: Any) -> Any:
                return method(item, self._spider)

        if not isinstance(pipeline, MediaPipeline):
            return call

        def call_shielded(item: Any) -> Any:
            # Media pipelines share a download between items: cancelled with one of them, it would
            # leave the others waiting for ever.
            result = call(item)
            return shield(result) if is_pending(result) else result

        return call_shielded

    async def open_spider_async(self) -> None:
        """Open every pipeline, and the journal before them."""
        if self.crawler is not None:
            self._delivery = delivery = await Delivery.begin(self.crawler)
            self._keeps_rows = delivery is not None and delivery.keeps_rows
            if delivery is not None and not delivery.keeps_rows:
                self._copy = delivery.copy
        try:
            await super().open_spider_async()
        except BaseException:
            if self._delivery is not None:
                await self._delivery.close()
            raise
        if self._stats is not None and self._publish_interval > 0:
            self._publishing = Repeated(self._publish_interval, self._stats.publish)
        if self.crawler is not None and engine_of(self.crawler) is not None:
            self._recheck()

    def process_item_async(self, item: Any) -> Coroutine[Any, Any, Any]:
        """Give, once awaited, *item* as the pipelines made it.

        Raises what a pipeline raises, and :exc:`~scrapy_deferkit.exceptions.StepTimeout` after
        ``DEFERKIT_ITEM_TIMEOUT``.
        """
        # Not a coroutine function itself: one more of them is a tenth of what an item costs.
        return self._deliver(item) if self._keeps_rows else self._process(item)

    async def _deliver(self, item: Any) -> Any:
        """Process *item*, which has a row until it has ended."""
        delivery = self._delivery
        assert delivery is not None
        stay = delivery.enter_pipelines(item)
        waits = stay.write is not None and not stay.write.is_over
        if waits:
            self._inside += 1
        try:
            write = stay.write
            if write is not None:
                if waits:
                    await write.wait()
                if write.error is not None:
                    delivery.note_untracked()
            result = await self._process(item)
        except DropItem:
            delivery.end(stay)
            raise
        except Exception as error:
            delivery.failed_in_pipelines(stay, item, error)
            raise
        except BaseException:
            delivery.leave()
            raise
        finally:
            if waits:
                self._leave()
        delivery.end(stay)
        return result

    async def _process(self, item: Any) -> Any:
        slots = self._slots
        visit: _Visit | None = None
        waits: Waits | None = None
        outer: Waits | None = None
        holds_slot = slots is not None and not slots.tokens and not _is_nested()
        if holds_slot:
            await self._wait_for_slot()
        as_entered = None if self._copy is None else self._copy(item)
        left: Iterator[Any]
        calls: Iterator[Callable[[Any], Any]]
        if self._timed:
            if len(self._timed[0][1]) >= FOLD_AT:
                self._fold()
            left = iter(self._timed)
            calls = _timing(left)
        else:
            left = calls = iter(self._calls)
        try:
            # Not process_chain_async(): what has to be bounded and watched is what waits, and
            # until then nobody pays for a coroutine.
            value, kind = advance(calls, item, (), _NO_ARGUMENTS)
            if not kind:
                return value
            work = resume(calls, value)
            waits = {}
            outer = watch_waits(waits)
            try:
                waiting = work.send(None)
            except StopIteration as done:
                return done.value
            if not holds_slot and not _is_nested():
                holds_slot = True
                self._take_slot()
            visit = _Visit(work, waiting)
            visit.processor, visit.left, visit.waits = self, left, waits
            self._watchdog.begin(visit)
            result = await visit
            if visit.expired_at is not None:
                raise CancelledError
            return result
        except BaseException as error:
            failure = self._failure(calls, left, visit, error)
            if self._copy is not None and isinstance(failure, Exception):
                self._keep(as_entered, item, failure)
            if failure is error:
                raise
            raise failure from error
        finally:
            if waits is not None:
                watch_waits(outer)
            if visit is not None:
                self._watchdog.end(visit)
            if holds_slot:
                self._give_slot_back()

    def _keep(self, as_entered: Any, item: Any, failure: Exception) -> None:
        if self._delivery is not None and not isinstance(failure, DropItem):
            self._delivery.failed_in_pipelines(as_entered, item, failure)

    async def _wait_for_slot(self) -> None:
        slots = self._slots
        assert slots is not None
        started = perf_counter()
        self._inside += 1
        try:
            await granted(slots.acquire(), slots.release)
        except BaseException:
            self._inside -= 1
            raise
        if self._stats is not None:
            self._stats.note_waiting(perf_counter() - started)

    def _take_slot(self) -> None:
        self._inside += 1
        if self._slots is not None:
            self._slots.acquire()

    def _give_slot_back(self) -> None:
        if self._slots is not None:
            if self._slots.waiting:
                # On a turn of its own: the next item begins, and may end, before it returns.
                call_soon(self._slots.release)
            else:
                self._slots.release()
        self._leave()

    def _leave(self) -> None:
        self._inside -= 1
        if not self._inside and self._emptied is not None:
            call_soon(self._emptied.open)  # when the signal of this item has been sent

    def _fold(self) -> None:
        for pipeline in self._pipelines:
            if pipeline.record is not None:
                pipeline.record.work.fold()

    def _position(self, left: Iterator[Any]) -> int:
        """Tell which pipeline an item is in, for which those in *left* have not been called."""
        return len(self._calls) - length_hint(left) - 1

    def _failure(
        self,
        calls: Iterator[Any],
        left: Iterator[Any],
        visit: _Visit | None,
        error: BaseException,
    ) -> BaseException:
        """Give what the item ends with, after *error*; count it, and note where it rose."""
        if isinstance(calls, Generator):
            calls.close()
        if isinstance(error, GeneratorExit):
            return error
        expired_at = None if visit is None else visit.expired_at
        pipeline = self._pipelines[self._position(left) if expired_at is None else expired_at]
        record = pipeline.record
        if visit is not None and expired_at is not None:
            error = StepTimeout(visit.expired_in, self._timeout)
            mark_step(error, visit.expired_in)
        elif not isinstance(error, Exception):
            failure = contained(error)
            if failure is None:
                if record is not None:
                    record.cancelled += 1
                return error
            error = failure
        elif isinstance(error, StopIteration):
            error = not_stopping(error)
        if isinstance(error, DropItem):
            if record is not None:
                record.dropped += 1
            return error
        if record is not None:
            record.failed += 1
        if expired_at is None and not (pipeline.holds_stack and step_of(error)):
            mark_step(error, pipeline.name)
        if isinstance(error, CloseSpider) and self.crawler is not None:
            close_spider(self.crawler, error.reason or "cancelled")
        return error

    def _on_item_ended(self) -> None:
        self._ended += 1

    def _on_item_error(self) -> None:
        crawler, limit = self.crawler, self._limit
        assert crawler is not None
        crawler.stats.inc_value("deferkit/items/failed")
        if limit is None:
            return
        self._failures.append(self._ended)
        if limit.of_last is not None:
            while self._failures[0] <= self._ended - limit.of_last:
                self._failures.popleft()
        if len(self._failures) == limit.items:
            logger.error(
                "%d items%s have failed: closing the spider (DEFERKIT_MAX_FAILED_ITEMS)",
                limit.items,
                f" of the last {limit.of_last}" if limit.of_last else "",
                extra={"spider": self._spider},
            )
            self._limit = None
            close_spider(crawler, "item_failures")

    def _recheck(self) -> None:
        """Have Scrapy look again and again whether it can close.

        It looks when a response ends; an item that ``start()`` yielded has none, and the crawl
        would wait for ever, for the item or for a slow handler of its signal. This is the one
        private call of Scrapy's that it needs.
        """
        scraper = self._closing_scraper()
        if scraper is not None and scraper.slot.is_idle():
            self._rechecking = None
            scraper._check_if_closing()
        else:
            self._rechecking = Timer(_RECHECK_AFTER, self._recheck)

    def _closing_scraper(self) -> Any:
        engine = None if self.crawler is None else engine_of(self.crawler)
        scraper = getattr(engine, "scraper", None)
        closing = getattr(getattr(scraper, "slot", None), "closing", None)
        is_closing = closing is not None and not closing.called
        return scraper if is_closing and hasattr(scraper, "_check_if_closing") else None

    async def close_spider_async(self) -> None:
        """Close every pipeline, all at once and the last one first, whatever one of them does.

        Raises one :exc:`~scrapy_deferkit.exceptions.ClosingError` that carries all failures.
        """
        if self._inside:  # Scrapy before 2.19 does not wait for start()'s
            self._emptied = Gate([])
            await resolve(self._emptied.deferred)
        self._watchdog.stop()
        errors: list[BaseException] = []
        try:
            await self._close_pipelines(errors)
        finally:
            for timer in (self._publishing, self._rechecking):
                if timer is not None:
                    timer.cancel()
            if self._stats is not None:
                self._stats.publish()
        if errors:
            raise ClosingError("ITEM_PIPELINES", errors)

    async def _close_pipelines(self, errors: list[BaseException]) -> None:
        # No dict: pipelines may inherit one method, and so have one name.
        begun: list[tuple[str, Deferred[Any]]] = []
        for method in self.methods["close_spider"]:
            assert method is not None
            has_name = hasattr(method, "__qualname__")
            name = global_object_name(method) if has_name else repr(method)
            wants_spider = method in self._mw_methods_requiring_spider
            try:
                result: Any = method(self._spider) if wants_spider else method()
                if is_pending(result):
                    deferred: Deferred[Any] = to_deferred(result)
                    deferred.addErrback(self._note_failed_close, name, errors)
                    begun.append((name, deferred))
            except _ERRORS:
                self._note_failed_close(Failure(), name, errors)
        warning = self._warn_while_closing(begun)
        try:
            for _, deferred in begun:
                await settled(deferred)
        finally:
            warning.cancel()

    def _note_failed_close(self, failure: Failure, name: str, errors: list[BaseException]) -> None:
        error = failure.value
        assert error is not None
        errors.append(error)
        if self.crawler is not None:
            self.crawler.stats.inc_value("deferkit/pipelines/failed_to_close")
        extra = {"spider": self._spider}
        logger.error("%s failed: %s", name, text_of(error), exc_info=error, extra=extra)

    def _warn_while_closing(self, begun: list[tuple[str, Deferred[Any]]]) -> Repeated:
        def warn() -> None:
            names = ", ".join(name for name, deferred in begun if not deferred.called)
            extra = {"spider": self._spider}
            logger.warning("The spider waits for %s to end", names, extra=extra)

        return Repeated(FIRST_WARNING, warn)

    def _note_inside(self) -> None:
        """Let the records know how many items are in each pipeline."""
        inside = Counter(visit.position for visit in self._watchdog)
        for position, pipeline in enumerate(self._pipelines):
            if pipeline.record is not None:
                pipeline.record.inside = inside[position]


class _Visit(Started):
    """The stay of an item that waits in a pipeline."""

    processor: DeferKitItemProcessor
    left: Iterator[Any]
    """The pipelines that have not been called; how many those are tells where the item is."""

    waits: Waits
    """The steps of stacks that the item waits in."""

    expired_at: int | None = None
    expired_in = ""

    @property
    def position(self) -> int:
        """Which pipeline the item is in."""
        if self.expired_at is not None:
            return self.expired_at
        return self.processor._position(self.left)

    @property
    def step(self) -> str:
        """The path of the step that the item waits in."""
        return waiting_in(self.waits) or self.processor._pipelines[self.position].name

    def warn(self, seconds: float) -> None:
        """Log that the item has been here for *seconds*."""
        timeout = self.processor._timeout
        self._log(
            logging.WARNING,
            "An item has been in the pipelines for %g s, now in %s%s",
            seconds,
            self.step,
            f"; it fails after {timeout:g} s (DEFERKIT_ITEM_TIMEOUT)" if timeout else "",
        )

    def expire(self) -> None:
        """Cancel the step; the item fails, whatever the step does, and no other step runs."""
        self.expired_at, self.expired_in = self.position, self.step
        deque(self.left, maxlen=0)
        self.cancel()

    def give_up(self) -> None:
        """End the step, which was cancelled and goes on."""
        self._log(
            logging.ERROR,
            "%s was cancelled after %g s and has not ended %g s later; its item fails without it",
            self.expired_in,
            self.processor._timeout,
            GRACE,
        )
        super().give_up()

    def _log(self, level: int, message: str, *args: object) -> None:
        logger.log(level, message, *args, extra={"spider": self.processor._spider})


def _is_nested() -> bool:
    """Tell whether a pipeline awaits the item that has just come: its own item's slot is for both.

    With a slot of its own the one would wait for the other for ever, once all slots are taken.
    """
    ours = sys._getframe(1)
    frame = ours.f_back
    while frame is not None and frame.f_code is not ours.f_code:
        frame = frame.f_back
    return frame is not None


def _timing(
    steps: Iterator[tuple[Callable[[Any], Any], list[float], Callable[[float], None]]],
) -> Generator[Callable[[Any], Any], None, None]:
    """Give one call after the other, and note how long each has taken when the next is due."""
    started = perf_counter()
    for call, _, note in steps:
        try:
            yield call
        except GeneratorExit:  # it failed
            note(perf_counter() - started)
            raise
        ended = perf_counter()
        note(ended - started)
        started = ended
