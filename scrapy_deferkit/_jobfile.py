"""The file of a crawl's job: what waits, what was in work when a run died, what has been seen.

One SQLite file in ``JOBDIR``, by the standard library: rows are written thousands at a time and
read one by one in the loop. Beside it lie a file that is locked while a crawler has the job, and
one in which each request is noted as it is given: a write of 8 bytes, which outlives the process.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections import deque
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._sqlite_check import make_private
from .exceptions import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION = 1
"""The version of the tables."""

NAME = "deferkit.sqlite"
_LOCK = "deferkit.lock"
_WORK = "deferkit.work"

_SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE queues (id INTEGER PRIMARY KEY, key TEXT NOT NULL, slot TEXT NOT NULL);
CREATE TABLE requests (
    id INTEGER PRIMARY KEY, queue INTEGER NOT NULL, data BLOB NOT NULL,
    deaths INTEGER NOT NULL DEFAULT 0, aside TEXT, lettered INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE in_work (id INTEGER PRIMARY KEY);
CREATE TABLE seen (fingerprint BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE feeds (path TEXT PRIMARY KEY, length INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""

_MOST_VALUES = 999  # in one statement, for SQLite before 3.32
_ID = struct.Struct("<q")
_MOST_NOTED = 1 << 22  # bytes of notes: of 250,000 requests and more
_DEADLY = "FROM requests WHERE aside IS NOT NULL AND deaths > 0"
_CLOSING = 0
"""In the place of an id: from here on, the crawl was closing."""


class Queue(NamedTuple):
    """A queue of Scrapy's priority queues, for the requests of one download slot."""

    id: int
    key: str
    slot: str


@dataclass
class Batch:
    """What is written in one transaction."""

    queues: list[Queue] = field(default_factory=list)
    requests: list[tuple[int, int, bytes]] = field(default_factory=list)
    seen: list[tuple[bytes]] = field(default_factory=list)
    gone: list[tuple[int]] = field(default_factory=list)
    aside: list[tuple[str, int]] = field(default_factory=list)
    lettered: list[tuple[int]] = field(default_factory=list)
    feeds: list[tuple[str, int]] = field(default_factory=list)
    state: bytes | None = None
    reason: str | None = None
    """Why the crawl was closed, at the end of a run."""

    def __bool__(self) -> bool:
        return any(vars(self).values())


class Aside(NamedTuple):
    """A request that is set aside."""

    id: int
    data: bytes
    deaths: int
    reason: str


