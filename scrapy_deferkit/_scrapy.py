"""What is touched of Scrapy beyond its documented API, each with the reason.

Checked on Scrapy 2.15 and on the latest version by ``tests/test_scrapy.py``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from scrapy.utils.asyncgen import as_async_generator
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import FrameType

    from scrapy.commands import BaseRunSpiderCommand
    from scrapy.core.engine import ExecutionEngine
    from scrapy.core.scraper import Scraper
    from scrapy.crawler import Crawler
    from scrapy.http import Request
    from twisted.internet.defer import Deferred


def engine_of(crawler: Crawler) -> ExecutionEngine | None:
    """Return the engine of *crawler*; ``None`` if it does not crawl, as in a test."""
    try:
        return crawler.engine
    except RuntimeError:  # from Scrapy 2.18 on
        return None


def spider_arguments(crawler: Crawler) -> dict[str, Any]:
    """Return what ``-a`` gave the spider of *crawler*, while the parts of its crawl are built.

    The ``kwargs`` of ``Crawler.crawl()`` or ``crawl_async()``, which is running then: Scrapy keeps
    them nowhere, and of a spider's attributes nobody can tell which were arguments.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in ("crawl", "crawl_async") and (
            frame.f_locals.get("self") is crawler
        ):
            return dict(frame.f_locals.get("kwargs", ()))
        frame = frame.f_back
    return {}


def crawler_for(command: BaseRunSpiderCommand, spider: str) -> Crawler:
    """Return the crawler that Scrapy's *command* would make for *spider*.

    ``_create_crawler()``, which Scrapy 2.15 has not: it warns of feeds that nothing writes.
    """
    process = command.crawler_process
    assert process is not None
    create: Any = getattr(command, "_create_crawler", process.create_crawler)
    crawler: Crawler = create(spider)
    return crawler


def is_closing(crawler: Crawler) -> bool:
    """Check whether the crawl is being closed, so that nothing new should begin.

    ``engine._slot.closing``: no signal is sent when closing begins.
    """
    slot = getattr(engine_of(crawler), "_slot", None)
    return not crawler.crawling or getattr(slot, "closing", None) is not None


def is_downloading(crawler: Crawler) -> bool:
    """Check whether the downloader has a request in work."""
    return bool(getattr(getattr(engine_of(crawler), "downloader", None), "active", None))


def look_whether_to_close(crawler: Crawler) -> bool:
    """Let the scraper close if it waits for that and has nothing left; return whether it waits on.

    ``Scraper._check_if_closing()``: Scrapy calls it when a response ends. An item that no response
    holds ends later than that, and the crawl would wait for ever (Scrapy 2.19).
    """
    scraper: Any = getattr(engine_of(crawler), "scraper", None)
    slot: Any = getattr(scraper, "slot", None)
    if slot is None or not slot.is_idle():
        return slot is not None
    if slot.closing is not None and not slot.closing.called:
        scraper._check_if_closing()
    return False


def wrap_errback_output(
    scraper: Scraper, wrap: Callable[[AsyncIterator[Any], Request, Any], AsyncIterator[Any]]
) -> None:
    """Have *wrap* stand around what errbacks of failed downloads yield.

    Up to Scrapy 2.19 no spider middleware sees it: the public ``handle_spider_output_async()`` of
    this scraper is the first to get it.
    """
    handle = scraper.handle_spider_output_async

    async def handle_spider_output_async(result: Any, request: Request, response: Any) -> None:
        if isinstance(response, Failure):
            outputs = result if hasattr(result, "__aiter__") else as_async_generator(result)
            result = wrap(outputs, request, response)
        await handle(result, request, response)

    scraper.handle_spider_output_async = handle_spider_output_async  # type: ignore[method-assign]


def wrap_closing(
    engine: ExecutionEngine, wrap: Callable[[Callable[..., Awaitable[None]], str], Awaitable[None]]
) -> None:
    """Have *wrap* stand around the public ``close_spider_async()`` of this engine.

    If who awaits it is cancelled, the crawl stays half closed for ever.
    """
    close = engine.close_spider_async

    async def close_spider_async(*, reason: str = "cancelled") -> None:
        await wrap(close, reason)

    engine.close_spider_async = close_spider_async  # type: ignore[method-assign]


def wrap_scraping(
    scraper: Scraper,
    begun: Callable[[Request], object],
    ended: Callable[[Request], object],
    failed: Callable[[Request, BaseException | None], object],
) -> None:
    """Have *begun* called as the scraper takes a request's response, and *ended* when it is done.

    Both stand around the public ``enqueue_scrape()`` of this scraper: no signal tells when all that
    a response has brought has ended. *failed* is called with what a callback or an errback raises,
    by its public ``handle_spider_error()`` (``CloseSpider`` has no signal), and with what goes to
    an errback, by its public ``call_spider_async()``: a download is cancelled at a second Ctrl-C.
    """
    enqueue, handle = scraper.enqueue_scrape, scraper.handle_spider_error
    call = scraper.call_spider_async

    async def call_spider_async(result: Any, request: Request) -> Any:
        if isinstance(result, Failure):
            failed(request, result.value)
        return await call(result, request)

    def enqueue_scrape(result: Any, request: Request) -> Deferred[None]:
        begun(request)

        def end(outcome: Any) -> Any:
            ended(request)
            return outcome

        return enqueue(result, request).addBoth(end)

    def handle_spider_error(failure: Failure, request: Request, *args: Any) -> None:
        failed(request, failure.value)
        handle(failure, request, *args)

    scraper.call_spider_async = call_spider_async  # type: ignore[method-assign]
    scraper.enqueue_scrape = enqueue_scrape  # type: ignore[method-assign]
    scraper.handle_spider_error = handle_spider_error  # type: ignore[method-assign,assignment]


def is_in_work(engine: ExecutionEngine, request: Request) -> bool:
    """Check whether the engine or the downloader still has *request*.

    ``engine._slot.inprogress`` and ``downloader.active``: a request that a redirect or a retry has
    replaced leaves them, and no signal tells. Raises :exc:`AttributeError` if they are not there.
    """
    slot: Any = engine._slot
    return request in slot.inprogress or request in engine.downloader.active


def wake(engine: ExecutionEngine) -> None:
    """Have the engine ask its scheduler for a request: ``engine._slot.nextcall``."""
    slot: Any = engine._slot
    if slot is not None:
        slot.nextcall.schedule()
