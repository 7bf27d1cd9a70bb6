"""The way back: items that a journal or the dead letters have kept enter their stage again."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scrapy.http import Request, Response
from twisted.internet.defer import CancelledError

from ._engine import resolve
from ._lifecycle import close_spider, has_other_work, is_closing
from ._runtime import Timer, now, sleep, spawn
from .defer import parallel_async
from .delivery import PIPELINES, SPIDER_STACK, Delivery, delivery_of
from .exceptions import DeferKitError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scrapy.crawler import Crawler

    from .deadletters import DeadLetter, DeadLetters, Selection
    from .journal import Entry

logger = logging.getLogger(__name__)

_PAGE = 100
_LOOK_AGAIN_AFTER = 0.05
_TOP_PRIORITY = 1_000_000_000


class PageIsGone(DeferKitError, AttributeError):
    """A processor asked for the page of an item that comes back without it."""


class KeptPage(Response):
    """Stands for the page of a kept item: its URL is known, and nothing else of it."""

    def __getattribute__(self, name: str) -> Any:
        if name in _OF_THE_PAGE:
            raise PageIsGone(
                f"response.{name}: the item was kept without its page ({super().url}), so only "
                "response.url is known; let the processor do without, or crawl the page again"
            )
        return super().__getattribute__(name)


_ON_THE_PAGE = ("body", "css", "headers", "jmespath", "json", "selector", "text", "xpath")
_ON_THE_REQUEST = ("cb_kwargs", "meta", "request")
_FROM_THE_PAGE = ("copy", "encoding", "follow", "follow_all", "replace", "urljoin")
_OF_THE_PAGE = frozenset((*_ON_THE_PAGE, *_ON_THE_REQUEST, *_FROM_THE_PAGE))


class Inputs:
    """Items that were kept, as what a crawl begins with."""

    is_all = False
    """Whether the crawl has no other input."""

    def __init__(self, crawler: Crawler, delivery: Delivery) -> None:
        self._crawler = crawler
        self._delivery = delivery
        self._have_begun = False

    def request(self) -> Request:
        """Give the request whose callback has all items processed.

        It is answered without a network. Whatever becomes of it, its callback or its errback is
        called: the items do not depend on what the spider's middlewares let pass.
        """
        return Request(
            "data:,",
            callback=self._run,
            errback=self._run,
            dont_filter=True,
            priority=_TOP_PRIORITY,
            meta={"dont_cache": True, "dont_retry": True, "allow_offsite": True},
        )

    async def _run(self, _: object) -> None:
        concurrency = self._delivery.config.concurrent_items or _PAGE
        outcomes = await parallel_async(self._noting_the_last(), concurrency, self._process_one)
        for succeeded, outcome in outcomes:
            if not succeeded:
                self._has_failed(outcome.value)

    async def _noting_the_last(self) -> AsyncIterator[Any]:
        try:
            async for kept in self._kept():
                yield kept
        finally:
            self._have_begun = True

    async def until_begun(self) -> None:
        """Wait until all items have entered their stages again.

        Where the request has gone astray, in a scheduler or a handler of its signal, they stay
        where they are kept: once nothing else is under way, this ends. So it does when it is
        cancelled on a reactor whose cancellations Scrapy takes for errors of ``start()``.
        """
        with suppress(CancelledError):
            while not self._have_begun and has_other_work(self._crawler):
                await sleep(_LOOK_AGAIN_AFTER)

    def _has_failed(self, error: BaseException) -> None:
        self._crawler.stats.inc_value("deferkit/kept_items/errors")
        logger.error(
            "Kept items could not be taken up; they stay where they are: %s",
            error,
            extra={"spider": self._crawler.spider},
        )

    def _has_failed_beside(self, error: Exception) -> None:
        """Log what rose outside the pipelines; what becomes of the item is decided there."""
        self._crawler.stats.inc_value("deferkit/kept_items/errors")
        logger.error(
            "While a kept item was processed, this rose outside the pipelines: %s",
            error,
            exc_info=error,
            extra={"spider": self._crawler.spider},
        )

    def _kept(self) -> AsyncIterator[Any]:
        raise NotImplementedError

    async def _process_one(self, kept: Any) -> None:
        raise NotImplementedError

    async def _enter(self, item: Any, stage: str, page_url: str | None, **known: Any) -> None:
        """Have *item* enter *stage* again."""
        engine = self._crawler.engine
        assert engine is not None
        url = page_url or "data:,"
        if stage not in (PIPELINES, SPIDER_STACK):
            raise DeferKitError(
                f"its stage is {stage!r}, where {PIPELINES!r} or {SPIDER_STACK!r} is due: correct "
                "its row"
            )
        if stage == SPIDER_STACK:
            middleware = _stack_middleware(engine.scraper.spidermw.middlewares)
            if middleware is None:
                raise DeferKitError(
                    "the item was in the stack of StackSpiderMiddleware, which this spider does "
                    "not have now: enable it and set DEFERKIT_SPIDER_STACK"
                )
            item = await middleware.process_kept(item, KeptPage(url), **known)
            if item is None:
                return
            known = {}
        self._delivery.expect(item, page_url, **known)
        page = None if page_url is None else Response(page_url, flags=["deferkit-kept"])
        try:
            await engine.scraper.start_itemproc_async(item, response=page)
        except Exception:  # of a log formatter, say
            await self._delivery.fail_unheard(item)
            raise


def _stack_middleware(middlewares: Any) -> Any:
    return next((it for it in middlewares if hasattr(type(it), "process_kept")), None)


class Recovery(Inputs):
    """The items that the journal has from earlier runs of the job, in their order."""

    async def _kept(self) -> AsyncIterator[Entry]:
        from .deadletters import Selection

        journal, letters = self._delivery.journal, self._delivery.letters
        assert journal is not None
        after = 0
        while entries := await resolve(journal.unfinished(after, _PAGE)):
            after = entries[-1].position
            # A run that died between the dead letter and the end of its row has left both.
            selection = Selection(ids=[entry.id for entry in entries])
            there = await letters.patiently(lambda store: _ids(store, selection))  # noqa: B023
            for entry in entries:
                if is_closing(self._crawler):  # Ctrl-C, say: the others stay for the next run
                    return
                if entry.id in there:
                    journal.end(entry.id)
                else:
                    await resolve(journal.begin_again(entry.id))
                    yield entry

    async def _process_one(self, entry: Entry) -> None:
        delivery = self._delivery
        delivery.crawler.stats.inc_value("deferkit/items/recovered")
        try:
            item = delivery.codec.decode(entry.item)
            await self._enter(item, entry.stage, entry.page_url, entry=entry)
        except DeferKitError as error:
            await delivery.fail_unread(error, entry=entry)
        except Exception as error:
            self._has_failed_beside(error)


def _ids(store: DeadLetters, selection: Selection) -> set[str]:
    return {letter.id for letter in store.select(selection)}


@dataclass(frozen=True, slots=True)
class ReplayOrder:
    """Which dead letters a crawl replays: the setting ``DEFERKIT_REPLAY`` of the command."""

    selection: Selection
    limit: int | None = None
    lease: float = 300.0
    """Seconds for which letters are taken; the lease of those in work is renewed."""


class Replay(Inputs):
    """The dead letters that a :class:`ReplayOrder` means, taken under a lease."""

    is_all = True

    def __init__(self, crawler: Crawler, delivery: Delivery, order: ReplayOrder) -> None:
        super().__init__(crawler, delivery)
        self._order = order
        self._held: set[str] = set()
        self._renewal: Timer | None = None
        self._lasts_until = 0.0
        """When the leases of the letters that have not begun may end, by the clock."""

    async def _run(self, _: object) -> None:
        self._renew_later()
        try:
            await super()._run(_)
        finally:
            if self._renewal is not None:
                self._renewal.cancel()
            try:
                await self._delivery.letters.give_up_leases()
            except DeferKitError as error:
                self._has_failed(error)
            if not is_closing(self._crawler):
                # At once: a spider that finds more to do when it is idle would go on for ever.
                close_spider(self._crawler, "finished")

    async def _kept(self) -> AsyncIterator[DeadLetter]:
        letters, order = self._delivery.letters, self._order
        left = order.limit
        while left is None or left > 0:
            number = _PAGE if left is None else min(_PAGE, left)
            asked_at = now()
            some = await letters.patiently(
                lambda store: store.take(order.selection, number, letters.owner, order.lease)  # noqa: B023
            )
            if not some:
                if not self._held:
                    return
                # While its last ones are in work, the lease of a replay that died may end.
                while self._held:
                    if is_closing(self._crawler):
                        return
                    await sleep(_LOOK_AGAIN_AFTER)
                continue
            left = None if left is None else left - len(some)
            self._held.update(letter.id for letter in some)
            self._lasts_until = asked_at + order.lease
            for letter in some:
                if is_closing(self._crawler):  # Ctrl-C, say: the others stay for another time
                    return
                if now() >= self._lasts_until:  # the process was stopped, or its loop blocked
                    await self._renew()
                if letter.id in self._held:  # else another replay has it
                    yield letter

    async def _process_one(self, letter: DeadLetter) -> None:
        delivery = self._delivery
        delivery.crawler.stats.inc_value("deferkit/replay/taken")
        try:
            item = delivery.codec.decode(letter.item)
            await self._enter(item, letter.stage, letter.page_url, letter=letter)
        except DeferKitError as error:
            await delivery.fail_unread(error, letter=letter)
        except Exception as error:
            self._has_failed_beside(error)
        finally:
            self._held.discard(letter.id)

    def _renew_later(self) -> None:
        self._renewal = Timer(self._order.lease / 3, self._renew_on_time)

    def _renew_on_time(self) -> None:
        self._renew_later()
        spawn(self._renew(), lambda failure: self._has_failed(failure.value))

    async def _renew(self) -> None:
        letters, held, lease = self._delivery.letters, frozenset(self._held), self._order.lease
        if held:
            asked_at = now()
            ours = await letters.patiently(lambda store: store.renew(letters.owner, held, lease))
            self._lasts_until = asked_at + lease
            self._lose(held - ours)

    def _lose(self, ids: frozenset[str]) -> None:
        """Begin with none of *ids* that has not begun: another replay has taken it."""
        lost = ids & self._held
        if lost:
            self._held -= lost
            self._crawler.stats.inc_value("deferkit/replay/leases_lost", len(lost))
            logger.warning(
                "%d dead letters are no longer this replay's: their leases have ended, or they "
                "have been deleted. Those in work may be delivered twice; give a longer --lease",
                len(lost),
                extra={"spider": self._crawler.spider},
            )


async def inputs_of(crawler: Crawler) -> Inputs | None:
    """Give what *crawler* has to begin with: a replay, what an earlier run left, or ``None``."""
    delivery = delivery_of(crawler)
    order: ReplayOrder | None = crawler.settings.get("DEFERKIT_REPLAY")
    if delivery is None:
        if order is not None:
            raise DeferKitError(
                "dead letters were to be replayed, and items are not kept in this crawl, so "
                "nothing is crawled; run `scrapy deferkit replay` with the add-on on"
            )
        return None
    if order is not None:
        return Replay(crawler, delivery, order)
    if delivery.journal is None:
        return None
    number = await resolve(delivery.journal.count_unfinished())
    if not number:
        return None
    logger.info(
        "%d items were in flight when this job's last run ended; they go first",
        number,
        extra={"spider": crawler.spider},
    )
    return Recovery(crawler, delivery)