@dataclass
class Found:
    """What a job file had when it was opened."""

    is_new: bool
    has_died: bool
    was_closed: bool
    """Whether the last run has come to its end, so that all feeds are whole."""

    last: int
    """The greatest id of a request."""

    queues: list[Queue]
    waiting: dict[int, deque[int]]
    """The ids of the requests that wait, in order, by the ids of their queues."""

    in_work: list[tuple[int, int]]
    """The ids of those that were in work when a run ended, and at how many deaths each was."""

    aside: int
    unlettered: list[Aside]
    """Those of them that have no dead letter."""

    lettered: set[int]
    """The ids of those that have one, and were put back."""

    killers: set[int]
    """The ids of those of them that were not set aside before."""

    deadly: set[bytes]
    """The requests that were set aside since their process has died."""

    seen: set[bytes]
    feeds: dict[str, int]
    state: bytes | None


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a job file has, for those who look at it."""

    runs: int
    last_run: str
    """``"running"``, ``"died"`` or ``"closed"``."""

    reason: str | None
    """Why the last run was closed; ``None`` if it was not."""

    waiting: int
    in_work: int
    """In work now; if no crawler has the job, when its last run ended."""

    seen: int
    waiting_by_domain: dict[str, int]
    """By download slot, the fullest first."""

    aside: list[Aside]

    @property
    def has_finished(self) -> bool:
        """Whether there is nothing left to crawl, but what is set aside."""
        return self.reason == "finished" and self.waiting == self.in_work == 0


class JobFile:
    """The job in *folder*, which one crawler has at a time.

    :meth:`write` may be called in one other thread.
    """

    def __init__(self, folder: str | os.PathLike[str], *, fsync: bool = False) -> None:
        self.folder = Path(folder)
        self.path = self.folder.absolute() / NAME  # a callback may change the working directory
        self._fsync = fsync
        self._lock: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._work = -1
        self._in_work: dict[int, None] = {}
        self._left = b""
        self._noted = self._noted_at_first = 0
        self._inode = self._run = 0

    def open(self, max_deaths: int) -> Found:
        """Take the job, and return what it has.

        A request that has been in work at *max_deaths* deaths is set aside. Raises
        :exc:`~scrapy_deferkit.exceptions.JobError` if the job cannot be used.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.exists()
            if is_new:
                _refuse_scrapys(self.folder)
            make_private(self.path)
            self._lock = _locked(self.folder, "end it, or set JOBDIR to another folder")
            self._writer = connect(self.path, fsync=self._fsync)
            self._reader = connect(self.path)
            with trouble_of(self.path), _transaction(self._writer) as writer:
                _prepare(writer, self.path)
                _refuse_strange(writer, self.path)
                run, noted = _noted(self.folder)
                found = _read(writer, is_new, run, noted, max_deaths)
                self._run = _get(writer, "run")
            self._inode = self.path.stat().st_ino
            self._note_anew()
        except BaseException as error:
            self.close()
            if isinstance(error, (OSError, sqlite3.Error)):
                raise _unusable(self.path, error) from error
            raise
        return found

    def note_given(self, number: int) -> None:
        """Note that the request *number* is in work from now on."""
        self._in_work[number] = None
        self._noted += os.write(self._work, self._left + _ID.pack(number))
        self._left = b""
        if self._noted > max(_MOST_NOTED, 2 * self._noted_at_first):
            self._note_anew()

    def note_left(self, number: int) -> None:
        """Note with what is given next that the request *number* is no longer in work."""
        self._in_work.pop(number, None)
        self._left += _ID.pack(-number)

    def note_closing(self) -> None:
        """Note that a request in work from now on is not what a death comes from."""
        if self._work >= 0:
            self.note_given(_CLOSING)

    def _note_anew(self) -> None:
        """Note what is in work in a new file, in the place of the one that has grown long."""
        path = self.path.with_name(_WORK)
        new = path.with_suffix(".new")
        work = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            self._noted = os.write(work, b"".join(map(_ID.pack, [self._run, *self._in_work])))
            new.replace(path)
        except BaseException:
            os.close(work)
            raise
        self._noted_at_first = self._noted  # with much in work, that is long already
        if self._work >= 0:
            os.close(self._work)
        self._work = work

    def read(self, number: int) -> bytes | None:
        """Return the stored request *number*, ``None`` if it is not there."""
        assert self._reader is not None
        rows = self._reader.execute("SELECT data FROM requests WHERE id = ?", (number,))
        return next((data for (data,) in rows), None)

    def write(self, batch: Batch, files: list[int]) -> None:
        """Write *batch* in one transaction, after the *files* of feeds are synced if they must be.

        Raises :exc:`~scrapy_deferkit.exceptions.JobError` if it cannot be written: then nothing is.
        """
        assert self._writer is not None
        with trouble_of(self.path):
            if self.path.stat().st_ino != self._inode:
                raise JobError(f"{self.path} is another file now: somebody has replaced it")
            if self._fsync:
                for file in files:
                    os.fsync(file)
            with _transaction(self._writer) as writer:
                many = writer.executemany
                many("INSERT INTO queues VALUES (?, ?, ?)", batch.queues)
                _at_once(writer, "INSERT INTO requests (id, queue, data) VALUES", batch.requests)
                _at_once(writer, "INSERT OR IGNORE INTO seen VALUES", batch.seen)
                many("UPDATE requests SET aside = ?, lettered = 0 WHERE id = ?", batch.aside)
                many("UPDATE requests SET lettered = 1 WHERE id = ?", batch.lettered)
                many("INSERT OR REPLACE INTO feeds VALUES (?, ?)", batch.feeds)
                for name in ("state", "reason"):
                    if (value := getattr(batch, name)) is not None:
                        _set(writer, name, value)
                _at_once(writer, "DELETE FROM requests WHERE (id) IN (VALUES", batch.gone, ")")

    def close(self) -> None:
        """Let go of the job; does nothing where that has been done."""
        for connection in (self._reader, self._writer, self._lock):
            if connection is not None:
                connection.close()
        if self._work >= 0:
            os.close(self._work)
        self._reader = self._writer = self._lock = None
        self._work = -1


