"""A job whose file is in trouble: it says what is wrong, loses nothing, and goes on when mended."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from scrapy.dupefilters import BaseDupeFilter, RFPDupeFilter
from scrapy.exceptions import CloseSpider
from scrapy.extensions.spiderstate import SpiderState
from scrapy.http import Request
from scrapy.pqueues import ScrapyPriorityQueue
from scrapy.squeues import FifoMemoryQueue

from scrapy_deferkit import _jobfile
from scrapy_deferkit._jobfile import NAME, JobFile, look, retry
from scrapy_deferkit.exceptions import DeferKitError, JobError, StackConfigError

from ..commands.project import Project
from ..crawls.tracing import Trace
from ..disks import fill, mount
from ..itemprocessor.crawling import Starting, crawl_with, numbers, page
from .running import PLAIN, SCRAPYS, opened, rows, until

PAGES = 12
ALL = [*range(PAGES), *range(100, 100 + PAGES)]
MENDED = "Run it again when that is mended: what was in work is crawled again"

Trouble = Callable[[Any], object]


def leaf(number: int) -> str:
    """Give a page with an item, and a link to another one, whose URL is long."""
    return page({"number": number}, page({"number": 100 + number, "text": "x" * 5000}))


TREE = page(*map(leaf, range(PAGES)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "job"


async def run(
    folder: Path | None, *pipelines: Any, pages: tuple[str, ...] = (TREE,), **settings: Any
) -> Trace:
    one_at_a_time = {"CONCURRENT_REQUESTS": 4, "SCRAPER_SLOT_MAX_ACTIVE_SIZE": 1}
    settings = {"DEFERKIT_DEAD_LETTERS": False, **one_at_a_time, **settings}
    return await crawl_with(*pipelines, pages=pages, JOBDIR=folder and str(folder), **settings)


async def soon(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds, but not so long that the test hangs."""
    latest = monotonic() + 5
    await until(lambda: condition() or monotonic() > latest)


def at(number: int, do: Trouble, *, and_wait: bool = True) -> type:
    """Give a pipeline that does something at the item *number*.

    With *and_wait* there is something to write then, and later items wait until that has failed.
    """

    class At:
        def __init__(self, crawler: Any) -> None:
            self.crawler = crawler
            self.has_done = False

        @classmethod
        def from_crawler(cls, crawler: Any) -> At:
            return cls(crawler)

        async def process_item(self, item: Any) -> Any:
            scheduler = self.crawler.engine._slot.scheduler
            if self.has_done and and_wait:
                await soon(lambda: scheduler._has_failed)
            elif item["number"] == number:
                self.has_done = True
                await soon(lambda: not scheduler._unwritten)
                do(scheduler)
                if and_wait:
                    scheduler.enqueue_request(Request(page({"number": 0, "text": "x" * 300_000})))
            return item

    return At


def check_failed(trace: Trace, *words: str) -> None:
    """Check that the crawl was closed, and said why, once."""
    assert trace.reason == "job_failed"
    assert trace.crawler.stats is not None
    assert trace.crawler.stats.get_value("deferkit/job/errors") == 1
    (said,) = (text for text in trace.messages if text.startswith("The crawl is closed, since"))
    for word in (*words, MENDED):
        assert word in said


async def check_goes_on(folder: Path, trace: Trace, **settings: Any) -> Trace:
    """Check that what the crawl of *trace* has left is crawled now, and is all that is."""
    assert len(trace.scraped) < len(ALL)
    assert rows(folder)
    again = await run(folder, **settings)
    assert again.reason == "finished"
    assert {*numbers(trace.scraped), *numbers(again.scraped)} == {*ALL}
    assert rows(folder) == []
    return again


async def refused(folder: Path, kind: type[DeferKitError] = JobError, **settings: Any) -> str:
    """Check that no crawl begins; return what is said."""
    with pytest.raises(kind) as raised:
        await run(folder, **settings)
    check_free(folder)
    return str(raised.value)


def check_free(folder: Path) -> None:
    """Check that no crawler has the job."""
    assert not _jobfile._is_held(folder)


def execute(folder: Path, statement: str, *values: Any) -> None:
    with closing(sqlite3.connect(folder / NAME)) as connection, connection:
        connection.execute(statement, values)


async def put(folder: Path, *urls: str, **settings: Any) -> None:
    """Let requests for *urls* wait in the job."""
    async with opened(folder, spider=Starting, **settings) as job:
        job.push(*urls)
        await job.written()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {it.name: it.read_bytes() for it in folder.iterdir() if it.name.startswith(NAME)}


