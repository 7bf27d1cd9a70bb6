"""A scheduler whose crawl goes on, after its process has died, as if it had not."""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections import deque
from contextlib import suppress
from hashlib import blake2b
from itertools import chain
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from scrapy import signals
from scrapy.core.scheduler import BaseScheduler
from scrapy.dupefilters import RFPDupeFilter
from scrapy.exceptions import CloseSpider
from scrapy.http import Request
from scrapy.pqueues import DownloaderAwarePriorityQueue, ScrapyPriorityQueue
from scrapy.utils.misc import build_from_crawler, load_object
from scrapy.utils.request import request_from_dict

from ._config import Config
from ._crawl import count, crawl_of, is_crawl
from ._engine import Outstanding, resolve, shield
from ._feeds import Feeds
from ._jobfile import Aside, Batch, JobFile, Queue
from ._lifecycle import close_spider
from ._outline import Outline
from ._runtime import CANCELLED, Timer, WorkerThread, call_soon, spawn, to_deferred
from ._scrapy import (
    engine_of,
    is_in_work,
    wake,
    wrap_closing,
    wrap_scraping,
)
from .exceptions import JobError, StackConfigError, counted, text_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scrapy import Spider
    from scrapy.core.engine import ExecutionEngine
    from scrapy.crawler import Crawler
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure
    from typing_extensions import Self

    from ._jobfile import Found

logger = logging.getLogger(__name__)

_NO_FOLDER = ""  # else Scrapy's queues would look after a folder for each that is empty
_WRITE_EVERY = 0.05  # seconds; what was done in them is done again after a death
_MOST_RECENT = 1000  # requests that need not be read back
_IN_MEMORY = 0  # in the place of the number of a request that is not in the file
_PATIENCE = 10.0  # seconds; what is given alone may wait for another page
_STATE_SHARE = 100  # spider.state takes at most one part in so many of the time

_IS_NO_END = (CloseSpider, MemoryError, *CANCELLED)


class _Seen(RFPDupeFilter):
    """Scrapy's filter, whose fingerprints are in the job's file."""

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(
            debug=crawler.settings.getbool("DUPEFILTER_DEBUG"),
            fingerprinter=crawler.request_fingerprinter,
        )
        self.digests: set[bytes] = set()

    def digest(self, request: Request) -> bytes:
        return self.fingerprinter.fingerprint(request)