def connect(path: Path, *, fsync: bool = False) -> sqlite3.Connection:
    """Open the file at *path*."""
    connection = _connected(path, timeout=30)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
    except BaseException:
        connection.close()
        raise
    return connection


def look(folder: Path) -> Look:
    """Return what the job in *folder* has; changes nothing, also while a crawler has it.

    Raises :exc:`~scrapy_deferkit.exceptions.JobError` if there is no job, or it cannot be read.
    """
    path = _existing(folder)
    # Without a log of writes, a connection that is not to write would leave an empty one behind.
    how = "mode=ro" if path.with_name(f"{NAME}-wal").exists() else "immutable=1"
    with trouble_of(path):
        run, noted = _noted(folder)
        with closing(_connected(f"{path.absolute().as_uri()}?{how}", 30)) as reader:
            _refuse_strange(reader, path)
            reader.execute("PRAGMA temp_store = MEMORY")
            reader.execute("CREATE TEMP TABLE busy (id INTEGER PRIMARY KEY)")
            reader.execute("BEGIN")
            runs = _get(reader, "run") or 0
            reader.executemany(
                "INSERT OR IGNORE INTO busy VALUES (?)",
                [(number,) for number in noted if run == runs],
            )
            reader.execute("INSERT OR IGNORE INTO busy SELECT id FROM in_work")
            waiting = reader.execute(
                "SELECT slot, count(*) FROM requests JOIN queues ON queues.id = queue WHERE aside "
                "IS NULL AND requests.id NOT IN busy GROUP BY slot ORDER BY count(*) DESC, slot"
            ).fetchall()
            has_died = run == runs and noted and _CLOSING not in noted
            return Look(
                runs=runs,
                last_run="running" if _is_held(folder) else "died" if has_died else "closed",
                reason=_get(reader, "reason"),
                waiting=sum(number for _, number in waiting),
                in_work=_one(
                    reader, "SELECT count(*) FROM requests WHERE aside IS NULL AND id IN busy"
                ),
                seen=_one(reader, "SELECT count(*) FROM seen"),
                waiting_by_domain=dict(waiting),
                aside=_aside(reader),
            )


def retry(folder: Path) -> int:
    """Let the requests set aside wait again; return how many they are.

    Raises :exc:`~scrapy_deferkit.exceptions.JobError` if a crawler has the job, too.
    """
    path = _existing(folder)
    with (
        trouble_of(path),
        closing(_locked(folder, "put back what is set aside when it has ended")),
        closing(_connected(path, 30)) as writer,
        _transaction(writer),
    ):
        _refuse_strange(writer, path)
        writer.execute(
            "DELETE FROM in_work WHERE id IN (SELECT id FROM requests WHERE aside IS NOT NULL)"
        )
        return writer.execute(
            "UPDATE requests SET aside = NULL, deaths = 0 WHERE aside IS NOT NULL"
        ).rowcount


def _existing(folder: Path) -> Path:
    """Return the path of the job in *folder*, which is there."""
    path = folder / NAME
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "there is no such folder"
        raise JobError(f"{folder} is no job: {what}; expected what JOBDIR is set to")
    if not path.exists():
        _refuse_scrapys(folder)
        raise JobError(
            f"{folder} is no job: there is no {NAME} in it, which a crawl with the add-on begins "
            "where JOBDIR is set to it"
        )
    return path


def _refuse_strange(connection: sqlite3.Connection, path: Path) -> None:
    """Raise if the file at *path* has not the tables of a job."""
    has_tables = "SELECT count(*) FROM sqlite_master WHERE name IN ('requests', 'in_work', 'seen')"
    if not _version_of(connection, path) or _one(connection, has_tables) < 3:
        raise JobError(f"{path} is no job: it is a SQLite file with other tables, or none")