# ------------------------------------------------------------------------------- while it crawls


def let_no_page_be_added(scheduler: Any) -> None:
    writer = scheduler._file._writer
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages}").fetchall()


async def test_a_file_that_cannot_grow_closes_the_crawl_which_goes_on_later(folder: Path) -> None:
    trace = await run(folder, at(3, let_no_page_be_added))
    full = "cannot be used: database or disk is full; make room on the disk"
    check_failed(trace, f"{folder / NAME} {full}")
    await check_goes_on(folder, trace)


async def test_a_full_disk_closes_the_crawl_which_goes_on_when_there_is_room(
    small_disk: Path,
) -> None:
    folder = small_disk / "job"
    trace = await run(folder, at(3, lambda _: fill(small_disk)))
    check_failed(trace)
    (small_disk / "filler").unlink()
    await check_goes_on(folder, trace)


async def test_a_job_that_became_read_only_closes_the_crawl(folder: Path) -> None:
    def forbid(scheduler: Any) -> None:
        scheduler._file._writer.execute("PRAGMA query_only = 1")

    trace = await run(folder, at(3, forbid))
    check_failed(trace, str(folder / NAME), "readonly", "allow writing to it and to its folder")
    await check_goes_on(folder, trace)


async def test_a_folder_that_is_taken_away_closes_the_crawl(folder: Path) -> None:
    away = folder.with_name("away")
    trace = await run(folder, at(3, lambda _: folder.rename(away)))
    check_failed(trace, f"{folder / NAME}", "the folder was taken away while the crawl had it")
    assert not folder.exists()
    away.rename(folder)
    await check_goes_on(folder, trace)


async def test_a_folder_that_is_deleted_closes_the_crawl(folder: Path) -> None:
    trace = await run(folder, at(3, lambda _: shutil.rmtree(folder)))
    check_failed(trace, f"{folder / NAME}", "the folder was taken away while the crawl had it")
    assert not folder.exists()
    again = await run(folder)
    assert numbers(again.scraped) == ALL


async def test_a_file_in_whose_place_is_another_closes_the_crawl(folder: Path) -> None:
    kept = folder.with_name("kept")

    def replace(_: Any) -> None:
        (folder / NAME).rename(kept)
        (folder / NAME).write_bytes(b"")

    trace = await run(folder, at(3, replace))
    check_failed(trace, f"{folder / NAME} is another file now: somebody has replaced it")
    assert (folder / NAME).read_bytes() == b""
    kept.rename(folder / NAME)
    await check_goes_on(folder, trace)


