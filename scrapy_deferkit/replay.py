"""Replay: dead letters enter the item stage again, taken from the store under a lease."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scrapy import signals

from ._crawl import count, crawl_of
from ._ends import end_as_failed
from ._runtime import Repeated, now, sleep, spawn
from ._scrapy import engine_of, is_closing
from .delivery import PIPELINES, SPIDER_STACK, Visit
from .exceptions import DeferKitError, StackConfigError, counted, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scrapy.crawler import Crawler

    from ._letters import DeadLetter, Selection
    from .delivery import Delivery

logger = logging.getLogger(__name__)

_PAGE = 100
_LOOK_AGAIN_AFTER = 0.05


@dataclass(frozen=True, slots=True)
class ReplayOrder:
    """Which dead letters a crawl replays: the setting ``DEFERKIT_REPLAY`` of the command."""

    selection: Selection
    limit: int | None = None
    lease: float = 300.0
    """Seconds for which letters are taken; the lease of those in work is renewed."""


def is_spider_stack(middleware: Any) -> bool:
    """Check whether *middleware* is the one that dead letters of a spider's stack go through."""
    return hasattr(type(middleware), "process_again")


class Replay:
    """The dead letters that a :class:`ReplayOrder` means, taken under a lease."""

    def __init__(self, crawler: Crawler, delivery: Delivery, order: ReplayOrder) -> None:
        self._crawler = crawler
        self._delivery = delivery
        self._order = order
        self._held: dict[str, Visit | None] = {}
        """The letters taken, by id, each with its visit once it has begun."""

        self._renewal: Repeated | None = None
        self._lasts_until = 0.0
        """When the leases of the letters that have not begun may end, by the clock."""

        crawler.signals.connect(self._stop_renewing, signals.spider_closed)

    @classmethod
    def of(cls, crawler: Crawler) -> Replay | None:
        """Return the replay that *crawler* is for; ``None`` for any other crawl."""
        order: ReplayOrder | None = crawler.settings.get("DEFERKIT_REPLAY")
        if order is None:
            return None
        if not isinstance(order, ReplayOrder):
            raise StackConfigError(
                f"DEFERKIT_REPLAY = {order!r}: only the command sets it: remove it, and run "
                "`scrapy deferkit replay SPIDER`"
            )
        delivery = crawl_of(crawler).delivery
        if delivery is None:
            raise DeferKitError(
                "dead letters were to be replayed, and items are not kept in this crawl, so "
                "nothing is crawled; run `scrapy deferkit replay` with the add-on on"
            )
        return cls(crawler, delivery, order)

    async def visits(self) -> AsyncIterator[Visit]:
        """Yield the letters as visits, until there are no more or the crawl is closing."""
        self._renewal = Repeated(self._order.lease / 3, self._renew_on_time)
        try:
            async for letter in self._letters():
                count(self._crawler, "replay/taken")
                visit = Visit(crawl_of(self._crawler), letter.stage, None, letter.page_url, letter)
                self._held[letter.id] = visit
                try:
                    visit.item = self._read(letter)
                except DeferKitError as error:
                    self._log("The dead letter %s cannot be processed: %s", letter.id, error)
                    await end_as_failed(self._crawler, visit, None, error)
                else:
                    yield visit
        except DeferKitError as error:  # of the store
            self._has_failed(error)

    def _read(self, letter: DeadLetter) -> Any:
        if letter.stage not in (PIPELINES, SPIDER_STACK):
            raise DeferKitError(
                f"its stage is {letter.stage!r}, expected {PIPELINES!r} or {SPIDER_STACK!r}: "
                "correct its row"
            )
        engine = engine_of(self._crawler)
        assert engine is not None
        stacks = filter(is_spider_stack, engine.scraper.spidermw.middlewares)
        if letter.stage == SPIDER_STACK and not any(stacks):
            raise DeferKitError(
                "the item was in the stack of StackSpiderMiddleware, which this spider does not "
                "have now: enable it and set DEFERKIT_SPIDER_STACK"
            )
        return self._delivery.codec.decode(letter.item)

    async def _letters(self) -> AsyncIterator[DeadLetter]:
        letters, order = self._delivery.letters, self._order
        left = order.limit
        while left is None or left > 0:
            number = _PAGE if left is None else min(_PAGE, left)
            asked_at = now()
            some = await letters.patiently(
                lambda store: store.take(order.selection, number, letters.owner, order.lease)  # noqa: B023
            )
            in_work = self._ids()  # and forgets those that have ended, whose items are large
            if not some:
                if not in_work:
                    return
                # While its last ones are in work, the lease of a replay that died may end.
                while self._ids():
                    if is_closing(self._crawler):
                        return
                    await sleep(_LOOK_AGAIN_AFTER)
                continue
            left = None if left is None else left - len(some)
            given_again = in_work.intersection(letter.id for letter in some)
            self._delivery.leave(given_again)  # another crawl has replaced them meanwhile
            self._held.update((it.id, None) for it in some if it.id not in given_again)
            self._lasts_until = asked_at + order.lease
            for letter in some:
                if is_closing(self._crawler):  # Ctrl-C, say: the others stay for another time
                    return
                if now() >= self._lasts_until:  # the process was stopped, or its loop blocked
                    await self._renew()
                if self._delivery.is_own(letter.id):
                    if letter.id not in given_again:
                        self._held.pop(letter.id, None)
                elif letter.id in self._held:  # else another replay has it
                    yield letter

    def _ids(self) -> frozenset[str]:
        """Return the ids of the letters that have not ended."""
        held = self._held.items()
        self._held = {key: it for key, it in held if it is None or not it.has_left}
        return frozenset(self._held)

    def _renew_on_time(self) -> None:
        spawn(self._renew(), lambda failure: self._has_failed(failure.value))

    def _stop_renewing(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()

    async def _renew(self) -> None:
        letters, held, lease = self._delivery.letters, self._ids(), self._order.lease
        if held:
            asked_at = now()
            ours = await letters.patiently(lambda store: store.renew(letters.owner, held, lease))
            self._lasts_until = asked_at + lease
            self._lose(held - ours)

    def _lose(self, ids: frozenset[str]) -> None:
        """Begin with none of *ids* that has not begun: another replay has taken it."""
        lost = ids & self._ids()
        for letter_id in lost:
            del self._held[letter_id]
        if lost:
            self._crawler.stats.inc_value("deferkit/replay/leases_lost", len(lost))
            self._log(
                "%s lost to this replay: deleted, or its lease has ended. What is in work may be "
                "delivered twice; give a longer --lease",
                counted(len(lost), "dead letter"),
            )

    def _has_failed(self, error: BaseException) -> None:
        count(self._crawler, "replay/errors")
        self._log("Dead letters could not be taken; they stay as they are: %s", text_of(error))

    def _log(self, message: str, *args: object) -> None:
        logger.error(message, *args, extra={"spider": self._crawler.spider})
