"""The way of an item: what the gate knows of it, and its dead letter if it fails."""

from __future__ import annotations

import itertools
import json
import logging
import traceback
import uuid
from dataclasses import replace
from datetime import datetime, timezone
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from scrapy import signals
from twisted.python.failure import Failure

from ._config import Config
from ._crawl import count, crawl_of, current_visit, is_crawl
from ._engine import resolve, shield
from ._letterbox import LetterBox
from ._letters import REQUEST
from ._scrapy import engine_of
from ._secrets import without_password
from .codec import Codec, Encoded
from .exceptions import (
    DeadLettersError,
    StackConfigError,
    mark_item,
    step_of,
    text_of,
    type_of,
)
from .merge import ATOMS, copy_item, is_simple
from .signals import item_dead_lettered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scrapy.crawler import Crawler
    from scrapy.http import Request

    from ._crawl import Crawl
    from ._letters import DeadLetter, Failed

logger = logging.getLogger(__name__)

PIPELINES = "pipelines"
SPIDER_STACK = "spider stack"

_LONGEST_TEXT = 20_000


class Visit:
    """An item on its way through a stage: what is known of it as it enters, and its one end.

    A fresh item has a copy of itself as it entered; one that is replayed has its dead letter. The
    *request* is that of the page whose output it is.
    """

    __slots__ = (
        "_as_entered",
        "_crawl",
        "_release",
        "asks",
        "began",
        "has_ended",
        "has_left",
        "is_taken",
        "item",
        "letter",
        "page_url",
        "request",
        "stage",
    )

    def __init__(
        self,
        crawl: Crawl,
        stage: str,
        item: Any,
        page_url: str | None,
        letter: DeadLetter | None = None,
        request: Request | None = None,
    ) -> None:
        self._crawl = crawl
        self.stage = stage if letter is None else letter.stage
        self.item = item
        self.page_url = page_url
        self.request = request
        self.letter = letter
        is_kept = letter is None and crawl.delivery is not None
        self._as_entered = crawl.delivery.copy(item) if is_kept else None
        self.began = 0.0
        """When the item processor has got it; set where steps are timed."""
        self._release: Callable[[Visit], object] | None = None
        self.is_taken = self.has_ended = self.has_left = self.asks = False

    @classmethod
    def taken(cls, item: Any) -> Visit | None:
        """Return the visit that the gate has announced for *item*, which is taken once.

        ``None`` if the item comes another way: a pipeline has submitted it, say.
        """
        visit: Visit | None = current_visit.get()
        if visit is None or visit.is_taken or visit.item is not item:
            return None
        visit.is_taken = True
        return visit

    @property
    def origin(self) -> str:
        """What the item comes from, for messages: its page, and its dead letter in a replay."""
        page = self.page_url or "no page"
        return page if self.letter is None else f"{page} (dead letter {self.letter.id})"

    def holds(self, release: Callable[[Visit], object]) -> None:
        """Call *release* with this visit once, when the item leaves its stage."""
        self._release = release

    def has_no_safe_end(self) -> bool:
        """Have the request that the item comes from crawled again in the next run of the job.

        Returns whether it is.
        """
        keep = self._crawl.keep_request
        return self.request is not None and keep is not None and keep(self.request)

    def leave(self) -> None:
        """Leave the stage: whatever is done for the item from now on needs no slot."""
        if not self.has_left:
            self.has_left = True
            if self._release is not None:
                self._release(self)

    def done(self, how: str = "delivered") -> None:
        """End as scraped or dropped: a letter that was replayed goes."""
        self.has_ended = True
        self._crawl.ended += 1
        if self.letter is not None:
            self._crawl.delivery.delivered(self.letter, how)

    async def failed(self, error: Exception) -> None:
        """End as failed with *error*; returns when the dead letter is durable.

        Whoever waits for that may be cancelled; the letter is written all the same. Then, and if
        something else prevents it, the page is crawled again in the next run of the job.
        """
        crawl = self._crawl
        self.has_ended = True
        crawl.ended += 1
        if crawl.on_failed is not None:
            crawl.on_failed()
        kept = None
        mark_item(error, None)  # of an exception object that is raised again and again
        if crawl.delivery is not None:
            try:
                kept = await resolve(shield(crawl.delivery.keep(self, error)))
            except BaseException:
                self.has_no_safe_end()
                raise
        # Behind the letter, whose traceback is kept once for all pages.
        is_new = kept is not None and self.letter is None
        mark_item(error, f"{self.origin} (dead letter {kept})" if is_new else self.origin)

    def encoded(self, encode: Callable[[Any], Encoded]) -> Encoded:
        """Return the item as it entered, in its stored form."""
        if self.letter is not None:
            missing = (self.letter.missing,) if self.letter.missing else ()
            return Encoded(self.letter.item, self.letter.item_type, missing)
        kept = self._as_entered
        return kept if isinstance(kept, Encoded) else encode(kept)