async def test_a_note_that_cannot_be_taken_closes_the_crawl(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_given = JobFile.note_given

    def refuse(_: Any, number: int) -> None:
        raise OSError(28, "No space left on device")

    def begin(_: Any) -> None:
        monkeypatch.setattr(JobFile, "note_given", refuse)

    trace = await run(folder, at(3, begin, and_wait=False))
    monkeypatch.setattr(JobFile, "note_given", note_given)
    check_failed(trace, "no request could be taken: [Errno 28] No space left on device")
    await check_goes_on(folder, trace)


async def test_a_feed_that_cannot_be_written_closes_the_crawl(folder: Path) -> None:
    def refuse(files: list[int]) -> None:
        raise OSError(28, "No space left on device")

    def begin(scheduler: Any) -> None:
        scheduler._feeds.flushed = refuse

    trace = await run(folder, at(3, begin))
    check_failed(trace, "a feed could not be written: [Errno 28] No space left on device")
    again = await check_goes_on(folder, trace)
    assert 3 in numbers(again.scraped)


async def test_what_comes_after_the_crawl_has_closed_is_refused(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(folder) as job:
        job.push("https://1.example/")
    assert job.scheduler.enqueue_request(Request("https://2.example/")) is False
    assert "<GET https://2.example/> cannot be scheduled" in caplog.text
    assert "the crawl has ended" in caplog.text
    timer = job.scheduler._timer
    assert timer is None or timer._function is None
    (thread,) = job.scheduler._thread._executor._threads
    await until(lambda: not thread.is_alive())
    check_free(folder)
    assert len(rows(folder)) == 1


# -------------------------------------------------------------------------------- at the start


READ_ONLY = "allow writing to it and to its folder"


@pytest.mark.crawl
@pytest.mark.parametrize("is_new", [True, False], ids=["a new job", "a job"])
async def test_a_read_only_disk_is_refused(small_disk: Path, is_new: bool) -> None:
    folder = small_disk / "job"
    if not is_new:
        await put(folder, TREE)
    mount("-o", "remount,ro", str(small_disk))
    with pytest.raises(JobError) as raised:
        await run(folder)
    mount("-o", "remount,rw", str(small_disk))
    said = str(raised.value)
    assert said.startswith(f"{folder / NAME} cannot be used: ")
    assert said.endswith(READ_ONLY)
    assert numbers((await run(folder)).scraped) == ALL


@pytest.mark.crawl
@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (sqlite3.OperationalError("attempt to write a readonly database"), READ_ONLY),
        (sqlite3.OperationalError("unable to open database file"), READ_ONLY),
        (PermissionError(13, "Permission denied"), READ_ONLY),
        (OSError(28, "No space left on device"), "make room on the disk"),
        (sqlite3.OperationalError("database or disk is full"), "make room on the disk"),
        (sqlite3.OperationalError("disk I/O error"), "look after the disk"),
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["make_private", "connect", "_read"])
async def test_what_the_system_says_at_the_start_is_said_with_its_fix(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, fix: str
) -> None:
    await put(folder, TREE)

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(_jobfile, where, refuse)
        said = await refused(folder)
    assert said == f"{folder / NAME} cannot be used: {error}; {fix}"
    assert numbers((await run(folder)).scraped) == ALL


@pytest.mark.crawl
@pytest.mark.parametrize("name", ["file", "file/job"])
async def test_a_jobdir_that_is_a_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match=f"^{tmp_path / name / NAME} cannot .*; set JOBDIR to a fo"):
        await run(tmp_path / name)


def make_newer(path: Path) -> None:
    execute(path.parent, "PRAGMA user_version = 99")


def make_text(path: Path) -> None:
    path.write_text("This is no database. " * 400)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def garble_a_page(path: Path) -> None:
    (root,) = rows(path.parent, "SELECT rootpage FROM sqlite_master WHERE name = 'requests'")
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)


def make_others(path: Path, version: int = 1) -> None:
    path.unlink()
    execute(path.parent, "PRAGMA journal_mode = WAL")
    execute(path.parent, "CREATE TABLE books (id)")
    execute(path.parent, f"PRAGMA user_version = {version}")


def make_others_without_a_version(path: Path) -> None:
    make_others(path, 0)


RESTORE = "restore it, or begin the job anew in another JOBDIR"


@pytest.mark.crawl
@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (make_newer, "written by a newer scrapy-deferkit (version 99 of its tables; this one"),
        (make_text, RESTORE),
        (truncate, RESTORE),
        (garble_a_page, RESTORE),
        (make_others, "is no job: it is a SQLite file with other tables, or none"),
        (make_others_without_a_version, "is no job: it is a SQLite file with other tables"),
    ],
)
async def test_a_file_that_is_no_good_is_refused_and_stays_as_it_is(
    folder: Path, spoil: Callable[[Path], None], text: str
) -> None:
    await put(folder, TREE)
    spoil(folder / NAME)
    before = (folder / NAME).read_bytes()
    said = await refused(folder)
    assert text in said
    assert str(folder) in said
    assert (folder / NAME).read_bytes() == before


class Stopping(Starting):
    def parse(self, response: Any) -> Any:
        yield from super().parse(response)
        raise CloseSpider("early")


@pytest.mark.crawl
@pytest.mark.filterwarnings("ignore:unclosed file .*requests.queue:ResourceWarning")
async def test_a_job_that_scrapys_scheduler_began_is_refused_with_the_way_out(folder: Path) -> None:
    begun = await run(folder, spider=Stopping, SCHEDULER=SCRAPYS)
    assert begun.reason == "early"
    before = sorted(folder.rglob("*"))
    said = await refused(folder)
    assert said.startswith(f"the job in {folder} was begun by Scrapy's own scheduler")
    assert "finish it with SCHEDULER = 'scrapy.core.scheduler.Scheduler'" in said
    assert sorted(folder.rglob("*")) == before
    again = await run(folder, SCHEDULER=SCRAPYS)
    assert {*numbers(begun.scraped), *numbers(again.scraped)} == {*ALL}


# ---------------------------------------------------------------------------------- two crawlers