class Scheduler(BaseScheduler):
    """Keeps what is to be crawled, and what is being crawled, in one SQLite file in ``JOBDIR``.

    After the process has died for any reason, the same job run again loses no page and no item.
    A request stays in the file until all that it brought is safe: its requests are in the file, its
    items have ended. What was in work at a death goes first in the next run. A request that was in
    work at two deaths is given alone, and is set aside at the fourth (``DEFERKIT_MAX_DEATHS``):
    ``scrapy deferkit job JOBDIR`` shows it and puts it back.

    Requests come in the order of Scrapy's own scheduler, whose priority queues and settings it
    uses. What happens within 50 ms is written in one transaction by a thread; nothing waits for it.

    Without a ``JOBDIR``, and in ``scrapy shell``, ``fetch``, ``view``, ``parse`` and ``check``,
    all is in memory.

    Raises :exc:`~scrapy_deferkit.exceptions.JobError` at the start of a crawl if the file cannot be
    used, and :exc:`~scrapy_deferkit.exceptions.StackConfigError` if the class of a queue is not one
    that is served. If the file cannot be written later, the crawl closes with the reason
    ``job_failed``, and no request leaves the file any more.
    """

    def __init__(self, crawler: Crawler) -> None:
        settings = crawler.settings
        self._crawler = crawler
        self._config = Config.from_settings(settings)
        folder = (settings["JOBDIR"] or None) if is_crawl(crawler) else None
        self._file = None if folder is None else JobFile(folder, fsync=self._config.job_fsync)
        self._thread = WorkerThread("deferkit-job")
        self._queue_class = load_object(settings["SCHEDULER_PRIORITY_QUEUE"])
        self._seen: _Seen | None = None
        filter_class = load_object(settings["DUPEFILTER_CLASS"])
        if filter_class is RFPDupeFilter:
            self._seen = _Seen(crawler)
        self.df: Any = self._seen or build_from_crawler(filter_class, crawler)
        self._stats = crawler.stats
        self._feeds = Feeds(crawler)
        self.mqs: Any = ()
        self.dqs: Any = None
        self._restored: dict[str, deque[int]] = {}
        self._queues: dict[tuple[str, str], int] = {}
        self._deadly: set[bytes] = set()
        self._last = 0
        self._recent: dict[int, Request] = {}
        self._first: deque[int] = deque()
        self._suspects: deque[int] = deque()
        self._alone: Request | None = None
        self._stays_since: float | None = None
        self._is_careful = False
        self._stored, self._number = b"", 0  # what passes through Scrapy's queues
        self._in_work: dict[Request, int] = {}
        self._scraping: set[Request] = set()
        self._kept: set[Request] = set()
        self._fingerprint_later: dict[Request, bytes] = {}
        self._replaced: list[tuple[bytes]] = []  # as long as what replaces them may be in memory
        self._ended: list[tuple[bytes]] = []  # of what was in memory, until its output is safe
        self._left: list[int] = []
        self._is_frozen = self._has_failed = False
        self._is_open = self._is_closing = self._has_closed = False
        self._batch = Batch()
        self._being_written = Batch()
        self._writing: Deferred[Any] | None = None
        self._timer: Timer | None = None
        self._unwritten: dict[int, bytes] = {}
        self._unlettered: list[Aside] = []
        self._lettered: set[int] = set()
        self._letters: dict[int, str] = {}
        self._lettering = Outstanding()
        self._state_due = 0.0
        self._state = b""
        self._has_told_of_memory = False

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Build the scheduler of *crawler*."""
        return cls(crawler)

    # ------------------------------------------------------------------------------ from Scrapy

    def open(self, spider: Spider) -> Deferred[None] | None:
        """Open the job and its queues, and take up what the last run left."""
        settings = self._crawler.settings
        memory, start = (
            path and load_object(path)
            for path in map(
                settings.get, ("SCHEDULER_MEMORY_QUEUE", "SCHEDULER_START_MEMORY_QUEUE")
            )
        )
        self.mqs = self._make_queue(memory, start, "", None)
        if self._file is not None:
            classes = self._ids("SCHEDULER_DISK_QUEUE"), self._ids("SCHEDULER_START_DISK_QUEUE")
            found = self._file.open(self._config.max_deaths)
            priorities = self._restore(found)
            self.dqs = self._make_queue(*classes, _NO_FOLDER, priorities)
            self._refuse_other_queues()
            if batch := Batch(feeds=self._feeds.resume(found, self._file.folder)):
                self._file.write(batch, [])
            self._watch()
            self._tell(found)
            # Last of those who hear of it: they may change spider.state.
            self._crawler.signals.connect(self._end, signals.spider_closed)
            self._is_open = True
        elif self._crawler.settings["JOBDIR"]:
            spider.state = {}  # type: ignore[attr-defined]  # in `scrapy parse`, say
        return self.df.open()  # type: ignore[no-any-return]

    def close(self, reason: str) -> Deferred[None] | None:
        """Write what is to be written, and let go of the job."""
        return to_deferred(self._close(reason))

    def has_pending_requests(self) -> bool:
        """Check whether there are requests to be given."""
        return len(self) > 0

    def __len__(self) -> int:
        stored = 0 if self.dqs is None else len(self.dqs)
        return stored + len(self.mqs) + len(self._first) + len(self._suspects)

    def enqueue_request(self, request: Request) -> bool:
        """Keep *request*, unless it is filtered out; never raises."""
        try:
            return self._enqueue(request)
        except Exception as error:
            # Nobody can tell whose output it is.
            self._kept.update(self._in_work)
            count(self._crawler, "job/errors")
            self._log(
                logging.ERROR,
                "%s cannot be scheduled, so what is in work now is crawled again in the next run "
                "of the job: %s",
                request,
                text_of(error),
                exc_info=error,
            )
            return False

    def next_request(self) -> Request | None:
        """Return the next request, or ``None`` if there is none to be given now; never raises."""
        try:
            return self._next()
        except Exception as error:
            self._fail(JobError(f"no request could be taken: {text_of(error)}"), error)
            return None

    # ------------------------------------------------------------------------ how it is taken up

    def _make_queue(self, downstream: Any, start: Any, key: str, priorities: Any) -> Any:
        """Make a priority queue as Scrapy's scheduler does."""
        return build_from_crawler(
            self._queue_class,
            self._crawler,
            downstream_queue_cls=downstream,
            key=key,
            startprios=priorities or (),
            start_queue_cls=start,
        )

    def _ids(self, setting: str) -> type | None:
        """Return a class of queues of our requests that gives them in the order of *setting*'s."""
        path = self._crawler.settings[setting]
        if not path:
            return None
        names = [cls.__name__.lower() for cls in load_object(path).__mro__]
        kinds = [kind for name in names for kind in ("fifo", "lifo") if kind in name]
        if not kinds:
            raise StackConfigError(
                f"{setting} = {path!s}: with a JOBDIR, its order alone is taken over, and its name "
                "does not say which: use a class with Fifo or Lifo in its name, such as "
                "scrapy.squeues.PickleFifoDiskQueue"
            )
        members = {"scheduler": self, "is_fifo": kinds[0] == "fifo"}
        return type(_Ids.__name__, (_Ids,), members)

    def _refuse_other_queues(self) -> None:
        """Raise if requests wait in queues that the classes of this run do not ask for."""
        if self._restored:
            number = sum(map(len, self._restored.values()))
            raise JobError(
                f"{counted(number, 'request')} in {self._file.path} "  # type: ignore[union-attr]
                "in queues of other classes: set SCHEDULER_PRIORITY_QUEUE and "
                "SCHEDULER_START_DISK_QUEUE as they were when the job was begun"
            )

    def _restore(self, found: Found) -> Any:
        """Take up what *found* has; return the priorities that Scrapy's queues begin with."""
        self._last, self._deadly = found.last, found.deadly
        if self._seen is not None:
            self._seen.digests = found.seen
        may_kill = min(2, self._config.max_deaths - 1)
        self._suspects.extend(number for number, deaths in found.in_work if deaths >= may_kill)
        self._first.extend(number for number, deaths in found.in_work if deaths < may_kill)
        # What has died at once may have died before it was in the file.
        self._is_careful = found.has_died or any(deaths for _, deaths in found.in_work)
        priorities: dict[str, set[float]] = {}
        waiting: dict[str, list[deque[int]]] = {}
        for queue in found.queues:
            self._queues[queue.key, queue.slot] = queue.id
            ids = found.waiting.pop(queue.id, None)
            if ids:
                waiting.setdefault(queue.key, []).append(ids)
                priority = _number_of(queue.key.rpartition("/")[2].rstrip("s"))
                priorities.setdefault(queue.slot, set()).add(priority)
        for key, some in waiting.items():  # several slots may have one queue
            self._restored[key] = some[0] if len(some) == 1 else deque(sorted(chain(*some)))
        if found.state is not None:
            self._state = found.state
        try:
            state = pickle.loads(self._state) if self._state else {}
        except Exception as error:
            raise JobError(
                f"the spider.state that {self._file.path} holds cannot be read: "  # type: ignore[union-attr]
                f"{text_of(error)}; let its classes be found again, or begin the job anew in "
                "another JOBDIR"
            ) from error

        def set_state() -> None:
            self._crawler.spider.state = state  # type: ignore[union-attr]

        set_state()
        # Scrapy's extension, if it is on, sets what a clean end has left.
        self._crawler.signals.connect(set_state, signals.spider_opened, weak=False)
        if issubclass(self._queue_class, DownloaderAwarePriorityQueue):
            return {slot: sorted(some) for slot, some in priorities.items()}
        if not issubclass(self._queue_class, ScrapyPriorityQueue):
            raise StackConfigError(
                f"SCHEDULER_PRIORITY_QUEUE = {self._crawler.settings['SCHEDULER_PRIORITY_QUEUE']}: "
                "with a JOBDIR it is ScrapyPriorityQueue, DownloaderAwarePriorityQueue or a "
                "subclass; SCHEDULER = 'scrapy.core.scheduler.Scheduler' serves others"
            )
        return sorted(set().union(*priorities.values()))

    def _tell(self, found: Found) -> None:
        assert self._file is not None
        if self._seen is None:
            self._log(
                logging.WARNING,
                "DUPEFILTER_CLASS is %s: what it has seen is not in the job, and may say of pages "
                "that were in work at a death that they were crawled",
                self._crawler.settings["DUPEFILTER_CLASS"],
            )
        self._unlettered, self._lettered = found.unlettered, found.lettered
        self._crawler.signals.connect(self._put_letters, signals.spider_opened)
        for aside in found.unlettered:
            if aside.id in found.killers:
                self._log_aside(aside)
        if found.is_new:
            return
        self._stats.set_value("deferkit/job/resumed", len(found.in_work))
        self._log(
            logging.INFO,
            "The job in %s goes on, whose last run %s. In work then, and first now: %d; %d of "
            "them alone, since runs died with them; waiting: %d; asked for in all: %d; set aside: "
            "%d",
            self._file.folder,
            "died" if found.has_died else "was closed",
            len(found.in_work),
            len(self._suspects),
            len(self.dqs),
            len(found.seen),
            found.aside,
        )

    # --------------------------------------------------------------------------- what comes in

    def _enqueue(self, request: Request) -> bool:
        if self._has_closed:
            raise JobError("the crawl has ended")
        digest = None
        if not request.dont_filter:
            if self._seen is None:
                is_seen = self.df.request_seen(request)
            else:
                digest = self._seen.digest(request)
                is_seen = digest in self._seen.digests
            if is_seen:
                self.df.log(request, self._crawler.spider)
                return False
            if self._seen is not None and digest is not None:
                self._seen.digests.add(digest)
        data = None if self.dqs is None else self._pickled(request)
        if data is None:
            self.mqs.push(request)
            if digest is not None and self._file is not None:
                self._fingerprint_later[request] = digest
            self._stats.inc_value("scheduler/enqueued/memory")
        elif self._deadly and data in self._deadly:  # else each would be hashed
            self._log(logging.WARNING, "%s is set aside, and is not crawled again", request)
            return False
        else:
            if digest is not None:
                self._batch.seen.append((digest,))
            self._stored = data
            self.dqs.push(request)
            self._stats.inc_value("scheduler/enqueued/disk")
        self._stats.inc_value("scheduler/enqueued")
        return True

    def _pickled(self, request: Request) -> bytes | None:
        """Return *request* as Scrapy's own queues on disk store it; ``None`` if it cannot be."""
        try:
            return pickle.dumps(request.to_dict(spider=self._crawler.spider), protocol=4)
        except (ValueError, TypeError, AttributeError, RecursionError, pickle.PickleError) as error:
            self._stats.inc_value("scheduler/unserializable")
            if not self._has_told_of_memory:
                self._has_told_of_memory = True
                self._log(
                    logging.WARNING,
                    "%s cannot be stored: %s. It stays in memory, as do others of its kind; what "
                    "still waits there when the run ends is lost",
                    request,
                    error,
                )
            return None

    def _store(self, request: Request, key: str) -> int:
        """Take *request* into the batch, for the queue *key*; return its id."""
        slot = self._engine.downloader.get_slot_key(request)
        queue = self._queues.get((key, slot))
        if queue is None:
            queue = self._queues[key, slot] = len(self._queues) + 1
            self._batch.queues.append(Queue(queue, key, slot))
        self._last += 1
        self._batch.requests.append((self._last, queue, self._stored))
        self._unwritten[self._last] = self._stored
        self._recent[self._last] = request
        if len(self._recent) > _MOST_RECENT:
            del self._recent[next(iter(self._recent))]
        self._write_soon()
        return self._last

    # --------------------------------------------------------------------------- what goes out

    def _next(self) -> Request | None:
        if self._has_failed:
            return None
        if self._alone is not None:
            self._look()
            if self._alone not in self._in_work:
                self._alone = self._stays_since = None
            elif not self._stays(self._alone):
                return None
        if self._suspects and self._alone is None:
            self._look()
            if self._in_work:
                return None
            self._alone = request = self._take_first(self._suspects)
            if request is not None:
                return self._give(request, "disk")
        if self._first and self._first[0] in self._unwritten:
            self._write()
            return None
        if self._first and (request := self._take_first(self._first)) is not None:
            return self._give(request, "disk")
        if (request := self.mqs.pop()) is not None:
            self._stats.inc_value("scheduler/dequeued/memory")
            self._stats.inc_value("scheduler/dequeued")
            if self._file is not None:
                self._in_work.setdefault(request, _IN_MEMORY)
            return request  # type: ignore[no-any-return]
        while self.dqs is not None and len(self.dqs):
            if (request := self.dqs.pop()) is not None:
                if self._is_careful and self._number in self._unwritten:
                    # What dies at once has to be known to the next run. Others need not be: while
                    # start() goes on, there is always one that is not written.
                    self._recent[self._number] = request
                    self._first.append(self._number)
                    self._write()
                    return None
                return self._give(request, "disk")
        return None

    def _stays(self, alone: Request) -> bool:
        """Check whether *alone*, whose response is there, has long been all that is in work.

        Its callback or its items may wait for what another page brings: that is given then.
        """
        if alone not in self._scraping or self._engine.downloader.active:
            self._stays_since = None
            return False
        now = perf_counter()
        if self._stays_since is None:
            self._stays_since = now
        return now - self._stays_since >= _PATIENCE

    def _take_first(self, queue: deque[int]) -> Request | None:
        while queue:
            if (request := self._load(queue.popleft())) is not None:
                return request
        return None

    def _load(self, number: int) -> Request | None:
        """Return the request *number*; set it aside if it cannot be read."""
        self._number = number
        request = self._recent.pop(number, None)
        if request is not None and request not in self._in_work:  # one may be given twice
            return request
        assert self._file is not None
        data = self._unwritten.get(number) or self._file.read(number)
        if data is None:
            self._log(
                logging.ERROR,
                "The request %d is not in %s any more: somebody has deleted it",
                number,
                self._file.path,
            )
            return None
        if number in self._lettered:
            self._letters[number] = self._letter_id(number, data)
        try:
            return request_from_dict(pickle.loads(data), spider=self._crawler.spider)
        except MemoryError:
            raise  # it says nothing of the request
        except Exception as error:
            # Without addresses in memory, so that those of one kind look alike.
            reason = f"it cannot be read: {re.sub(' at 0x[0-9a-fA-F]+', '', text_of(error))}"
            self._batch.aside.append((reason, number))
            self._write_soon()
            aside = Aside(number, data, 0, reason)
            self._log_aside(aside)
            self._put_letter(aside)
            return None

    def _give(self, request: Request, where: str) -> Request:
        assert self._file is not None
        self._file.note_given(self._number)
        self._in_work[request] = self._number
        self._stats.inc_value(f"scheduler/dequeued/{where}")
        self._stats.inc_value("scheduler/dequeued")
        return request

    # ------------------------------------------------------------------------- what is set aside

    def _log_aside(self, aside: Aside) -> None:
        assert self._file is not None
        count(self._crawler, "job/set_aside")
        self._log(
            logging.ERROR,
            "%s is set aside, since %s. See `scrapy deferkit job %s`",
            Outline.of(aside.data),
            aside.reason,
            self._file.folder,
        )

    def _put_letters(self) -> None:
        unlettered, self._unlettered = self._unlettered, []
        for aside in unlettered:
            self._put_letter(aside)

    def _put_letter(self, aside: Aside) -> None:
        """Let *aside* have its dead letter, if these are kept; repeated, it is the same one."""
        delivery = crawl_of(self._crawler).delivery
        if delivery is None:
            return
        assert self._file is not None
        folder = self._file.folder.absolute()
        error = JobError(f"{aside.reason}; to crawl it, scrapy deferkit job {folder} --retry")
        outline = Outline.of(aside.data)._asdict()
        kept = delivery.keep_request(self._letter_id(aside.id, aside.data), outline, error)
        self._lettering.begin()
        spawn(self._note_lettered(aside, kept), lambda _: None)

    def _letter_id(self, number: int, data: bytes) -> str:
        folder = os.fsencode(self._file.folder.absolute())  # type: ignore[union-attr]
        return f"{blake2b(folder + data, digest_size=16).hexdigest()}-{number}"

    async def _note_lettered(self, aside: Aside, kept: Awaitable[None]) -> None:
        try:
            await kept
        except Exception as error:
            self._log(
                logging.WARNING,
                "%s is set aside and has no dead letter yet, which the next run tries again: %s",
                Outline.of(aside.data),
                text_of(error),
            )
        else:
            self._batch.lettered.append((aside.id,))
            self._write_soon()
        finally:
            self._lettering.end()

    # ------------------------------------------------------------------------------ what is done

    @property
    def _engine(self) -> ExecutionEngine:
        engine = engine_of(self._crawler)
        assert engine is not None
        return engine

    def _watch(self) -> None:
        engine = self._engine
        is_in_work(engine, Request("data:,"))  # fails now if this Scrapy has no such thing
        wrap_scraping(engine.scraper, self._scraping.add, self._on_scraped, self._on_failed)
        wrap_closing(engine, self._on_closing)
        crawl_of(self._crawler).keep_request = self.keep

    async def _on_closing(self, close: Callable[..., Awaitable[None]], reason: str) -> None:
        if self._file is not None:
            # On a full disk, a death from now on is blamed on what is in work.
            with suppress(OSError):
                self._file.note_closing()
        await close(reason=reason)

    def _on_failed(self, request: Request, error: BaseException | None) -> None:
        if isinstance(error, _IS_NO_END):
            self._kept.add(request)

    def keep(self, request: Request) -> bool:
        """Let *request* stay in the file, since what it brought is not safe.

        Returns whether it is certain that the next run crawls it again.
        """
        number = self._in_work.get(request)
        if number is not None:
            self._kept.add(request)
        else:  # it is not known which one this is: all stay from now on
            self._is_frozen = True
        return number not in (None, _IN_MEMORY)

    def _on_scraped(self, request: Request) -> None:
        self._scraping.discard(request)
        self._leave(request, self._ended)

    def _look(self) -> None:
        """Let those leave in whose place is another one: after a redirect, say."""
        engine = self._engine
        for request in tuple(self._in_work):
            if request not in self._scraping and not is_in_work(engine, request):
                self._leave(request, self._replaced)
        if self._replaced and not (len(self.mqs) or _IN_MEMORY in self._in_work.values()):
            self._ended += self._replaced
            self._replaced.clear()

    def _leave(self, request: Request, seen: list[tuple[bytes]]) -> None:
        """Let *request* leave the file with what is written next, unless it is to be kept.

        If it is in memory alone, its fingerprint goes to *seen*.
        """
        number = self._in_work.pop(request, None)
        is_kept = request in self._kept
        self._kept.discard(request)
        if is_kept and number == _IN_MEMORY:  # it may be what has replaced another one
            self._replaced.clear()
        if number is None or is_kept or self._is_frozen:
            return
        assert self._file is not None
        if number != _IN_MEMORY:
            self._file.note_left(number)
            self._left.append(number)
            delivery = crawl_of(self._crawler).delivery
            if number in self._letters and delivery is not None:  # it was put back
                delivery.letters.remove(self._letters.pop(number))
        elif request in self._fingerprint_later:
            seen.append((self._fingerprint_later.pop(request),))
        self._write_soon()

    # ------------------------------------------------------------------------- how it is written

    def _write_soon(self) -> None:
        if self._timer is None and self._writing is None and not self._has_failed:
            self._timer = Timer(0 if self._is_careful else _WRITE_EVERY, self._write)

    def _write(self) -> None:
        """Write what has happened; what happens meanwhile is written next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None or self._has_failed:
            return
        self._look()
        batch, self._batch = self._batch, Batch()
        files: list[int] = []
        if (self._left or self._ended) and self._takes_state(batch):
            try:
                batch.feeds = self._feeds.flushed(files)
            except Exception as error:
                self._fail(JobError(f"a feed could not be written: {text_of(error)}"), error)
            if not self._is_frozen:
                batch.gone = [(number,) for number in self._left]
                batch.seen += self._ended
            self._left, self._ended = [], []
        if not batch:
            if self._left or self._ended:
                self._write_soon()
            return
        assert self._file is not None
        self._being_written = batch
        self._writing = self._thread.call(self._file.write, batch, files)
        self._writing.addCallbacks(self._on_written, self._on_not_written)

    def _takes_state(self, batch: Batch) -> bool:
        """Put ``spider.state`` into *batch* if it has changed; return whether it is known.

        No request leaves without the state that goes with it.
        """
        started = perf_counter()
        if started < self._state_due and not self._is_closing:
            return False
        try:
            state = pickle.dumps(self._crawler.spider.state, protocol=4)  # type: ignore[union-attr]
        except Exception as error:
            self._fail(JobError(f"spider.state cannot be stored: {text_of(error)}"), error)
            return False
        if state != self._state:
            batch.state = self._state = state
        self._state_due = started + _STATE_SHARE * (perf_counter() - started)
        return True

    def _on_written(self, _: Any) -> None:
        self._writing = None
        for number, *_ignored in self._being_written.requests:
            self._unwritten.pop(number, None)
        if self._is_careful and self._first and self._first[0] not in self._unwritten:
            wake(self._engine)
        if self._batch or self._left or self._ended:
            self._write_soon()

    def _on_not_written(self, failure: Failure) -> None:
        self._writing = None
        self._fail(cast("Exception", failure.value))

    def _fail(self, error: BaseException, cause: BaseException | None = None) -> None:
        """Let no request leave the file any more, and close the crawl."""
        if self._has_failed:
            return
        self._has_failed = self._is_frozen = True
        count(self._crawler, "job/errors")
        self._log(
            logging.ERROR,
            "The crawl is closed, since its job can no longer be kept: %s. Run it again when that "
            "is mended: what was in work is crawled again",
            error,
            exc_info=cause,
        )
        if not self._is_closing:
            # Later: the engine, which may be asking for a request, does not expect it to end there.
            call_soon(self._close_crawl)

    def _close_crawl(self) -> None:
        if not self._is_closing:
            close_spider(self._crawler, "job_failed")

    async def _close(self, reason: str) -> None:
        self._is_closing = True
        if self._is_open:
            self._look()  # nothing may have been written since another took its place
            await self._lettering.until_none()
            while self._writing is not None or self._batch or self._left or self._ended:
                if self._writing is None:
                    self._write()
                if self._writing is None:  # it failed
                    break
                await resolve(shield(self._writing))
            if self._timer is not None:
                self._timer.cancel()
        self._has_closed = True
        if not self._is_open:
            self._thread.close()
            if self._file is not None:
                self._file.close()
        await resolve(self.df.close(reason))

    async def _end(self, reason: str) -> None:
        """Write how the run has ended, and let go of the file."""
        assert self._file is not None
        batch = Batch(reason=reason)
        try:
            if not self._has_failed and self._takes_state(batch):
                await resolve(shield(self._thread.call(self._file.write, batch, [])))
        except JobError as error:
            self._fail(error)
        finally:
            self._thread.close()
            self._file.close()

    def _log(self, level: int, message: str, *args: object, **options: Any) -> None:
        logger.log(level, message, *args, extra={"spider": self._crawler.spider}, **options)


def _number_of(text: str) -> float:
    """Return the priority that Scrapy has written as *text*, a fraction perhaps."""
    try:
        return int(text)
    except ValueError:
        return float(text)


class _Ids:
    """The ids of the requests of one priority, in the place of one of Scrapy's queues on disk."""

    scheduler: Scheduler
    is_fifo: bool

    def __init__(self, key: str) -> None:
        self._key = key
        self._ids = self.scheduler._restored.pop(key, deque())

    def push(self, request: Request) -> None:
        self._ids.append(self.scheduler._store(request, self._key))

    def pop(self) -> Request | None:
        while self._ids:
            number = self._ids.popleft() if self.is_fifo else self._ids.pop()
            if (request := self.scheduler._load(number)) is not None:
                return request
        return None

    def close(self) -> None:
        """Scrapy's priority queues call it; what is here is in the file."""

    def __len__(self) -> int:
        return len(self._ids)
