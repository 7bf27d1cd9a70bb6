"""The gate of the item stage: a spider middleware that has each item processed itself."""

from __future__ import annotations

import logging
from inspect import isasyncgenfunction
from time import perf_counter
from typing import TYPE_CHECKING, Any

from scrapy import signals
from scrapy.http import Request, Response

from ._config import Config
from ._crawl import count, crawl_of, current_visit
from ._ends import end_as_failed, spawn_ending
from ._engine import END, PASSED, Iteration, resolve, shield
from ._lifecycle import close_spider, heed_close_spider
from ._runtime import CANCELLED, call_soon
from ._scrapy import (
    engine_of,
    is_closing,
    is_downloading,
    look_whether_to_close,
    wrap_closing,
    wrap_errback_output,
)
from ._slots import Slots
from .delivery import PIPELINES, SPIDER_STACK, Visit
from .exceptions import DeferKitError, StepCancelled, text_of
from .replay import Replay, is_spider_stack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from scrapy.core.engine import ExecutionEngine
    from scrapy.crawler import Crawler
    from typing_extensions import Self

logger = logging.getLogger(__name__)


class _Items(Iteration):
    """The items of one output."""

    def __init__(
        self, crawler: Crawler, outputs: Any, count: int | None, take: Any, in_one_task: bool
    ) -> None:
        super().__init__(outputs, count, take, workers_lead=not in_one_task, is_detached=True)
        self._crawler = crawler

    def _fail(self, error: BaseException) -> None:
        heed_close_spider(self._crawler, error)  # Scrapy hears of it when the items have ended
        super()._fail(error)