HAVE = """
import sys
from scrapy_deferkit._jobfile import JobFile

file = JobFile(sys.argv[1])
file.open(4)
print("has it", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process take the job, if it may."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", HAVE, str(folder)], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def is_refused_elsewhere(folder: Path) -> bool:
    with another_process(folder) as process:
        assert process.stdout is not None
        if process.stdout.readline() == "has it\n":
            return False
        assert process.stderr is not None
        return f"another crawler has the job in {folder}: end it" in process.stderr.read()


def is_refused_here(folder: Path) -> bool:
    file = JobFile(folder)
    with pytest.raises(JobError, match="another crawler has the job in .*: end it, or set JOBDIR"):
        file.open(4)
    with pytest.raises(JobError, match="another crawler has the job"):
        retry(folder)
    return look(folder).last_run == "running"


@pytest.mark.crawl
@pytest.mark.parametrize(
    "are_refused",
    [
        pytest.param((is_refused_here,), id="here"),
        pytest.param((is_refused_elsewhere,), id="elsewhere", marks=pytest.mark.crawl),
        pytest.param((is_refused_here, is_refused_elsewhere), id="both", marks=pytest.mark.crawl),
    ],
)
async def test_another_crawler_is_refused_and_the_first_goes_on(
    folder: Path, are_refused: tuple[Callable[[Path], bool], ...]
) -> None:
    found: list[bool] = []

    def let_others_try(_: Any) -> None:
        found.extend(is_refused(folder) for is_refused in are_refused)

    trace = await run(folder, at(3, let_others_try, and_wait=False))
    assert found == [True] * len(are_refused)
    assert trace.reason == "finished"
    assert numbers(trace.scraped) == ALL
    assert trace.messages == []
    check_free(folder)


@pytest.mark.crawl
async def test_a_crawl_is_refused_while_another_has_the_job(folder: Path) -> None:
    async with opened(folder, spider=Starting) as job:
        job.push(TREE)
        with pytest.raises(JobError, match=f"another crawler has the job in {folder}"):
            await run(folder)
        job.push(leaf(0))
    with another_process(folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        with pytest.raises(JobError, match=f"another crawler has the job in {folder}"):
            await run(folder)
    assert numbers((await run(folder, pages=())).scraped) == ALL


# -------------------------------------------------------------------------------------- settings


class Filter(RFPDupeFilter):
    """A filter of the user's: all that Scrapy's has, and it is asked."""

    asked = 0

    def request_seen(self, request: Request) -> bool:
        type(self).asked += 1
        return super().request_seen(request)


class Bare(BaseDupeFilter):
    asked = 0

    def request_seen(self, request: Request) -> bool:
        type(self).asked += 1
        return False


def path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@pytest.mark.crawl
@pytest.mark.parametrize("filter_class", [Filter, Bare])
@pytest.mark.parametrize("is_path", [True, False], ids=["path", "class"])
@pytest.mark.parametrize("has_job", [True, False], ids=["job", "memory"])
async def test_a_filter_of_the_users_is_asked_and_said(
    folder: Path, filter_class: Any, is_path: bool, has_job: bool
) -> None:
    filter_class.asked = 0
    given = path_of(filter_class) if is_path else filter_class
    trace = await run(folder if has_job else None, DUPEFILTER_CLASS=given)
    assert (trace.reason, numbers(trace.scraped)) == ("finished", ALL)
    assert filter_class.asked == len(ALL) + 1
    said = [text for text in trace.messages if "what it has seen is not in the job" in text]
    assert len(said) == has_job
    if has_job:
        assert said[0].startswith(f"DUPEFILTER_CLASS is {given}")
        assert rows(folder, "SELECT * FROM seen") == []
        again = await run(folder, DUPEFILTER_CLASS=given)
        assert again.reason == "finished"


@pytest.mark.crawl
@pytest.mark.parametrize(
    "changed",
    [{"SCHEDULER_PRIORITY_QUEUE": PLAIN}, {"SCHEDULER_START_DISK_QUEUE": None}],
    ids=lambda changed: next(iter(changed)),
)
async def test_requests_that_wait_in_other_queues_are_refused_until_they_are_set_back(
    folder: Path, changed: dict[str, Any]
) -> None:
    async with opened(folder, spider=Starting) as job:
        job.push(*map(leaf, range(PAGES)), meta={"is_start_request": True})
        await job.written()
    before = rows(folder, "SELECT * FROM requests")
    for _ in range(2):
        said = await refused(folder, pages=(), **changed)
        assert said.startswith(f"{PAGES} requests in {folder / NAME} in queues of other")
        assert "SCHEDULER_PRIORITY_QUEUE" in said
        assert "SCHEDULER_START_DISK_QUEUE" in said
        assert rows(folder, "SELECT * FROM requests") == before
    again = await run(folder, pages=())
    assert numbers(again.scraped) == ALL


class Heap(FifoMemoryQueue):
    """A queue on disk that does not say its order, but for its base, which does."""


class Sorted:
    """A queue that does not say its order."""


class Other:
    """A priority queue of the user's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __len__(self) -> int:
        return 0


