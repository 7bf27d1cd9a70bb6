"""A spider middleware that runs the items of spider output through a stack."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from scrapy import signals
from scrapy.exceptions import CloseSpider, DropItem, NotConfigured
from scrapy.http import Request
from scrapy.utils.log import logformatter_adapter
from twisted.python.failure import Failure

from ._config import Config, blaming
from ._engine import ordered
from ._lifecycle import Lifecycle, close_spider
from ._runtime import CANCELLED, is_asked_for, spawn, to_deferred
from ._stack import cancelled_from_within
from .exceptions import StepCancelled
from .processor import stack_at
from .stats import StepStats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scrapy.crawler import Crawler
    from scrapy.http import Response
    from typing_extensions import Self

    from ._stack import Stack

logger = logging.getLogger(__name__)


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
        self._concurrency = concurrency
        self._inside: dict[int, tuple[Response, dict[int, Any]]] = {}
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
        inside: dict[int, Any] = {}  # the items that have come in and have not ended or left
        self._inside[id(inside)] = response, inside
        number = 0

        def process(output: Any) -> Any:
            nonlocal number
            if output is None or isinstance(output, Request):
                return None, output
            number += 1
            inside[number] = output
            return to_deferred(self._process(number, inside, response))

        outputs = ordered(result, self._concurrency, process)
        try:
            async for item_number, output in outputs:
                if item_number is None or inside.pop(item_number, None) is not None:
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
            _, item = inside.popitem()
            error = StepCancelled(f"the output of {response} was not taken to its end")
            spawn(self._fail(item, response, error), self._log_failure)

    async def _process(self, number: int, inside: dict[int, Any], response: Response) -> Any:
        """Give the number and the item as processed; take it from *inside* where it has ended."""
        item = inside[number]
        try:
            return number, await self._bound(item, response)
        except DropItem as error:
            if inside.pop(number, None) is not None:
                await self._drop(item, response, error)
        except CANCELLED as error:
            if is_asked_for(error):
                raise
            if inside.pop(number, None) is not None:
                await self._fail(item, response, cancelled_from_within(error))
        except Exception as error:
            if inside.pop(number, None) is not None:
                await self._fail(item, response, error)
                if isinstance(error, CloseSpider):
                    close_spider(self._crawler, error.reason or "cancelled")
        return number, None

    def _log_failure(self, failure: Failure) -> None:
        logger.error(
            "A failed item could not be told of: %s",
            failure.value,
            extra={"spider": self._crawler.spider},
        )

    async def _drop(self, item: Any, response: Response, error: DropItem) -> None:
        crawler = self._crawler
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

    async def _fail(self, item: Any, response: Any, error: Exception) -> None:
        crawler = self._crawler
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
