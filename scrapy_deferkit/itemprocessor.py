"""An item processor that bounds, times and contains the item stage."""

from __future__ import annotations

import logging
import warnings
from collections import Counter, deque
from collections.abc import Generator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from operator import length_hint
from time import perf_counter
from typing import TYPE_CHECKING, Any

from scrapy.exceptions import DropItem, ScrapyDeprecationWarning
from scrapy.pipelines import ItemPipelineManager
from scrapy.pipelines.media import MediaPipeline
from scrapy.settings import Settings
from scrapy.utils.misc import build_from_crawler, load_object
from scrapy.utils.python import global_object_name
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from ._config import Config, blaming, refuse_elsewhere
from ._crawl import Crawl, count, crawl_of, current_visit
from ._ends import end_as_failed, spawn_ending
from ._engine import (
    advance,
    is_pending,
    not_stopping,
    resolve,
    resume,
    settled,
    shield,
    waiting_in,
    watch_waits,
)
from ._lifecycle import close_spider, heed_close_spider
from ._runtime import CANCELLED, Repeated, Started, Timer, to_deferred
from ._scrapy import look_whether_to_close, spider_arguments
from ._secrets import shown_arguments
from ._stack import contained, nothing_returned
from ._watchdog import FIRST_WARNING, GRACE, Watchdog
from .defer import process_parallel_async
from .delivery import PIPELINES, Delivery, Visit
from .exceptions import (
    ClosingError,
    NoItemReturned,
    StackConfigError,
    StepCancelled,
    StepTimeout,
    counted,
    mark_step,
    step_of,
    text_of,
)
from .processor import is_stack, refuse_method_unless_taking
from .stats import FOLD_AT, StepStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scrapy.crawler import Crawler

    from ._engine import Waits
    from .stats import StepRecord

logger = logging.getLogger(__name__)

_ERRORS: tuple[type[BaseException], ...] = (Exception, *CANCELLED)
_NO_ARGUMENTS: dict[str, Any] = {}
_LOOK_AGAIN_AFTER = 0.1