class Derived(ScrapyPriorityQueue):
    pass


@pytest.mark.crawl
@pytest.mark.parametrize("setting", ["SCHEDULER_DISK_QUEUE", "SCHEDULER_START_DISK_QUEUE"])
async def test_a_queue_class_that_does_not_say_its_order_is_refused(
    folder: Path, setting: str
) -> None:
    said = await refused(folder, StackConfigError, **{setting: path_of(Sorted)})
    assert said.startswith(f"{setting} = {path_of(Sorted)}: with a JOBDIR")
    assert "such as scrapy.squeues.PickleFifoDiskQueue" in said
    trace = await run(folder, **{setting: path_of(Heap)})
    assert numbers(trace.scraped) == ALL


@pytest.mark.crawl
async def test_a_priority_queue_that_is_not_served_is_refused(folder: Path) -> None:
    said = await refused(folder, StackConfigError, SCHEDULER_PRIORITY_QUEUE=path_of(Other))
    assert said.startswith(f"SCHEDULER_PRIORITY_QUEUE = {path_of(Other)}: with a JOBDIR it is")
    assert "SCHEDULER = 'scrapy.core.scheduler.Scheduler' serves others" in said
    trace = await run(folder, SCHEDULER_PRIORITY_QUEUE=path_of(Derived))
    assert numbers(trace.scraped) == ALL


# ---------------------------------------------------------------------------------- spider.state


class Counting(Starting):
    def parse(self, response: Any) -> Any:
        self.state["parsed"] = self.state.get("parsed", 0) + 1
        yield from super().parse(response)

    def closed(self, reason: str) -> None:
        self.state["closed"] = [*self.state.get("closed", ()), reason]


class Closing(Starting):
    def closed(self, reason: str) -> None:
        self.state["closed"] = self.state.get("closed", 0) + 1


@pytest.mark.crawl
async def test_the_state_of_callbacks_and_of_the_end_is_there_in_the_next_run(folder: Path) -> None:
    await run(folder, spider=Counting)
    again = await run(folder, spider=Counting)
    assert again.spider.state["closed"] == ["finished", "finished"]
    assert again.spider.state["parsed"] == len(ALL) + 1
    assert pickle.loads(rows(folder, "SELECT value FROM meta WHERE name = 'state'")[0]) == (
        again.spider.state
    )


@pytest.mark.crawl
async def test_a_state_that_only_the_end_changes_is_stored(folder: Path) -> None:
    for run_number in (1, 2, 3):
        trace = await run(folder, spider=Closing, pages=())
        assert trace.spider.state == {"closed": run_number}
    (state,) = rows(folder, "SELECT value FROM meta WHERE name = 'state'")
    assert pickle.loads(state) == {"closed": 3}


@pytest.mark.crawl
async def test_a_state_that_cannot_be_stored_closes_the_crawl(folder: Path) -> None:
    def spoil(scheduler: Any) -> None:
        scheduler._crawler.spider.state["lock"] = threading.Lock()

    trace = await run(folder, at(3, spoil))
    check_failed(trace, "spider.state cannot be stored: cannot pickle '_thread.lock' object")
    assert (await check_goes_on(folder, trace)).spider.state == {}


@pytest.mark.crawl
async def test_a_state_that_cannot_be_read_is_refused(folder: Path) -> None:
    await put(folder, TREE)
    execute(folder, "INSERT OR REPLACE INTO meta VALUES ('state', ?)", b"no pickle")
    said = await refused(folder)
    assert said.startswith(f"the spider.state that {folder / NAME} holds cannot be read: ")
    assert said.endswith("begin the job anew in another JOBDIR")
    assert rows(folder, "SELECT value FROM meta WHERE name = 'state'") == [b"no pickle"]
    execute(folder, "DELETE FROM meta WHERE name = 'state'")
    assert numbers((await run(folder)).scraped) == ALL