class Delivery:
    """The dead letters of one crawl."""

    def __init__(self, crawler: Crawler, config: Config) -> None:
        self.crawler = crawler
        self.config = config
        self.codec = Codec.from_settings(crawler.settings, crawler.spidercls)
        self.letters = LetterBox(crawler, config)
        self.run = uuid.uuid4().hex
        """What the ids of this crawl's letters begin with."""

        self._numbers = itertools.count(1)
        self._keyed: set[str] = set()
        """The ids of letters that have replaced others while this crawl replays."""

        self._told: set[str] = set()
        crawler.signals.connect(self._close_if_not_started, signals.spider_closed)
        crawler.signals.connect(self.close, signals.engine_stopped)

    @classmethod
    async def begin(cls, crawler: Crawler) -> Delivery | None:
        """Return the dead letters of *crawler*; ``None`` if they are disabled.

        They are without the add-on, and in ``scrapy shell``, ``parse`` and ``check``, which are no
        crawls. Raises :exc:`~scrapy_deferkit.exceptions.StackConfigError` if
        ``DEFERKIT_DEAD_LETTERS_URL`` is wrong or its driver is missing.
        """
        config = Config.from_settings(crawler.settings)
        if not config.dead_letters or not is_crawl(crawler):
            return None
        delivery = cls(crawler, config)
        try:
            await resolve(delivery.letters.prepare())
        except DeadLettersError as error:
            await delivery.letters.close()
            raise StackConfigError(str(error)) from error
        crawl_of(crawler).delivery = delivery
        return delivery

    # ---------------------------------------------------------------------- items as they entered

    def copy(self, item: Any) -> Any:
        """Return *item* as it is now: a copy if that shares nothing, else its stored form.

        Whatever the item raises, it is processed: its row then says that nothing is known of it.
        """
        if type(item) is dict and ATOMS.issuperset(map(type, item.values())):
            return item.copy()  # what most items are, in half of the time
        try:
            return copy_item(item) if is_simple(item) else self.codec.encode(item)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            why = text_of(error)
            text = json.dumps({"$unstorable": "item that cannot be read", "repr": why})
            return Encoded(text, "unknown", (f"the item cannot be read: {why}",))

    def _tell_of_form(self, encoded: Encoded) -> None:
        for missing in encoded.missing:
            self._tell_once(
                logging.ERROR,
                f"A value of a failed item has no stored form, so its row has a gap: {missing}. "
                "Put a value in its place before it is replayed: scrapy deferkit dead-letters edit",
            )
        for changed in encoded.changed:
            self._tell_once(logging.WARNING, f"In failed items, {changed}.")

    def _tell_once(self, level: int, message: str) -> None:
        if message not in self._told and len(self._told) < 100:
            self._told.add(message)
            self._log(level, "%s", message)

    # ------------------------------------------------------------------------------ how they end

    def delivered(self, letter: DeadLetter, how: str) -> None:
        """Remove *letter*, whose item was scraped or dropped, unless a later one replaced it."""
        crawl_of(self.crawler).replayed[how] += 1
        count(self.crawler, "replay/delivered")
        if not self.is_own(letter.id):
            self.letters.delivered(letter.id)

    async def keep(self, visit: Visit, error: Exception) -> str | None:
        """Keep the item of *visit*, which failed with *error*, as a dead letter, and signal it.

        Returns its id; ``None`` if it could not be kept.
        """
        letter = visit.letter
        encoded = visit.encoded(self.codec.encode)
        keyed = self._keyed_id(encoded) if letter is None else None
        letter_id = letter.id if letter else keyed or f"{self.run}-{next(self._numbers)}"
        if letter is None:
            self._tell_of_form(encoded)
        failed = self._failed(
            letter_id, visit.stage, encoded, visit.page_url, step_of(error), error
        )
        if keyed:
            failed = replace(failed, replaces=True)
        try:
            await resolve(self.letters.put(failed, is_replayed=visit.letter is not None))
        except Exception as trouble:
            is_crawled_again = visit.has_no_safe_end()
            if letter is not None:
                left = "The letter stays as it was"
            elif is_crawled_again:
                left = "Its page is crawled again in the next run of the job"
            else:
                left = "This is all that is left of the item"
            await self.letters.tell_of_unkept(failed, trouble, left)
            return None
        finally:
            visit.leave()
        if letter is not None:
            crawl_of(self.crawler).replayed["failed again"] += 1
        count(self.crawler, "items/dead_lettered" if letter is None else "replay/failed")
        await self.crawler.signals.send_catch_log_async(
            item_dead_lettered,
            item=visit.item,
            failure=Failure(error),
            letter_id=failed.id,
            spider=self.crawler.spider,
        )
        return failed.id

    def _keyed_id(self, encoded: Encoded) -> str | None:
        """Return the id of all letters with the key of this item; ``None`` if it has none."""
        names = self.config.dead_letters_key
        fields = _fields_of(json.loads(encoded.text)) if names else {}
        values = [_value_of(fields.get(name)) for name in names]
        if not names or None in values:
            return None
        assert self.crawler.spider is not None
        key = [self.crawler.spider.name, encoded.item_type, *names, *values]
        digest = blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
        letter_id = f"{digest}-0"
        if self.crawler.settings.get("DEFERKIT_REPLAY") is not None:
            self._keyed.add(letter_id)
        return letter_id

    def is_own(self, letter_id: str) -> bool:
        """Check whether this crawl has put the letter in, so that a replay does not take it."""
        return letter_id.startswith(self.run) or letter_id in self._keyed

    def leave(self, ids: Iterable[str]) -> None:
        """Leave the letters *ids* to the next replay, as this crawl's own."""
        self._keyed.update(ids)

    async def keep_request(self, letter_id: str, request: dict[str, Any], error: Exception) -> None:
        """Keep the outline of a *request* that its job has set aside; raises if it cannot.

        Put in again, it is the same letter, with one attempt more.
        """
        encoded = self.codec.encode(request)
        failed = self._failed(letter_id, REQUEST, encoded, request["url"], "job", error)
        await resolve(self.letters.put(failed, is_replayed=False))

    def _failed(
        self,
        letter_id: str,
        stage: str,
        encoded: Encoded,
        page_url: str | None,
        step: str | None,
        error: Exception,
    ) -> Failed:
        from ._letters import Failed

        spider = self.crawler.spider
        assert spider is not None
        return Failed(
            id=letter_id,
            spider=_text(spider.name) or "",
            spider_args=json.dumps(crawl_of(self.crawler).spider_arguments),
            stage=stage,
            item=encoded.text,
            item_type=encoded.item_type,
            missing="; ".join(encoded.missing + encoded.changed) or None,
            page_url=None if page_url is None else without_password(_text(page_url) or ""),
            step=step,
            error_type=type_of(error),
            error=text_of(error)[:_LONGEST_TEXT],
            traceback=_traceback_of(error),
            at=datetime.now(timezone.utc),
        )

    # ----------------------------------------------------------------------------- how it closes

    async def _close_if_not_started(self) -> None:
        """Close if what opens with the spider has failed: ``engine_stopped`` is not sent then."""
        engine = engine_of(self.crawler)
        if engine is not None and engine.start_time is None:
            await self.close()

    async def close(self) -> None:
        """Write what is to be written, and let go of the store."""
        if self.crawler.settings.get("DEFERKIT_REPLAY") is not None:
            await self.letters.give_up_leases()
        await self.letters.close()
        crawl_of(self.crawler).delivery = None

    def _log(self, level: int, message: str, *args: object) -> None:
        logger.log(level, message, *args, extra={"spider": self.crawler.spider})


def _fields_of(row: Any) -> dict[Any, Any]:
    """Return the fields of an item in its stored form."""
    row = _value_of(row)
    if not isinstance(row, dict):
        return {}
    pairs = row.get("$dict") or row.get("$ordereddict")
    if pairs:
        return {name: value for name, value in pairs if isinstance(name, str)}
    return {**row["fields"], **row.get("extra", {})} if "$item" in row else row


def _value_of(stored: Any) -> Any:
    """Return the part of a stored value that is the same at each crawl."""
    is_gap = isinstance(stored, dict) and "$unstorable" in stored
    return stored.get("value") if is_gap else stored


def _text(value: Any) -> str | None:
    """Return *value* as the text that a row takes; a page or a spider may have any class."""
    try:
        return None if value is None else str.__str__(str(value))
    except Exception:
        return None


def _traceback_of(error: Exception) -> str:
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:
        text = text_of(error)
    return text[-_LONGEST_TEXT:]
