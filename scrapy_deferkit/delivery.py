"""What keeps every item until it has ended: in the journal, then perhaps as a dead letter."""

from __future__ import annotations

import itertools
import json
import logging
import traceback
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrapy import signals
from scrapy.utils.job import job_dir
from scrapy.utils.python import global_object_name
from twisted.python.failure import Failure

from ._config import Config
from ._engine import Gate, resolve
from ._letterbox import LetterBox
from ._lifecycle import close_spider
from ._runtime import Timer, spawn
from .codec import Codec, Encoded
from .exceptions import DeadLettersError, StackConfigError, step_of, text_of
from .journal import Journal, JournalError, JournalInUse, JournalTooNew, UnreadableRow
from .merge import ATOMS, copy_item, is_simple
from .signals import item_dead_lettered

if TYPE_CHECKING:
    from collections.abc import Callable

    from scrapy.crawler import Crawler
    from scrapy.http import Response

    from .deadletters import DeadLetter, Failed
    from .journal import Entry, Write

logger = logging.getLogger(__name__)

PIPELINES = "pipelines"
SPIDER_STACK = "spider stack"

_DELIVERY = "_deferkit_delivery"
_LAST_WAIT = 10.0
_SIGNAL_COMES_IN = 5.0
_LONGEST_TEXT = 20_000
_LONGEST_ARGUMENT = 500


@dataclass(slots=True, eq=False)
class Stay:
    """One item in one stage, or on its way there, and what is kept of it as it came."""

    id: str
    stage: str
    page_url: str | None
    snapshot: Any
    """A copy of the item, where it is not encoded yet."""

    encoded: Encoded | None = None
    is_in_journal: bool = False
    attempts: int = 1
    write: Write | None = None
    """The transaction of the journal that its row is in, where this run has added that."""

    letter: DeadLetter | None = None
    """The dead letter that is being replayed."""

    item: Any = None
    """The item itself as long as it is on its way."""

    response: Response | None = None
    """The response that it comes from, as long as other middlewares may have it."""

    then: Stay | None = None
    """The next one, where an object is yielded again before it has entered."""


@dataclass(slots=True, eq=False)
class _Failing:
    """An item that has failed in the pipelines, and waits for the signal that tells its page."""

    stay: Stay
    error: Exception
    timer: Timer