def _aside(reader: sqlite3.Connection, which: str = "1") -> list[Aside]:
    rows = reader.execute(
        f"SELECT id, data, deaths, aside FROM requests WHERE aside IS NOT NULL AND {which}"
    )
    return [Aside(*row) for row in rows]


def _noted(folder: Path) -> tuple[int, list[int]]:
    """Return the number of the run that left its notes, and what was in work as it ended."""
    try:
        noted = (folder / _WORK).read_bytes()
    except FileNotFoundError:
        return 0, []
    whole = len(noted) // _ID.size * _ID.size  # the machine may have died in a write
    run, *notes = [number for (number,) in _ID.iter_unpack(noted[:whole])] or [0]
    in_work: dict[int, None] = {}
    for number in notes:
        if number < 0:  # it has left
            in_work.pop(-number, None)
        else:
            in_work[number] = None
    return run, list(in_work)


def _connected(path: str | Path, timeout: float) -> sqlite3.Connection:
    return sqlite3.connect(
        path,
        timeout=timeout,
        isolation_level=None,
        check_same_thread=False,
        uri=isinstance(path, str),
    )


def _locked(folder: Path, advice: str) -> sqlite3.Connection:
    """Lock the job in *folder* until the connection is closed, or the process dies."""
    # Who looks whether it is locked has it for a moment.
    connection = _connected(make_private(folder / _LOCK), timeout=0.2)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        connection.close()
        if not _says_locked(error):
            raise
        raise JobError(f"another crawler has the job in {folder}: {advice}") from None
    return connection


def _is_held(folder: Path) -> bool:
    """Check whether a crawler has the job in *folder*."""
    lock = folder / _LOCK
    if not lock.exists():
        return False
    with closing(_connected(f"{lock.absolute().as_uri()}?mode=ro", 0)) as connection:
        try:
            connection.execute("SELECT 1 FROM sqlite_master")
        except sqlite3.OperationalError as error:
            if not _says_locked(error):
                raise
            return True
    return False


def _says_locked(error: sqlite3.Error) -> bool:
    return "is locked" in str(error)


def _at_once(
    writer: sqlite3.Connection, statement: str, rows: Sequence[tuple[Any, ...]], end: str = ""
) -> None:
    """Execute *statement* for many *rows* at a time.

    With one execution for each row, this thread would have to get the interpreter lock back as
    often, each time for up to 5 ms while the loop is busy.
    """
    if not rows:
        return
    row = f"({', '.join('?' * len(rows[0]))})"
    size = _MOST_VALUES // len(rows[0])
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        writer.execute(f"{statement} {', '.join([row] * len(some))}{end}", [*chain(*some)])


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def trouble_of(path: Path) -> Iterator[None]:
    """Make a :exc:`JobError` of what SQLite or the system says of the file at *path*."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: BaseException) -> JobError:
    text = str(error).lower()
    if isinstance(error, FileNotFoundError):
        fix = "the folder was taken away while the crawl had it"
    elif isinstance(error, (FileExistsError, NotADirectoryError)):
        fix = "set JOBDIR to a folder"
    elif "full" in text or "no space" in text:
        fix = "make room on the disk"
    elif (
        "readonly" in text
        or "read-only" in text
        or "unable to open" in text
        or isinstance(error, PermissionError)
    ):
        fix = "allow writing to it and to its folder"
    elif "not a database" in text or "malformed" in text:
        fix = "restore it, or begin the job anew in another JOBDIR"
    else:
        fix = "look after the disk"
    return JobError(f"{path} cannot be used: {error}; {fix}")


def _prepare(writer: sqlite3.Connection, path: Path) -> None:
    """Make the tables if there are none; refuse those of a newer version."""
    if not _version_of(writer, path) and not _one(writer, "SELECT count(*) FROM sqlite_master"):
        for statement in _SCHEMA.split(";"):
            writer.execute(statement)


def _version_of(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of the tables, 0 if there are none; refuse a newer one."""
    version: int = _one(connection, "PRAGMA user_version")
    if version > VERSION:
        raise JobError(
            f"{path} was written by a newer scrapy-deferkit (version {version} of its tables; "
            f"this one knows {VERSION}): go on with that one"
        )
    return version