_outer_visit: ContextVar[Visit | None] = ContextVar("deferkit_outer_visit", default=None)
"""The item that a method of a subclass has, which may call this class's; it ends with that."""


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

    * an item that stays is warned about, and fails after ``DEFERKIT_ITEM_TIMEOUT`` seconds with a
      :exc:`~scrapy_deferkit.exceptions.StepTimeout` that names the step it was in;
    * failures carry the step where they rose, and steps are counted and timed
      (:mod:`scrapy_deferkit.stats`);
    * a pipeline that returns ``None`` fails, unless ``DEFERKIT_NONE_IS_FAILURE`` is off;
    * ``CloseSpider`` raised in a pipeline closes the crawl with its reason;
    * ``DEFERKIT_MAX_FAILED_ITEMS`` closes it with the reason ``item_failures``;
    * when the spider closes, every pipeline is closed, whatever the others do.

    Of an item that comes from the gate (:mod:`scrapy_deferkit.gate`) it knows the page. One that
    comes another way, submitted by a pipeline say, is processed all the same.

    A subclass may override ``process_item_async()``: the item ends with what that returns or
    raises. One that overrides ``process_item()``, ``open_spider()`` or ``close_spider()`` alone, as
    before Scrapy 2.14, is served, with Scrapy's deprecation warning.

    Raises :exc:`~scrapy_deferkit.exceptions.StackConfigError` if a setting is wrong.
    """

    _has_begun = False
    _calls: tuple[Callable[[Any], Any], ...] = ()
    _timed: tuple[Any, ...] = ()

    def __init__(self, *middlewares: Any, crawler: Crawler | None = None) -> None:
        super().__init__(*middlewares, crawler=crawler)
        config = Config.from_settings(Settings() if crawler is None else crawler.settings)
        counts = config.step_stats and crawler is not None
        self._stats = StepStats.of(crawler) if counts and crawler is not None else None
        self._items = None if self._stats is None else self._stats.items
        self._pipelines: tuple[_Pipeline, ...] = ()
        for pipeline in self.middlewares:
            self._take(pipeline)
        self._has_begun = True
        self._none_is_failure = config.none_is_failure
        self._timeout = config.item_timeout
        self._watchdog: Watchdog[_Wait] = Watchdog(self._timeout)
        self._limit = config.max_failed_items
        self._failures: deque[int] = deque()
        self._delivery: Delivery | None = None
        self._crawl = Crawl() if crawler is None else crawl_of(crawler)
        self._looking: Timer | None = None
        self._publishing: Repeated | None = None
        self._publish_interval = 0.0
        if self._stats is not None:
            self._stats.before_reading = self._note_inside
        if crawler is not None:
            self._publish_interval = crawler.settings.getfloat("LOGSTATS_INTERVAL")
            self._crawl.on_failed = self._on_failed
            given = spider_arguments(crawler)
            self._crawl.spider_arguments = shown_arguments(given, config.secrets)
        self._own_process_item: Callable[[Any], Any] | None = None
        self._serve_subclass()

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Any:
        """Build the pipelines of *crawler*, with the steps of their stacks counted.

        With ``DEFERKIT_FALLBACK_ITEM_PROCESSOR``, that item processor in their place.
        """
        refuse_elsewhere(crawler.settings, cls, "ITEM_PROCESSOR")
        config = Config.from_settings(crawler.settings)
        if config.step_stats:
            StepStats.of(crawler)
        path = config.fallback_item_processor
        if path is None:
            return super().from_crawler(crawler)
        with blaming(f"DEFERKIT_FALLBACK_ITEM_PROCESSOR = {path!r}"):
            inner = _fallback_at(path, crawler)
        # Of a class of that name, which is the step's.
        named = type(type(inner).__name__, (_Fallback,), {})
        processor = cls(named(inner, crawler), crawler=crawler)
        processor.middlewares = getattr(inner, "middlewares", ())
        return processor

    def _serve_subclass(self) -> None:
        """Have what a subclass overrides called, under its old name too."""
        cls, base = type(self), DeferKitItemProcessor
        names = ("open_spider", "process_item", "close_spider")
        old = {name for name in names if _has_old_name_alone(self, name, base)}
        for name in sorted(old):
            warnings.warn(
                f"{global_object_name(cls)} overrides {name}() but doesn't override "
                f"{name}_async(). This is deprecated: rename it, and take its spider from "
                "self.crawler.spider.",
                ScrapyDeprecationWarning,
                stacklevel=3,
            )
        if "open_spider" in old:
            self.open_spider_async = self._serving(self.open_spider, self.open_spider_async)  # type: ignore[method-assign]
        if "close_spider" in old:
            self.close_spider_async = self._serving(self.close_spider, self.close_spider_async)  # type: ignore[method-assign]
        self._old_names = old
        if "process_item" in old:
            process_item = self.process_item
            self._own_process_item = lambda item: process_item(item, self._spider)
            self.process_item = lambda item, spider: to_deferred(self._process_own(item))  # type: ignore[method-assign]
        elif cls.process_item_async is not base.process_item_async:
            self._own_process_item = self.process_item_async
        if self._own_process_item is not None:
            self.process_item_async = self._process_own  # type: ignore[method-assign]

    def _serving(self, method: Callable[[Any], Any], base: Callable[[], Any]) -> Callable[[], Any]:
        is_within = False

        async def serve() -> None:
            nonlocal is_within
            if is_within:  # it calls the new name
                await base()
            else:
                is_within = True
                await resolve(method(self._spider))

        return serve

    def open_spider(self, spider: Any) -> Deferred[Any]:
        """Open the pipelines: what a subclass with this old name calls."""
        return self._under_old_name("open_spider", spider)

    def process_item(self, item: Any, spider: Any) -> Deferred[Any]:
        """Process *item*: what a subclass with this old name calls."""
        return self._under_old_name("process_item", spider, item)

    def close_spider(self, spider: Any) -> Deferred[Any]:
        """Close the pipelines: what a subclass with this old name calls."""
        return self._under_old_name("close_spider", spider)

    def _under_old_name(self, name: str, spider: Any, *args: Any) -> Deferred[Any]:
        warnings.warn(
            f"{global_object_name(type(self))}.{name}() is deprecated, use {name}_async() instead.",
            ScrapyDeprecationWarning,
            stacklevel=3,
        )
        self._set_compat_spider(spider)
        name = f"{name}_async"
        if getattr(type(self), name) is getattr(DeferKitItemProcessor, name):
            # Not the instance's: what a subclass has under the old name alone comes from there.
            return to_deferred(getattr(DeferKitItemProcessor, name)(self, *args))
        return to_deferred(getattr(self, name)(*args))

    def _add_middleware(self, mw: Any) -> None:
        super()._add_middleware(mw)
        if self._has_begun:  # somebody adds a pipeline to the crawl
            self._take(mw)

    def _take(self, pipeline: Any) -> None:
        """Take *pipeline* behind the others, if it processes items."""
        if not hasattr(pipeline, "process_item"):
            return
        taken = {other.name for other in self._pipelines}
        method = self.methods["process_item"][len(taken)]
        assert method is not None
        kind = type(pipeline).__name__
        name, number = kind, 1
        while name in taken:
            number += 1
            name = f"{kind}#{number}"
        with blaming("ITEM_PIPELINES"):
            refuse_method_unless_taking(method, ("item",), name)
        bound = getattr(pipeline, "bound", None)
        root: str = getattr(bound, "path", "") if is_stack(bound) else ""
        record = None if self._stats is None else self._stats.add(name.__str__, root)
        call = self._adapted(method, pipeline)
        self._pipelines = (*self._pipelines, _Pipeline(name, call, bool(root), record))
        self._calls = tuple(pipeline.call for pipeline in self._pipelines)
        self._timed = tuple(
            (pipeline.call, pipeline.record.work.recent, pipeline.record.work.recent.append)
            for pipeline in self._pipelines
            if pipeline.record is not None
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
        """Open the dead letters, and then every pipeline."""
        if self.crawler is not None:
            self._delivery = await Delivery.begin(self.crawler)
        try:
            # Not Scrapy's, which warns of a Deferred: here it goes on working.
            opening = [partial(self._call, method) for method in self.methods["open_spider"]]
            await process_parallel_async(opening, None)
        except BaseException:
            if self._delivery is not None:
                await self._delivery.close()
            raise
        if self._stats is not None and self._publish_interval > 0:
            self._publishing = Repeated(self._publish_interval, self._stats.publish)

    async def process_item_async(self, item: Any) -> Any:
        """Return *item* as the pipelines made it.

        Raises what a pipeline raises, once that is a dead letter, and
        :exc:`~scrapy_deferkit.exceptions.StepTimeout` after ``DEFERKIT_ITEM_TIMEOUT``.
        """
        # Else a subclass calls this, and ends the item: in no context, if by a Deferred's callback
        # on a reactor without asyncio.
        ends_here = self._own_process_item is None
        outer = None if ends_here else _outer_visit.get()
        if ends_here:
            visit = self._enter(item)
        else:
            visit = outer or Visit(self._crawl, PIPELINES, item, None)
            _outer_visit.set(None)  # what a pipeline submits is an item of its own
        wait: _Wait | None = None
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
            # Not process_chain_async(): what has to be watched is what waits, and until then
            # nobody pays for a coroutine.
            value, kind = advance(calls, item, (), _NO_ARGUMENTS)
            if kind:
                waits: Waits = {}
                watched = watch_waits(waits)
                nothing = partial(self._nothing_returned, left) if self._none_is_failure else None
                work = resume(calls, value, nothing)
                try:
                    waiting = work.send(None)
                    wait = _Wait(work, waiting)
                    wait.processor, wait.visit, wait.left, wait.waits = self, visit, left, waits
                    self._watchdog.begin(wait)
                    value = await wait
                    if wait.expired_at is not None:
                        raise CancelledError
                except StopIteration as done:
                    value = done.value
                finally:
                    watch_waits(watched)
                    if wait is not None:
                        self._watchdog.end(wait)
        except BaseException as error:
            failure = self._failure(calls, left, wait, error)
            if ends_here:
                await self._end(visit, failure)
            if failure is error:
                raise
            raise failure from error
        else:
            if ends_here:
                visit.done()
            return value
        finally:
            if ends_here:
                self._leave(visit)
            else:
                _outer_visit.set(outer)

    async def _process_own(self, item: Any) -> Any:
        """Process *item* by the subclass; it ends with what that returns or raises."""
        outer, process = _outer_visit.get(), self._own_process_item
        assert process is not None
        if outer is not None and "process_item" in self._old_names:  # it calls the new name
            return await DeferKitItemProcessor.process_item_async(self, item)
        visit = self._enter(item)
        _outer_visit.set(visit)
        try:
            value = await resolve(process(item))
        except BaseException as error:
            failure = contained(error) or error
            if isinstance(failure, Exception) and not isinstance(failure, DropItem):
                if step_of(failure) is None:
                    mark_step(failure, type(self).__name__)
                if self.crawler is not None:
                    heed_close_spider(self.crawler, failure)
            await self._end(visit, failure)
            if failure is error:
                raise
            raise failure from error
        else:
            visit.done()
            return value
        finally:
            _outer_visit.set(outer)
            self._leave(visit)

    def _enter(self, item: Any) -> Visit:
        visit = Visit.taken(item)
        if visit is None:
            parent = current_visit.get()
            request = None if parent is None else parent.request
            visit = Visit(self._crawl, PIPELINES, item, None, request=request)
            self._crawl.items.begin()
        if self._items is not None:
            visit.began = self._items.begin()
        return visit

    async def _end(self, visit: Visit, error: BaseException) -> None:
        if self._items is not None:
            self._items.note(error)
        if isinstance(error, DropItem):
            visit.done("dropped")
        elif isinstance(error, Exception):
            await visit.failed(error)
        elif not visit.is_taken and self.crawler is not None and isinstance(error, CANCELLED):
            # By who has submitted it, and goes on perhaps; the gate sees to its own.
            cancelled = StepCancelled("who had the item processed has cancelled that")
            spawn_ending(self.crawler, end_as_failed(self.crawler, visit, None, cancelled))

    def _leave(self, visit: Visit) -> None:
        if self._items is not None:
            self._items.end(visit.began)
        visit.leave()
        if not visit.is_taken:
            self._crawl.items.end()
            if self._looking is None:
                self._look()

    def _fold(self) -> None:
        for pipeline in self._pipelines:
            if pipeline.record is not None:
                pipeline.record.work.fold()

    def _position(self, left: Iterator[Any]) -> int:
        """Tell which pipeline an item is in, for which those in *left* have not been called."""
        return len(self._calls) - length_hint(left) - 1

    def _nothing_returned(self, left: Iterator[Any]) -> NoItemReturned:
        return nothing_returned(
            self._pipelines[self._position(left)].name,
            more="; DEFERKIT_NONE_IS_FAILURE = False has it passed on, as Scrapy does",
        )

    def _failure(
        self,
        calls: Iterator[Any],
        left: Iterator[Any],
        wait: _Wait | None,
        error: BaseException,
    ) -> BaseException:
        """Return what the item ends with, after *error*; count it, and note where it rose."""
        if isinstance(calls, Generator):
            calls.close()
        if isinstance(error, GeneratorExit):
            return error
        expired_at = None if wait is None else wait.expired_at
        pipeline = self._pipelines[self._position(left) if expired_at is None else expired_at]
        record = pipeline.record
        if wait is not None and expired_at is not None:
            error = StepTimeout(wait.expired_in, self._timeout)
            mark_step(error, wait.expired_in)
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
        if self.crawler is not None:
            heed_close_spider(self.crawler, error)
        return error

    def _on_failed(self) -> None:
        crawler, limit = self.crawler, self._limit
        assert crawler is not None
        count(crawler, "items/failed")
        if limit is None:
            return
        ended = self._crawl.ended
        self._failures.append(ended)
        if limit.of_last is not None:
            while self._failures[0] <= ended - limit.of_last:
                self._failures.popleft()
        if len(self._failures) == limit.items:
            logger.error(
                "%s%s failed: closing the spider (DEFERKIT_MAX_FAILED_ITEMS)",
                counted(limit.items, "item"),
                f" of the last {limit.of_last}" if limit.of_last else "",
                extra={"spider": self._spider},
            )
            self._limit = None
            close_spider(crawler, "item_failures")

    def _look(self) -> None:
        """Let Scrapy look whether it can close, until all that it has in work has ended.

        It looks when a response ends, and an item that came another way may have none.
        """
        self._looking = None
        if self.crawler is not None and look_whether_to_close(self.crawler):
            self._looking = Timer(_LOOK_AGAIN_AFTER, self._look)

    async def close_spider_async(self) -> None:
        """Close every pipeline, all at once and the last one first, whatever one of them does.

        Raises one :exc:`~scrapy_deferkit.exceptions.ClosingError` that carries all failures.
        """
        # Scrapy before 2.19 does not wait for those of start().
        await self._crawl.items.until_none()
        self._watchdog.stop()
        errors: list[BaseException] = []
        try:
            await self._close_pipelines(errors)
        finally:
            for timer in (self._publishing, self._looking):
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
            try:
                result = self._call(method)
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

    def _call(self, method: Any, _: Any = None) -> Any:
        wants_spider = method in self._mw_methods_requiring_spider
        return method(self._spider) if wants_spider else method()

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
        inside = Counter(wait.position for wait in self._watchdog)
        for position, pipeline in enumerate(self._pipelines):
            if pipeline.record is not None:
                pipeline.record.inside = inside[position]


def _has_old_name_alone(processor: Any, name: str, base: type) -> bool:
    """Check whether Scrapy calls *name* of *processor*, and not its successor ``name_async``."""
    cls, new = type(processor), f"{name}_async"
    if not hasattr(processor, new):
        return True
    return (
        issubclass(cls, base)
        and getattr(cls, name) is not getattr(base, name)
        and getattr(cls, new) is getattr(base, new)
    )


def _fallback_at(path: Any, crawler: Crawler) -> Any:
    try:
        component = load_object(path)
        if not isinstance(component, type):
            raise TypeError("this is not a class")
    except Exception as error:
        raise StackConfigError(
            f"expected an item processor or its import path ({text_of(error)})"
        ) from error
    if issubclass(component, DeferKitItemProcessor):
        raise StackConfigError("it is a DeferKitItemProcessor itself: put it into ITEM_PROCESSOR")
    inner = build_from_crawler(component, crawler)
    for name in ("open_spider", "process_item", "close_spider"):
        if not hasattr(inner, name) and not hasattr(inner, f"{name}_async"):
            raise StackConfigError(f"an item processor has {name}_async(), which this has not")
    return inner


class _Fallback:
    """Another item processor, as the only pipeline."""

    def __init__(self, inner: Any, crawler: Crawler) -> None:
        self._inner = inner
        self._crawler = crawler

    async def open_spider(self) -> None:
        await self._call("open_spider")

    async def process_item(self, item: Any) -> Any:
        return await self._call("process_item", item)

    async def close_spider(self) -> None:
        await self._call("close_spider")

    async def _call(self, name: str, *args: Any) -> Any:
        if _has_old_name_alone(self._inner, name, ItemPipelineManager):
            return await resolve(getattr(self._inner, name)(*args, self._crawler.spider))
        return await resolve(getattr(self._inner, f"{name}_async")(*args))


class _Wait(Started):
    """An item that waits in a pipeline."""

    processor: DeferKitItemProcessor
    visit: Visit
    waits: Waits
    left: Iterator[Any]
    """The pipelines that have not been called; how many those are tells where the item is."""

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

    def __str__(self) -> str:
        return f"{self.expired_in or self.step}, with the item of {self.visit.origin},"

    def warn(self, seconds: float) -> None:
        """Log that the item has been here for *seconds*."""
        timeout = self.processor._timeout
        self._log(
            logging.WARNING,
            "An item of %s has been in the pipelines for %g s, now in %s%s",
            self.visit.origin,
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
            "%s was cancelled after %g s and has not ended %g s later; the item of %s fails "
            "without it",
            self.expired_in,
            self.processor._timeout,
            GRACE,
            self.visit.origin,
        )
        super().give_up()

    def _log(self, level: int, message: str, *args: object) -> None:
        logger.log(level, message, *args, extra={"spider": self.processor._spider})


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
