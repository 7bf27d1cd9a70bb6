"""Writes the dead letters of one crawl: in a thread, in groups, with retries."""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ._crawl import count
from ._engine import Outstanding, resolve
from ._imports import import_in_thread
from ._letters import Selection
from ._lifecycle import close_spider
from ._runtime import WorkerThread, sleep, spawn
from ._sqlite_check import check_sqlite_file, sqlite_file
from .exceptions import DeadLettersError, DeadLettersUnavailable, counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from scrapy.crawler import Crawler

    from ._config import Config
    from ._letters import Failed
    from .deadletters import DeadLetters

_T = TypeVar("_T")

logger = logging.getLogger(__name__)

_PATIENCE = 30.0
"""Seconds for which a store that is not to be reached is tried again."""


_LONGEST_NAME = 200
"""Characters of a file's name that are of a spider's; 255 are allowed, with those SQLite adds."""


class LetterBox:
    """The dead letters of one crawl, written in a thread, in groups, and again where that fails."""

    def __init__(self, crawler: Crawler, config: Config) -> None:
        self._crawler = crawler
        self._url = config.dead_letters_url
        self._most = config.dead_letters_max
        self.owner = uuid.uuid4().hex
        """Whose leases those of this crawl are."""

        self._file: Path | None = None
        self._store: DeadLetters | None = None
        self._thread: WorkerThread | None = None
        self._waiting: dict[str, list[tuple[Any, Deferred[None]]]] = {}
        """What is to be written, by the method of the store that does it."""

        self._writing = Outstanding()
        self._has_given_up = False

    def call(self, function: Callable[[DeadLetters], _T]) -> Deferred[_T]:
        """Call *function* with the store, in the thread; the first call imports SQLAlchemy."""
        return self._in_thread(lambda: function(self._opened()))

    def prepare(self) -> Deferred[None]:
        """Check in the thread whether letters can be written; fails with a ``DeadLettersError``.

        SQLAlchemy is not imported for a SQLite file, and nothing is created.
        """
        return self._in_thread(self._check)

    def _in_thread(self, function: Callable[[], _T]) -> Deferred[_T]:
        if self._thread is None:
            self._thread = WorkerThread("deferkit-dead-letters")
        return self._thread.call(function)

    def _check(self) -> None:
        url, name = self._url, self._spider_name
        if not isinstance(name, str):
            raise DeadLettersError(
                f"The name of the spider is {name!r} ({type(name).__name__}): text is expected, as "
                'in name = "books"'
            )
        self._file = default_file(name) if url is None else sqlite_file(url)
        if self._file is None:
            self._opened().check()
        else:
            check_sqlite_file(self._file, f"sqlite:///{self._file}")
        if self._most and (self._file is None or self._file.exists()):
            self._check_number(name)

    def _check_number(self, name: str) -> None:
        """Raise ``DeadLettersError`` if there are so many letters that the crawl would close."""
        with suppress(DeadLettersUnavailable):  # a file that is in use, and may be free later
            there = self._opened().count(Selection(spider=name))
            if there >= self._most:
                raise DeadLettersError(
                    f"DEFERKIT_DEAD_LETTERS_MAX = {self._most}: {name} has so many dead letters "
                    f"already ({there}). Deliver them with scrapy deferkit replay {name}, delete "
                    f"some with scrapy deferkit dead-letters delete --spider {name}, or allow more."
                )

    def _opened(self) -> DeadLetters:
        if self._store is None:
            from .deadletters import DeadLetters

            # The file, rather than the URL: the process may be in another folder by now.
            url = self._url if self._file is None else _url_of(self._file)
            self._store = DeadLetters(url or default_url(self._spider_name))
        return self._store

    @property
    def _spider_name(self) -> str:
        assert self._crawler.spider is not None
        return self._crawler.spider.name

    def put(self, failed: Failed, *, is_replayed: bool) -> Deferred[None]:
        """Keep *failed*; return a Deferred that fires when it is safe."""
        return self._add("failed_again" if is_replayed else "put", failed)

    def delivered(self, letter_id: str) -> None:
        """Remove a letter that has been delivered."""
        self._add("delivered", letter_id).addErrback(self._log_not_removed, letter_id)

    def remove(self, letter_id: str) -> None:
        """Remove a letter that nobody needs any more."""
        self._add("remove", letter_id).addErrback(
            lambda failure: self._log(
                "The dead letter %s could not be removed: %s", letter_id, failure.value
            )
        )

    def _log_not_removed(self, failure: Failure, letter_id: str) -> None:
        count(self._crawler, "replay/not_removed")
        said = "The dead letter %s was delivered and could not be removed: %s"
        self._log(said, letter_id, failure.value)

    def _log(self, message: str, *args: object, level: int = logging.ERROR) -> None:
        logger.log(level, message, *args, extra={"spider": self._crawler.spider})

    def _add(self, kind: str, what: Any) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._waiting.setdefault(kind, []).append((what, done))
        if not self._writing.number:
            self._writing.begin()
            spawn(
                self._write(),
                lambda failure: self._log("Dead letters were not written: %s", failure.value),
            )
        return done

    async def _write(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, {}
            for kind, some in group.items():
                await self._write_some(kind, some)
        # Not where it was cancelled: the process ends, and what is cancelled then is no failure.
        self._writing.end()

    async def _write_some(self, kind: str, some: list[tuple[Any, Deferred[None]]]) -> None:
        whats = [what for what, _ in some]
        owner = () if kind in {"put", "remove"} else (self.owner,)
        try:
            await self.patiently(lambda store: getattr(store, kind)(*owner, whats))
        except Exception as error:
            if len(some) > 1 and not isinstance(error, DeadLettersUnavailable):
                for one in some:  # one that is refused must not hurt the others
                    await self._write_some(kind, [one])
                return
            failure = Failure()
            for _, done in some:
                done.errback(failure)
        else:
            for _, done in some:
                done.callback(None)
            if kind == "put" and self._most:
                await self._check_room()

    async def patiently(self, function: Callable[[DeadLetters], _T]) -> _T:
        """Call *function* with the store, and again while that is not to be reached."""
        await import_in_thread("tenacity")
        import tenacity

        async def attempt() -> _T:
            result: _T = await resolve(self.call(function))
            return result

        def log(state: tenacity.RetryCallState) -> None:
            assert state.outcome is not None
            self._log("%s Trying again.", state.outcome.exception(), level=logging.WARNING)

        try:
            result: _T = await tenacity.AsyncRetrying(
                sleep=sleep,
                retry=tenacity.retry_if_exception_type(DeadLettersUnavailable),
                stop=tenacity.stop_after_delay(0 if self._has_given_up else _PATIENCE),
                wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
                before_sleep=log,
                reraise=True,
            )(attempt)
        except DeadLettersUnavailable:
            self._has_given_up = True
            raise
        self._has_given_up = False
        return result

    async def _check_room(self) -> None:
        ours = Selection(spider=self._spider_name)
        try:
            there = await self.patiently(lambda store: store.count(ours))
        except DeadLettersError as trouble:  # they are safe all the same
            self._log("%s", trouble)
            return
        if there >= self._most:
            said = "%s kept: closing the spider (DEFERKIT_DEAD_LETTERS_MAX = %d)"
            self._log(said, counted(there, "dead letter"), self._most)
            self._most = 0  # it is closing: that is said once
            close_spider(self._crawler, "dead_letters_full")

    async def tell_of_unkept(self, failed: Failed, trouble: Exception, left: str) -> None:
        """Log all of *failed*, which could not be written because of *trouble*, and what is *left*.

        Closes the crawl if it was not this letter but the store: the others would be lost too.
        """
        count(self._crawler, "items/not_dead_lettered")
        self._log(
            "A failed item could not be kept as a dead letter: %s %s: %s",
            trouble,
            left,
            json.dumps(asdict(failed), default=str),
            level=logging.CRITICAL,
        )
        try:
            if isinstance(trouble, DeadLettersUnavailable):
                raise trouble
            await resolve(self.call(lambda store: store.check()))
        except DeadLettersError:
            close_spider(self._crawler, "dead_letters_unavailable")

    async def give_up_leases(self) -> None:
        """Let others have the letters that were taken here and have not ended."""
        await self._writing.until_none()
        try:
            await self.patiently(lambda store: store.release(self.owner))
        except DeadLettersError as trouble:
            self._log("Leases could not be given up, and end by themselves: %s", trouble)

    async def close(self) -> None:
        """Write what waits, and let go of the store."""
        await self._writing.until_none()
        if self._thread is not None:
            if self._store is not None:
                await resolve(self.call(lambda store: store.close()))
            self._thread.close()
            self._thread = None


def default_folder() -> Path:
    """Give the folder in the project's data directory where the SQLite files are.

    Unlike Scrapy's ``data_path()``, this creates nothing, and does without a ``scrapy.cfg``.
    """
    from scrapy.utils.conf import closest_scrapy_cfg, get_config
    from scrapy.utils.project import inside_project

    data = Path(".scrapy")
    if inside_project():
        config, nearest = get_config(), closest_scrapy_cfg()
        if config.has_option("datadir", "default"):
            data = Path(config.get("datadir", "default"))
        elif nearest:
            data = Path(nearest).parent / data
    return data.absolute() / "deferkit"


def default_file(spider: str) -> Path:
    """Return the SQLite file of *spider*, in the project's data directory."""
    name = quote(spider, safe="", errors="backslashreplace")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return default_folder() / f"{name}.sqlite"


def default_url(spider: str) -> str:
    """Return the URL of the SQLite file of *spider*; imports SQLAlchemy."""
    return _url_of(default_file(spider))


def _url_of(file: Path) -> str:
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=str(file)).render_as_string()
