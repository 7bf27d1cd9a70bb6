"""A spider middleware that runs the items of spider output through a stack."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from scrapy import signals
from scrapy.exceptions import CloseSpider, DropItem, NotConfigured
from scrapy.http import Request
from scrapy.utils.log import logformatter_adapter
from twisted.python.failure import Failure

from ._config import Config, blaming
from ._engine import ordered
from ._lifecycle import Lifecycle, close_spider, is_closing
from ._runtime import spawn, to_deferred
from ._stack import contained
from .delivery import delivery_of
from .exceptions import StepCancelled
from .processor import stack_at
from .replay import inputs_of
from .stats import StepStats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scrapy.crawler import Crawler
    from scrapy.http import Response
    from typing_extensions import Self

    from ._stack import Stack
    from .delivery import Delivery, Stay

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Inside:
    """An item in the stack, and its stay there where items are kept."""

    item: Any
    stay: Stay | None = None


class StackSpiderMiddleware:
    """Run the items of spider output through ``DEFERKIT_SPIDER_STACK``, before the pipelines.

    Processors are called with ``(item, response)``. At most ``DEFERKIT_SPIDER_CONCURRENCY``
    items of one response are in the stack at once; output is taken lazily and leaves in order.
    Requests pass untouched. An item that is dropped or fails ends as it would in a pipeline, with
    the same signals and log lines, and never stops the others. Items that ``start()`` yields have
    no response and do not come here.
    """

    def __init__(self, crawler: Crawler, bound: Stack, concurrency: int) -> None:
        self._crawler = crawler
        self._bound = bound
        counts = Config.from_settings(crawler.settings).step_stats
        self._record = StepStats.of(crawler).add(lambda: bound.path) if counts else None
        self._concurrency = concurrency
        self._inside: dict[int, tuple[Response, dict[int, _Inside]]] = {}
        crawler.signals.connect(self._on_spider_error, signals.spider_error)
        crawler.signals.connect(self._on_spider_closed, signals.spider_closed)
        self._lifecycle = Lifecycle(crawler, [bound])

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Build the middleware and bind its stack to *crawler*.

        Raises :exc:`~scrapy.exceptions.NotConfigured` without a stack, and
        :exc:`~scrapy_deferkit.exceptions.StackConfigError` with one whose processors cannot be
        called with an item and a response.
        """
        config = Config.from_settings(crawler.settings)
        if config.spider_stack is None:
            raise NotConfigured(f"{cls.__name__} needs the setting DEFERKIT_SPIDER_STACK")
        if config.step_stats:
            StepStats.of(crawler)
        with blaming("DEFERKIT_SPIDER_STACK"):
            bound = stack_at(config.spider_stack).bind(crawler)
            bound.refuse_unless_taking(1, "(item, response)")
        return cls(crawler, bound, config.spider_concurrency)

    async def process_spider_output(
        self, response: Response, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        """Give the output of the spider, with the items as the stack made them."""
        inside: dict[int, _Inside] = {}  # the items that have come in and have not ended or left
        self._inside[id(inside)] = response, inside
        delivery = delivery_of(self._crawler)
        number = 0

        def process(output: Any) -> Any:
            nonlocal number
            if output is None or isinstance(output, Request):
                return None, output
            number += 1
            inside[number] = _Inside(output)
            return to_deferred(self._process(number, inside, response, delivery))

        outputs = ordered(result, self._concurrency, process)
        try:
            async for item_number, output in outputs:
                left = inside.pop(item_number, None)
                if item_number is not None and left is None:
                    continue
                if delivery is not None and left is not None and left.stay is not None:
                    delivery.moves(output, left.stay, response)
                yield output
        finally:
            await outputs.aclose()
            self._end(id(inside))

    def _on_spider_error(self, response: Response) -> None:
        for key, (of, _) in tuple(self._inside.items()):
            if of is response:
                self._end(key)

    def _on_spider_closed(self) -> None:
        for key in tuple(self._inside):
            self._end(key)

    def _end(self, key: int) -> None:
        """Fail the items that are still inside: a middleware behind this one takes no more."""
        response, inside = self._inside.pop(key, (None, {}))
        while inside:
            _, left = inside.popitem()
            error = StepCancelled(f"the output of {response} was not taken to its end")
            spawn(self._fail(left, response, error), self._log_failure)

    async def _process(
        self,
        number: int,
        inside: dict[int, _Inside],
        response: Response,
        delivery: Delivery | None,
        **known: Any,
    ) -> Any:
        """Give the number and the item as processed; take it from *inside* where it has ended."""
        entered = inside[number]
        item = entered.item
        try:
            if delivery is not None:
                entered.stay = delivery.enter_spider_stack(item, response, **known)
                write = entered.stay.write
                if write is not None:
                    if not write.is_over:
                        await write.wait()
                    if write.error is not None:
                        delivery.note_untracked()
            output = self._bound(item, response)
            if self._record is not None:
                output = self._record.wait(output, perf_counter(), lambda _: False)
            return number, await output
        except DropItem as error:
            if inside.pop(number, None) is not None:
                await self._drop(entered, response, error)
        except BaseException as error:
            failure = contained(error)
            if failure is None:
                raise
            if inside.pop(number, None) is not None:
                await self._fail(entered, response, failure)
                if isinstance(error, CloseSpider):
                    close_spider(self._crawler, error.reason or "cancelled")
        return number, None

    async def process_kept(self, item: Any, response: Response, **known: Any) -> Any:
        """Give *item*, which an earlier crawl has kept, as the stack makes it.

        ``None`` where it ended here, as an item of a response would. *known* is what is known of
        it.
        """
        delivery = delivery_of(self._crawler)
        assert delivery is not None
        inside = {0: _Inside(item)}
        _, output = await self._process(0, inside, response, delivery, **known)
        left = inside.pop(0, None)
        if left is None or left.stay is None:
            return None
        delivery.moves(output, left.stay)
        return output

    def _log_failure(self, failure: Failure) -> None:
        logger.error(
            "A failed item could not be told of: %s",
            failure.value,
            extra={"spider": self._crawler.spider},
        )

    async def _drop(self, dropped: _Inside, response: Response, error: DropItem) -> None:
        crawler, item = self._crawler, dropped.item
        delivery = delivery_of(crawler)
        if delivery is not None and dropped.stay is not None:
            delivery.end(dropped.stay)
        assert crawler.spider is not None
        entry = crawler.logformatter.dropped(item, error, response, crawler.spider)
        self._log(entry, item)
        await crawler.signals.send_catch_log_async(
            signals.item_dropped,
            item=item,
            response=response,
            spider=crawler.spider,
            exception=error,
        )

    async def _fail(self, failed: _Inside, response: Any, error: Exception) -> None:
        crawler, item = self._crawler, failed.item
        delivery = delivery_of(crawler)
        if delivery is not None and failed.stay is not None:
            await delivery.fail(failed.stay, item, error)
        assert crawler.spider is not None
        entry = crawler.logformatter.item_error(item, error, response, crawler.spider)
        self._log(entry, item, exc_info=error)
        await crawler.signals.send_catch_log_async(
            signals.item_error,
            item=item,
            response=response,
            spider=crawler.spider,
            failure=Failure(error),
        )

    def _log(self, entry: Any, item: Any, exc_info: Exception | None = None) -> None:
        if entry is not None:
            extra = {"spider": self._crawler.spider, "item": item}
            logger.log(*logformatter_adapter(entry), exc_info=exc_info, extra=extra)


class DeliverySpiderMiddleware:
    """Stand next to the engine, for the delivery of items; the add-on puts it there.

    At the start it has the items first that an earlier run left unfinished; in a replay they are
    all there is.
    """

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> DeliverySpiderMiddleware:
        """Build the middleware; with a journal, one that begins rows as well.

        Raises :exc:`~scrapy.exceptions.NotConfigured` where items are not kept.
        """
        config = Config.from_settings(crawler.settings)
        is_replay = crawler.settings.get("DEFERKIT_REPLAY") is not None
        # A replay needs it even so: it keeps what is no replay from being crawled.
        if not config.dead_letters and not is_replay:
            raise NotConfigured
        return (
            _ExpectingSpiderMiddleware(crawler)
            if config.journal
            else DeliverySpiderMiddleware(crawler)
        )

    async def process_start(self, start: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Give a request for what was left unfinished, and then what *start* gives."""
        inputs = await inputs_of(self._crawler)
        if inputs is not None:
            yield inputs.request()
            if inputs.is_all:
                return
            await inputs.until_begun()  # items of start() would overtake the request
            if is_closing(self._crawler):
                return
        async for output in start:
            yield output


class _ExpectingSpiderMiddleware(DeliverySpiderMiddleware):
    """Begin the row of each item in the journal, here where its page is known."""

    async def process_spider_output(
        self, response: Response, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        """Give the output of the spider as it is."""
        delivery = delivery_of(self._crawler)
        if delivery is None or not delivery.keeps_rows:
            async for output in result:
                yield output
            return
        is_whole = False
        try:
            async for output in result:
                if output is not None and not isinstance(output, Request):
                    delivery.expect(output, response.url)
                yield output
            is_whole = True
        finally:
            delivery.end_output(response, is_whole=is_whole)