def _read(
    writer: sqlite3.Connection, is_new: bool, run: int, noted: list[int], max_deaths: int
) -> Found:
    """Count the deaths of the last run, and read what there is."""
    has_died = _get(writer, "run") == run and bool(noted) and _CLOSING not in noted
    given = dict.fromkeys(noted) if _get(writer, "run") == run else {}
    # A run that dies before it gives anything leaves those of the run before as they were.
    writer.executemany("INSERT OR IGNORE INTO in_work VALUES (?)", [(number,) for number in given])
    writer.execute("DELETE FROM in_work WHERE id NOT IN (SELECT id FROM requests)")
    killers: set[int] = set()
    if has_died:
        writer.executemany(
            "UPDATE requests SET deaths = deaths + 1 WHERE id = ?", [(number,) for number in given]
        )
        too_often = "WHERE deaths >= ? AND aside IS NULL"
        found = writer.execute(f"SELECT id FROM requests {too_often}", (max_deaths,))
        killers = {number for (number,) in found}
        writer.execute(
            "UPDATE requests SET lettered = 0, aside = 'the process has died ' || deaths || "
            f"' times while it was in work' {too_often}",
            (max_deaths,),
        )
        if killers:
            # start() asks for the same again in each run: one that is set aside stands for all.
            writer.execute(
                f"DELETE FROM requests WHERE aside IS NULL AND data IN (SELECT data {_DEADLY})"
            )
            writer.execute("DELETE FROM in_work WHERE id NOT IN (SELECT id FROM requests)")
    was_closed = _get(writer, "reason") is not None
    _set(writer, "run", (_get(writer, "run") or 0) + 1)
    _set(writer, "reason", None)
    waiting: dict[int, deque[int]] = {}
    for number, queue in writer.execute(
        "SELECT id, queue FROM requests WHERE aside IS NULL AND id NOT IN (SELECT id FROM in_work) "
        "ORDER BY id"
    ):
        waiting.setdefault(queue, deque()).append(number)
    return Found(
        is_new=is_new,
        has_died=has_died,
        was_closed=was_closed,
        last=_one(writer, "SELECT max(id) FROM requests") or 0,
        queues=[Queue(*row) for row in writer.execute("SELECT id, key, slot FROM queues")],
        waiting=waiting,
        in_work=writer.execute(
            "SELECT id, deaths FROM requests WHERE aside IS NULL AND id IN (SELECT id FROM in_work)"
            " ORDER BY id"
        ).fetchall(),
        aside=_one(writer, "SELECT count(*) FROM requests WHERE aside IS NOT NULL"),
        unlettered=_aside(writer, "NOT lettered"),
        lettered={
            number
            for (number,) in writer.execute(
                "SELECT id FROM requests WHERE aside IS NULL AND lettered"
            )
        },
        killers=killers,
        deadly={data for (data,) in writer.execute(f"SELECT data {_DEADLY}")},
        seen={fingerprint for (fingerprint,) in writer.execute("SELECT fingerprint FROM seen")},
        feeds=dict(writer.execute("SELECT path, length FROM feeds").fetchall()),
        state=_get(writer, "state"),
    )


def _one(connection: sqlite3.Connection, query: str) -> Any:
    return connection.execute(query).fetchone()[0]


def _get(connection: sqlite3.Connection, name: str) -> Any:
    found = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    return None if found is None else found[0]


def _set(connection: sqlite3.Connection, name: str, value: object) -> None:
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))


def _refuse_scrapys(folder: Path) -> None:
    """Raise if Scrapy's own scheduler has begun the job in *folder*."""
    if (folder / "requests.queue").exists():  # a filter of the user's may have "requests.seen"
        raise JobError(
            f"the job in {folder} was begun by Scrapy's own scheduler, whose files do not say what "
            "was in work: finish it with SCHEDULER = 'scrapy.core.scheduler.Scheduler', or begin "
            "anew with another JOBDIR"
        )