# ----------------------------------------------------------------------------------- single rows


class Deleting(Starting):
    """Deletes two requests when they are known to wait."""

    async def start(self) -> AsyncIterator[Any]:
        execute(Path(self.settings["JOBDIR"]), "DELETE FROM requests WHERE id IN (2, 12)")
        return
        yield


@pytest.mark.crawl
async def test_a_row_that_somebody_deleted_is_said_and_the_rest_is_crawled(folder: Path) -> None:
    await put(folder, *(page({"number": number}) for number in range(PAGES)))
    trace = await run(folder, spider=Deleting)
    assert trace.reason == "finished"
    assert numbers(trace.scraped) == [0, *range(2, 11)]
    assert trace.messages == [
        f"The request {number} is not in {folder / NAME} any more: somebody has deleted it"
        for number in (12, 2)
    ]
    assert rows(folder) == []


def garble(folder: Path) -> None:
    execute(folder, "UPDATE requests SET data = 'no pickle' WHERE id = 2")


def forget(folder: Path) -> None:
    execute(folder, "UPDATE requests SET data = ? WHERE id = 2", GONE)


GONE = pickle.dumps({"url": "https://2.example/", "method": "GET", "callback": "gone"}, protocol=4)


@pytest.mark.crawl
@pytest.mark.parametrize(
    ("spoil", "what", "reason"),
    [
        (garble, "? ?", "it cannot be read: "),
        (forget, "GET https://2.example/", "it cannot be read: Method 'gone' not found"),
    ],
    ids=["garbled", "no callback"],
)
async def test_a_request_that_cannot_be_read_is_set_aside_and_the_rest_is_crawled(
    folder: Path, spoil: Callable[[Path], None], what: str, reason: str
) -> None:
    await put(folder, *(page({"number": number}) for number in range(PAGES)))
    spoil(folder)
    trace = await run(folder, pages=())
    assert (trace.reason, numbers(trace.scraped)) == ("finished", [0, *range(2, PAGES)])
    (said,) = trace.messages
    assert f"is set aside, since {reason}" in said
    assert f"See `scrapy deferkit job {folder}`" in said
    assert trace.crawler.stats is not None
    assert trace.crawler.stats.get_value("deferkit/job/set_aside") == 1
    (aside,) = look(folder).aside
    assert (aside.id, aside.deaths) == (2, 0)
    assert aside.reason.startswith(reason)
    again = await run(folder, pages=())
    assert again.messages == []


# ----------------------------------------------------------------------------- what is no crawl


@pytest.mark.crawl
@pytest.mark.parametrize(
    "command",
    [
        ("shell", "-c", "1"),
        ("fetch", "PAGE"),
        ("view", "PAGE"),
        ("parse", "--spider", "books", "PAGE"),
        ("check",),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("has_job", [False, True], ids=["no job", "a job"])
def test_what_is_no_crawl_leaves_a_job_alone(
    tmp_path: Path, command: tuple[str, ...], has_job: bool
) -> None:
    project = Project(tmp_path)
    if has_job:
        project.scrapy("crawl", "books", "-s", "JOBDIR=job")
        execute(tmp_path / "job", "PRAGMA wal_checkpoint")
    url = project.write("page.txt", "books").as_uri()
    before = project.files
    arguments = [url if word == "PAGE" else word for word in command]
    project.scrapy(*arguments, "-s", "JOBDIR=job", BROWSER="true")
    after = project.files
    assert {k: v for k, v in after.items() if "deferkit." in k} == {
        k: v for k, v in before.items() if "deferkit." in k
    }
    assert ("job/deferkit.sqlite" in after) == has_job


class Parsed(Starting):
    """A spider in ``scrapy parse``, whose start() is that command's."""

    async def start(self) -> AsyncIterator[Any]:
        return
        yield


Parsed.start.__module__ = "scrapy.commands.parse"


@pytest.mark.crawl
async def test_where_a_job_is_left_alone_callbacks_find_an_empty_state(folder: Path) -> None:
    without = {SpiderState: None}  # as with the add-on
    async with opened(folder, spider=Parsed, EXTENSIONS=without) as job:
        assert job.crawler.spider.state == {}  # type: ignore[union-attr]
        job.push("https://1.example/")
        assert job.pop() is not None
    assert not folder.exists()
