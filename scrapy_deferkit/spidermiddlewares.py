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
from ._runtime import to_deferred
from .processor import stack_at

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
        with blaming("DEFERKIT_SPIDER_STACK"):
            bound = stack_at(config.spider_stack).bind(crawler)
            bound.refuse_unless_taking(1, "(item, response)")
        return cls(crawler, bound, config.spider_concurrency)

    async def process_spider_output(
        self, response: Response, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        """Give the output of the spider, with the items as the stack made them."""

        def process(output: Any) -> Any:
            if output is None or isinstance(output, Request):
                return (output,)
            return to_deferred(self._process(output, response))

        async for outputs in ordered(result, self._concurrency, process):
            for output in outputs:
                yield output

    async def _process(self, item: Any, response: Response) -> tuple[Any, ...]:
        """Give the processed item, or nothing where it has ended."""
        try:
            return (await self._bound(item, response),)
        except DropItem as error:
            await self._drop(item, response, error)
        except Exception as error:
            await self._fail(item, response, error)
            if isinstance(error, CloseSpider):
                close_spider(self._crawler, error.reason or "cancelled")
        return ()

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

    async def _fail(self, item: Any, response: Response, error: Exception) -> None:
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