class ItemGate:
    """Have the items of spider output processed, each with its response at hand.

    Requests of a response are crawled in their order; those of ``start()`` pass.

    It stands next to the engine; the add-on puts it there. At most ``CONCURRENT_ITEMS`` items of
    one response, and ``DEFERKIT_CONCURRENT_ITEMS`` of the crawl, are in the item stage at once,
    those of ``start()`` and of errbacks among them. A worker is begun only if an item waits and
    another one is there. In a replay, the dead letters take the place of what ``start()`` yields.
    """

    def __init__(self, crawler: Crawler) -> None:
        config = Config.from_settings(crawler.settings)
        self._crawler = crawler
        self._crawl = crawl_of(crawler)
        self._of_response = crawler.settings.getint("CONCURRENT_ITEMS")
        self._of_crawl = config.concurrent_items or None
        self._asking = 0
        self._slots = Slots(
            config.concurrent_items,
            lambda: self._asking > 0,
            lambda: not is_downloading(crawler),
            self._on_overdrawn,
        )
        self._has_overdrawn = False
        self._engine: ExecutionEngine
        crawler.signals.connect(self._on_spider_opened, signals.spider_opened)
        crawler.signals.connect(self._on_request_scheduled, signals.request_scheduled)
        crawler.signals.connect(self._slots.close, signals.spider_closed)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Build the middleware of *crawler*."""
        return cls(crawler)

    def _on_spider_opened(self) -> None:
        engine = engine_of(self._crawler)
        assert engine is not None
        self._engine = engine
        # Scrapy reads it for each output: its workers have nothing to carry now.
        engine.scraper.concurrent_items = 1
        wrap_errback_output(
            engine.scraper,
            lambda outputs, request, failure: self._requests(
                outputs, failure, request, request.url, self._of_response
            ),
        )
        wrap_closing(engine, self._close)

    async def _close(self, close: Callable[..., Awaitable[None]], reason: str) -> None:
        if current_visit.get() is None:
            await close(reason=reason)
        else:
            # A pipeline that awaits it waits for its own item, until that is cancelled: the closing
            # must not be cancelled with it.
            await resolve(shield(close(reason=reason)))

    # ------------------------------------------------------------------------------ what comes in

    async def process_spider_output(
        self, response: Response, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        """Have the items of *result* processed and its requests crawled; yields nothing.

        Ends when the items have.
        """
        url = getattr(response, "url", None)
        page = getattr(response, "request", None)
        callback = getattr(page, "callback", None)
        # An asynchronous one may have a time limit around what it yields, which is its task's.
        in_one_task = isasyncgenfunction(callback or getattr(self._crawler.spider, "parse", None))
        async for request in self._requests(
            result, response, page, url, self._of_response, in_one_task=in_one_task
        ):
            yield request

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yield the requests of *start*; ends when its items have.

        Items never run in the task that iterates *start*, which Ctrl-C cancels.
        """
        replay = Replay.of(self._crawler)
        source = start if replay is None else replay.visits()
        # A replay takes no letter that does not enter: it is under a lease.
        count = None if replay is None else self._of_crawl
        try:
            async for request in self._requests(source, None, None, None, count, is_start=True):
                yield request
        except CANCELLED:
            # Scrapy takes a cancellation by Twisted for an error of start().
            if not is_closing(self._crawler):
                raise
        if replay is not None and not is_closing(self._crawler):
            # At once: a spider that finds more to do when it is idle would go on for ever.
            close_spider(self._crawler, "finished")

    def process_start_requests(self, start_requests: Iterable[Any], spider: Any) -> Iterable[Any]:
        """Return *start_requests* as they are; for old-style middlewares of Scrapy 2.15."""
        if self._crawler.settings.get("DEFERKIT_REPLAY") is not None:
            raise DeferKitError(
                "dead letters cannot be replayed with spider middlewares that have "
                "process_start_requests() alone: let them have process_start() too"
            )
        return start_requests

    async def _requests(
        self,
        outputs: AsyncIterator[Any],
        response: Any,
        page: Request | None,
        page_url: str | None,
        count: int | None,
        *,
        is_start: bool = False,
        in_one_task: bool = True,
    ) -> AsyncIterator[Any]:
        """Have the items of *outputs* processed, *count* at once; yield the requests of a start.

        Those of a response are crawled at once: one that cannot be would end Scrapy's only worker.
        Items that have begun are processed, whatever becomes of *outputs*.
        """

        def take(output: Any) -> Any:
            if output is None:
                return None
            if isinstance(output, Request):
                return PASSED if is_start else self._crawl_request(output)
            is_visit = isinstance(output, Visit)
            visit = (
                output
                if is_visit
                else Visit(self._crawl, PIPELINES, output, page_url, request=page)
            )
            if is_start and is_closing(self._crawler):
                iteration.stop()
                self._refuse(visit, response, "the crawl was closed before the item could enter")
                return None
            if self._slots.take():
                return self._process(visit, response, is_start)
            iteration.pause()
            return self._wait_and_process(iteration, visit, response, is_start)

        iteration = _Items(self._crawler, outputs, count, take, in_one_task)
        try:
            while (request := await iteration.next()) is not END:
                yield request
        finally:
            iteration.stop()

    def _crawl_request(self, request: Request) -> None:
        try:
            self._engine.crawl(request)
        except Exception as error:
            logger.error(
                "%s cannot be scheduled: %s",
                request,
                text_of(error),
                exc_info=error,
                extra={"spider": self._crawler.spider},
            )
            count(self._crawler, "requests/errors")

    async def _wait_and_process(
        self, iteration: Iteration, visit: Visit, response: Any, is_start: bool
    ) -> None:
        """Wait for a slot, in which time nothing more is taken, and process the item."""
        started = perf_counter()
        try:
            await self._slots.wait()
        except GeneratorExit:
            raise
        except BaseException:
            self._refuse(visit, response, "the crawl was stopped while the item waited for a slot")
            return
        finally:
            call_soon(iteration.go_on)  # when this item has begun
        if is_start and is_closing(self._crawler):
            iteration.stop()
            self._slots.release()
            self._refuse(visit, response, "the crawl was closed while the item waited for a slot")
            return
        if self._crawl.stats is not None:
            self._crawl.stats.waiting.note(perf_counter() - started)
        await self._process(visit, response, is_start)

    def _refuse(self, visit: Visit, response: Any, reason: str) -> None:
        visit.has_no_safe_end()
        if visit.letter is None:  # a letter stays as it is, for the next replay
            error = StepCancelled(reason)
            spawn_ending(self._crawler, end_as_failed(self._crawler, visit, response, error))

    def _release(self, visit: Visit) -> None:
        self._asking -= visit.asks
        self._slots.release()

    def _on_request_scheduled(self) -> None:
        visit = current_visit.get()
        if visit is not None and not visit.has_left and not visit.asks:
            visit.asks = True
            self._asking += 1

    def _on_overdrawn(self) -> None:
        count(self._crawler, "slot/overdrawn")
        if not self._has_overdrawn:
            self._has_overdrawn = True
            logger.warning(
                "All %d slots for items (DEFERKIT_CONCURRENT_ITEMS) are taken, and no item has "
                "ended for a while: one more is let in, in case they wait for it. If this goes on, "
                "let no item wait for another one, or allow more of them",
                self._slots.taken,
                extra={"spider": self._crawler.spider},
            )

    # ------------------------------------------------------------------------ how it is processed

    async def _process(self, visit: Visit, response: Any, is_start: bool) -> None:
        """Process an item that has a slot."""
        visit.holds(self._release)
        current_visit.set(visit)
        self._crawl.items.begin()
        try:
            if visit.letter is not None:
                await self._process_again(visit)
            else:
                await self._engine.scraper.start_itemproc_async(visit.item, response=response)
        except GeneratorExit:
            raise
        except BaseException as error:  # of a log formatter, say: the other items go on
            if visit.is_taken and not visit.has_ended:  # it was cancelled, by Ctrl-C twice, say
                self._refuse(visit, response, "what ran the item was cancelled")
            else:
                if isinstance(error, CANCELLED):
                    visit.has_no_safe_end()
                self._note_error(visit, error)
        finally:
            visit.leave()
            self._crawl.items.end()
            if is_start:
                look_whether_to_close(self._crawler)

    async def _process_again(self, visit: Visit) -> None:
        scraper = self._engine.scraper
        if visit.stage == SPIDER_STACK:
            stack = next(it for it in scraper.spidermw.middlewares if is_spider_stack(it))
            if not await stack.process_again(visit, Response(visit.page_url or "data:,")):
                return
        page = None if visit.page_url is None else Response(visit.page_url)
        await scraper.start_itemproc_async(visit.item, response=page)

    def _note_error(self, visit: Visit, error: BaseException) -> None:
        logger.error(
            "An error outside the pipelines, with an item of %s: %s",
            visit.origin,
            text_of(error),
            exc_info=error,
            extra={"spider": self._crawler.spider},
        )
        count(self._crawler, "items/errors")