class Delivery:
    """The journal and the dead letters of one crawl.

    Every item that enters a stage has a :class:`Stay` there, which ends once: by :meth:`end`, when
    it was scraped or dropped, or by :meth:`fail`. An item whose process dies has neither, and stays
    in the journal.
    """

    def __init__(self, crawler: Crawler, config: Config) -> None:
        self.crawler = crawler
        self.config = config
        self.codec = Codec.from_settings(crawler.settings)
        self.journal: Journal | None = None
        self.letters = LetterBox(crawler, config)
        self._on_their_way: dict[int, Stay] = {}
        self._moving: dict[int, list[Stay]] = {}
        self._moving_from: dict[int, dict[Stay, None]] = {}
        self._run = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._open_stays = 0
        self._emptied: Gate | None = None
        self._told: set[str] = set()
        self._failing: dict[int, list[_Failing]] = {}
        self.is_replay = crawler.settings.get("DEFERKIT_REPLAY") is not None
        crawler.signals.connect(self._on_item_error, signals.item_error)
        crawler.signals.connect(self.close, signals.engine_stopped)

    @classmethod
    async def begin(cls, crawler: Crawler) -> Delivery | None:
        """Give the delivery of *crawler*, its journal opened; ``None`` where it is off.

        It is off without the add-on, and in ``scrapy shell``, ``parse`` and ``check``, which are no
        crawls. Raises :exc:`~scrapy_deferkit.journal.JournalError` where the journal cannot be
        opened and ``DEFERKIT_JOURNAL_ON_ERROR`` is ``"close"``; whatever that is, where another
        process holds the journal or a newer version wrote it; and
        :exc:`~scrapy_deferkit.exceptions.StackConfigError` where ``DEFERKIT_DEAD_LETTERS_URL`` is
        wrong or its driver is missing.
        """
        config = Config.from_settings(crawler.settings)
        if not config.dead_letters or not _is_crawl(crawler):
            return None
        delivery = cls(crawler, config)
        try:
            await resolve(delivery.letters.prepare())
        except DeadLettersError as error:
            raise StackConfigError(str(error)) from error
        if config.journal:
            await delivery._open_journal()
        vars(crawler)[_DELIVERY] = delivery
        return delivery

    async def _open_journal(self) -> None:
        directory = job_dir(self.crawler.settings)
        assert directory is not None  # Config has seen to it
        journal = Journal(Path(directory) / "deferkit-journal.sqlite", self._on_journal_error)
        try:
            await resolve(journal.open())
        except JournalError as error:
            refused = isinstance(error, (JournalInUse, JournalTooNew))
            if refused or self.config.closes_on_journal_error:
                # Scrapy shows it as one of several that follow from each other.
                self._log(logging.ERROR, "The crawl does not begin: %s", error)
                raise
            self._log(logging.ERROR, "%s. Items in flight are not kept in this crawl.", error)
            return
        self.journal = journal

    def _on_journal_error(self, error: JournalError) -> None:
        self.crawler.stats.inc_value("deferkit/journal/errors")
        if isinstance(error, UnreadableRow):
            self._log(logging.ERROR, "%s. The row stays; the others are taken up", error)
        elif self.config.closes_on_journal_error:
            self._log(logging.ERROR, "%s. Closing the spider (DEFERKIT_JOURNAL_ON_ERROR)", error)
            close_spider(self.crawler, "journal_error")
        else:
            self._log(logging.ERROR, "%s. The crawl goes on without", error)

    # ------------------------------------------------------------------------ items on their way

    def expect(self, item: Any, page_url: str | None, **known: Any) -> None:
        """Begin the stay of *item*, which is about to enter the pipelines.

        Its row is written while Scrapy has others to process, so that it seldom has to be waited
        for.
        """
        before = self._moved(item) if self._moving else None
        stay = self._begin(PIPELINES, item, page_url, before=before, **known)
        stay.item = item
        last = self._on_their_way.setdefault(id(item), stay)
        while last is not stay:
            if last.then is None:
                last.then = stay
            last = last.then

    def moves(self, item: Any, stay: Stay, response: Response | None = None) -> None:
        """Take note that *item* has left the spider middleware's stack, for the pipelines.

        It is on its way as long as other middlewares have the output of *response*.
        """
        self.leave()
        if self.keeps_rows:
            stay.item, stay.response = item, response
            # One object may be yielded many times.
            self._moving.setdefault(id(item), []).append(stay)
            if response is not None:
                self._moving_from.setdefault(id(response), {})[stay] = None

    def _moved(self, item: Any) -> Stay | None:
        """Give the stay that *item* had in the spider middleware's stack."""
        moving = self._moving.get(id(item))
        if moving is None:
            return None
        stay = moving.pop(0)
        if not moving:
            del self._moving[id(item)]
        if stay.response is not None:
            self._moving_from[id(stay.response)].pop(stay)
        stay.item = stay.response = None
        return stay

    def end_output(self, response: Response, *, is_whole: bool) -> None:
        """Let the rows go of items that left the stack and that no middleware has handed on.

        Where the output has not come to its end they stay, for the next run.
        """
        for stay in tuple(self._moving_from.get(id(response), ())):
            moving = self._moving[id(stay.item)]
            moving.remove(stay)
            if not moving:
                del self._moving[id(stay.item)]
            stay.item = stay.response = None
            if is_whole:
                self._let_go(stay)
        self._moving_from.pop(id(response), None)

    @property
    def keeps_rows(self) -> bool:
        """Whether there is a row for each item in flight, of the journal or a dead letter's."""
        return self.journal is not None or self.is_replay

    def enter_pipelines(self, item: Any) -> Stay:
        """Give the stay of *item* in the pipelines; its write has to be over before it begins."""
        self._open_stays += 1
        stay = self._on_their_way.pop(id(item), None)
        if stay is None:
            return self._begin(PIPELINES, item, None)
        if stay.then is not None:
            self._on_their_way[id(item)] = stay.then
        stay.item = stay.then = None
        return stay

    def enter_spider_stack(self, item: Any, response: Response, **known: Any) -> Stay:
        """Give the stay of *item* in the spider middleware's stack, as for the pipelines."""
        self._open_stays += 1
        return self._begin(SPIDER_STACK, item, response.url, **known)

    def _begin(
        self,
        stage: str,
        item: Any,
        url: str | None,
        *,
        before: Stay | None = None,
        entry: Entry | None = None,
        letter: DeadLetter | None = None,
    ) -> Stay:
        """Begin a stay of *item*: after that one *before*, or for what was kept of it."""
        if letter is not None and stage == letter.stage:
            return Stay(letter.id, stage, url, None, letter=letter)
        if entry is not None and stage == entry.stage:
            missing = (entry.missing,) if entry.missing else ()
            encoded = Encoded(entry.item, entry.item_type, missing)
            return Stay(entry.id, stage, url, None, encoded, True, entry.attempts + 1)
        if before is not None and before.letter is not None:
            # A letter of the spider's stack stands for the item here too.
            return Stay(before.letter.id, stage, url, None, letter=before.letter)
        if self.journal is None:
            return Stay(self._new_id(), stage, url, self.copy(item))
        encoded = self._encode(item)
        missing_text = "; ".join(encoded.missing) if encoded.missing else None
        attempts = 1 if before is None else before.attempts
        row_id, write = self.journal.add(
            (stage, encoded.text, encoded.item_type, url, missing_text),
            attempts,
            before.id if before is not None and before.is_in_journal else None,
        )
        return Stay(row_id, stage, url, None, encoded, True, attempts, write)

    def _new_id(self) -> str:
        return f"{self._run}-{next(self._numbers)}"

    def note_untracked(self) -> None:
        """Count an item that begins without a row; the journal has told why."""
        self.crawler.stats.inc_value("deferkit/journal/untracked")

    def copy(self, item: Any) -> Any:
        """Give *item* as it is now: a copy where that shares nothing, else its stored form."""
        if type(item) is dict and ATOMS.issuperset(map(type, item.values())):
            return item.copy()  # what most items are, in half of the time
        return copy_item(item) if is_simple(item) else self._encode(item)

    def _encode(self, item: Any) -> Encoded:
        encoded = self.codec.encode(item)
        for missing in encoded.missing:
            self._tell_once(
                f"A value of an item has no stored form, so its row has a gap: {missing}. The item "
                "is processed all the same."
            )
        return encoded

    def _tell_once(self, message: str) -> None:
        if message not in self._told and len(self._told) < 100:
            self._told.add(message)
            self._log(logging.ERROR, "%s", message)

    # ------------------------------------------------------------------------------ how they end

    def end(self, stay: Stay) -> None:
        """Forget an item that was scraped or dropped."""
        self._let_go(stay)
        self.leave()

    def _let_go(self, stay: Stay) -> None:
        if stay.letter is not None:
            self.crawler.stats.inc_value("deferkit/replay/delivered")
            self.letters.delivered(stay.letter.id)
        elif stay.is_in_journal and self.journal is not None:
            self.journal.end(stay.id)

    def leave(self) -> None:
        """Let an item go, and leave its row: it goes on to another stage, or to the next crawl."""
        self._open_stays -= 1
        if not self._open_stays and self._emptied is not None:
            self._emptied.open()

    def failed_in_pipelines(self, kept: Any, item: Any, error: Exception) -> None:
        """Have *item* kept as a dead letter, as soon as Scrapy's ``item_error`` tells its page.

        *kept* is its stay, or a copy of it as it entered.
        """
        stay = kept
        if not isinstance(kept, Stay):
            stay = Stay(self._new_id(), PIPELINES, None, kept)
            self._open_stays += 1
        failing = _Failing(stay, error, Timer(_SIGNAL_COMES_IN, lambda: self._fail_unheard(item)))
        self._failing.setdefault(id(item), []).append(failing)

    def _take_failing(self, item: Any, error: Any) -> _Failing | None:
        failings = self._failing.get(id(item), [])
        failing = next((it for it in failings if error is None or it.error is error), None)
        if failing is not None:
            failing.timer.cancel()
            failings.remove(failing)
            if not failings:
                del self._failing[id(item)]
        return failing

    async def _on_item_error(self, item: Any, response: Any, failure: Failure) -> None:
        failing = self._take_failing(item, failure.value)
        if failing is not None:
            if failing.stay.page_url is None:
                failing.stay.page_url = getattr(response, "url", None)
            await self.fail(failing.stay, item, failing.error)

    def _fail_unheard(self, item: Any) -> None:
        spawn(self.fail_unheard(item), self._log_unkept)

    async def fail_unheard(self, item: Any) -> None:
        """Keep *item*, if it has failed and Scrapy sends no signal of that."""
        failing = self._take_failing(item, None)
        if failing is not None:
            await self.fail(failing.stay, item, failing.error)

    def _log_unkept(self, failure: Failure) -> None:
        self._log(logging.ERROR, "A failed item could not be kept: %s", failure.value)

    async def fail(self, stay: Stay, item: Any, error: Exception) -> None:
        """Keep an item that failed with *error* as a dead letter; *item* is what is left of it."""
        failed = self._failed(stay, error)
        try:
            await resolve(self.letters.put(failed, is_replayed=stay.letter is not None))
        except Exception as trouble:
            self.letters.tell_of_lost(failed, trouble, is_in_journal=self._has_row(stay))
            self.leave()
            return
        if stay.is_in_journal and self.journal is not None:
            self.journal.end(stay.id)
        what = "items/dead_lettered" if stay.letter is None else "replay/failed"
        self.crawler.stats.inc_value(f"deferkit/{what}")
        try:
            await self.crawler.signals.send_catch_log_async(
                item_dead_lettered,
                item=item,
                failure=Failure(error),
                letter_id=failed.id,
                spider=self.crawler.spider,
            )
        finally:
            self.leave()

    def _has_row(self, stay: Stay) -> bool:
        return stay.is_in_journal and self.journal is not None and self.journal.has(stay.id)

    def _failed(self, stay: Stay, error: Exception) -> Failed:
        from .deadletters import Failed

        encoded = stay.encoded
        if encoded is None and stay.letter is not None:
            missing = (stay.letter.missing,) if stay.letter.missing else ()
            encoded = Encoded(stay.letter.item, stay.letter.item_type, missing)
        elif isinstance(stay.snapshot, Encoded):
            encoded = stay.snapshot
        elif encoded is None:
            encoded = self._encode(stay.snapshot)
        spider = self.crawler.spider
        assert spider is not None
        return Failed(
            id=stay.id,
            spider=spider.name,
            spider_args=json.dumps(_arguments_of(spider)),
            stage=stay.stage if stay.letter is None else stay.letter.stage,
            item=encoded.text,
            item_type=encoded.item_type,
            missing="; ".join(encoded.missing) or None,
            page_url=stay.page_url,
            step=step_of(error),
            error_type=global_object_name(type(error)),
            error=text_of(error)[:_LONGEST_TEXT],
            traceback=_traceback_of(error),
            at=datetime.now(timezone.utc),
        )

    async def fail_unread(
        self, error: Exception, *, entry: Entry | None = None, letter: DeadLetter | None = None
    ) -> None:
        """Keep what cannot be read, or not be processed, as the dead letter that it is."""
        kept = entry or letter
        assert kept is not None
        missing = (kept.missing,) if kept.missing else ()
        encoded = Encoded(kept.item, kept.item_type, missing)
        stay = Stay(
            kept.id, kept.stage, kept.page_url, None, encoded, entry is not None, letter=letter
        )
        self._open_stays += 1
        self._log(logging.ERROR, "The kept item %s cannot be processed: %s", kept.id, error)
        await self.fail(stay, None, error)

    # ----------------------------------------------------------------------------- how it closes

    async def close(self) -> None:
        """Write what is to be written, and let go of the files."""
        if self._open_stays:
            self._emptied = Gate([])
            timer = Timer(_LAST_WAIT, self._emptied.open)
            await resolve(self._emptied.deferred)
            timer.cancel()
        await self.letters.close()
        if self.journal is not None:
            try:
                await resolve(self.journal.close())
            except JournalError as error:
                self._log(logging.ERROR, "%s", error)
        vars(self.crawler).pop(_DELIVERY, None)

    def _log(self, level: int, message: str, *args: object) -> None:
        logger.log(level, message, *args, extra={"spider": self.crawler.spider})


def delivery_of(crawler: Crawler) -> Delivery | None:
    """Give the delivery of *crawler*, once the spider is open; ``None`` where it is off."""
    delivery: Delivery | None = vars(crawler).get(_DELIVERY)
    return delivery


def _is_crawl(crawler: Crawler) -> bool:
    """Tell whether this is a crawl: the commands ``parse`` and ``check`` put their own start()."""
    start: Callable[..., Any] | None = getattr(crawler.spidercls, "start", None)
    module = getattr(start, "__module__", None) or ""
    return crawler.crawling and not module.startswith("scrapy.commands.")


def _arguments_of(spider: Any) -> dict[str, str]:
    """Give the attributes of *spider* that may be its arguments: those that are text."""
    return {
        name: value
        for name, value in vars(spider).items()
        if isinstance(value, str)
        and len(value) <= _LONGEST_ARGUMENT
        and name != "name"
        and not name.startswith("_")
    }


def _traceback_of(error: Exception) -> str:
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:
        text = text_of(error)
    return text[-_LONGEST_TEXT:]
