"""A spider middleware that runs the items of spider output through a stack."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from scrapy import signals
from scrapy.exceptions import DropItem, NotConfigured
from scrapy.http import Request

from ._config import Config, blaming, refuse_elsewhere
from ._crawl import crawl_of
from ._ends import end_as_dropped, end_as_failed, spawn_ending
from ._engine import ordered, resolve, shield
from ._lifecycle import Lifecycle, heed_close_spider
from ._runtime import to_deferred
from ._stack import contained
from .delivery import SPIDER_STACK, Visit
from .exceptions import StepCancelled
from .processor import stack_at
from .stats import StepStats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from scrapy.crawler import Crawler
    from scrapy.http import Response
    from typing_extensions import Self

    from ._stack import Stack


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
        self._inside: dict[int, tuple[Response, dict[Visit, None]]] = {}
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
        refuse_elsewhere(crawler.settings, cls, "SPIDER_MIDDLEWARES")
        config = Config.from_settings(crawler.settings)
        if config.spider_stack is None:
            raise NotConfigured(f"{cls.__name__} needs the setting DEFERKIT_SPIDER_STACK")
        if config.step_stats:
            StepStats.of(crawler)
        with blaming("DEFERKIT_SPIDER_STACK"):
            bound = stack_at(config.spider_stack).bind(crawler)
            bound.refuse_unless_taking("item", "response")
        return cls(crawler, bound, config.spider_concurrency)

    async def process_spider_output(
        self, response: Response, result: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        """Yield the output of the spider, with the items as the stack made them."""
        inside: dict[Visit, None] = {}  # the items that have come in and have not ended or left
        self._inside[id(inside)] = response, inside
        crawl = crawl_of(self._crawler)

        def process(output: Any) -> Any:
            if output is None or isinstance(output, Request):
                return None, output
            visit = Visit(crawl, SPIDER_STACK, output, response.url, request=response.request)
            inside[visit] = None
            return to_deferred(self._process(visit, inside, response))

        outputs = ordered(result, self._concurrency, process)
        try:
            async for visit, output in outputs:
                if visit is None or inside.pop(visit, self) is None:
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
            visit, _ = inside.popitem()
            visit.has_no_safe_end()
            error = StepCancelled(f"the output of {response} was not taken to its end")
            spawn_ending(self._crawler, end_as_failed(self._crawler, visit, response, error))

    async def _process(
        self, visit: Visit, inside: dict[Visit, None], response: Response
    ) -> tuple[Visit, Any]:
        """Return the item as processed, behind its visit; take that from *inside* if it ended."""
        ending: Coroutine[Any, Any, None]
        try:
            output = self._bound(visit.item, response)
            if self._record is not None:
                output = self._record.wait(output, perf_counter())
            return visit, await output
        except DropItem as error:
            ending = end_as_dropped(self._crawler, visit, response, error)
        except BaseException as error:
            failure = contained(error)
            if failure is None:
                raise
            ending = end_as_failed(self._crawler, visit, response, failure)
            heed_close_spider(self._crawler, failure)
        if inside.pop(visit, self) is self:  # it has ended already
            ending.close()
        else:
            # Whoever takes no more of the output cancels this; the item ends all the same.
            await resolve(shield(spawn_ending(self._crawler, ending)))
        return visit, None

    async def process_again(self, visit: Visit, response: Response) -> bool:
        """Process the item of *visit*, a dead letter of this stack; return whether it goes on."""
        inside = {visit: None}
        _, output = await self._process(visit, inside, response)
        if not inside:
            return False
        visit.item = output
        return True
