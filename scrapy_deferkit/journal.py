"""The items in flight, in one SQLite file that outlives the process."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from ._runtime import Latch, WorkerThread, call_soon
from .exceptions import DeferKitError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable

logger = logging.getLogger(__name__)


class JournalError(DeferKitError):
    """The journal cannot be opened, written or read: the file, what happened, and the fix."""


class JournalInUse(JournalError):
    """Another process, or another journal of this one, holds the file."""


class JournalTooNew(JournalError):
    """A newer version of the package wrote the file."""


class UnreadableRow(JournalError):
    """A row of the journal has been garbled; it stays, and harms no other."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An item that was in flight when an earlier run ended.

    ``item`` is its JSON text as it entered ``stage``, ``missing`` says what of it has no such
    form, ``began_at`` is in seconds of ``time.time()``, and ``attempts`` counts the runs that
    tried it. ``id`` is unique among all runs and processes; ``position`` orders the entries of
    one file.
    """

    position: int
    id: str
    stage: str
    item: str
    item_type: str
    page_url: str | None
    missing: str | None
    began_at: float
    attempts: int = 1


class Write:
    """What begins and ends between two transactions, and is written in one."""

    __slots__ = ("_latch", "again", "begun", "ends", "error", "is_over", "replaced", "rows")

    def __init__(self) -> None:
        self.is_over = False
        self.error: Exception | None = None
        """Why it could not be written, once it is over; ``None`` where it was."""

        self.rows: dict[int, tuple[Any, ...]] = {}
        self.again: list[int] = []
        self.ends: set[int] = set()
        self.replaced: dict[int, int] = {}  # a new row, and the row that it ends by beginning
        self.begun: list[Deferred[None]] = []
        self._latch: Latch | None = None

    def changes_rows(self) -> bool:
        return bool(self.rows or self.again or self.ends)

    def wait(self) -> Awaitable[None]:
        """Give what a coroutine awaits until this is over, however it went."""
        if self._latch is None:
            self._latch = Latch()
        return self._latch.wait()

    def settle(self, outcome: object) -> None:
        """Fire the Deferreds of what began here: with the error, where *outcome* is a Failure."""
        self.is_over = True
        if isinstance(outcome, Failure) and isinstance(outcome.value, Exception):
            self.error = outcome.value
        if self._latch is not None:
            self._latch.open()
        for begun in self.begun:
            if isinstance(outcome, Failure):
                begun.errback(outcome.value)
            else:
                begun.callback(None)


class Journal:
    """Rows of items in flight, in the SQLite file *path*, held by one process.

    At most one transaction is under way; what begins and ends meanwhile is the next. An item is
    safe against the death of the process when its Deferred fires. When a transaction fails, what
    began in it fails with :exc:`JournalError`, and what ended is tried again with each later one.

    *on_error* hears of each failure that differs from the one before it, and of each row that
    cannot be read.
    """

    def __init__(self, path: Path, on_error: Callable[[JournalError], object]) -> None:
        self.path = Path(path)
        self._on_error = on_error
        self._file = _File(self.path)
        self._run = uuid.uuid4().hex
        self._thread: WorkerThread | None = None
        self._is_open = False
        self._waiting = Write()
        self._writing: Write | None = None
        self._is_write_due = False
        self._last_failure: str | None = None
        # Rows that could not be written, and the row that stands for each in the file, if any.
        self._unwritten: dict[int, int | None] = {}
        self._last_position = 0
        self._last_unfinished = 0

    def open(self) -> Deferred[None]:
        """Create or migrate the file, and hold it.

        Fails with :exc:`JournalInUse`, :exc:`JournalTooNew`, or another :exc:`JournalError`.
        """
        if self._thread is not None:
            return fail(JournalError(f"the journal {self.path} is open already: open it once"))
        self._thread = WorkerThread("deferkit-journal")
        return self._thread.call(self._file.open).addCallbacks(self._opened, self._not_opened)

    def _opened(self, last_position: int) -> None:
        self._last_position = self._last_unfinished = last_position
        self._is_open = self._thread is not None

    def _not_opened(self, failure: Failure) -> Failure:
        # Where the Deferred was cancelled instead, the file may open yet, and close() closes it.
        if self._thread is not None and failure.check(JournalError):
            self._thread.close()
            self._thread = None
        return failure

    def begin(
        self,
        stage: str,
        item: str,
        item_type: str,
        *,
        page_url: str | None = None,
        missing: str | None = None,
        attempts: int = 1,
        replaces: str | None = None,
    ) -> tuple[str, Deferred[None]]:
        """Note an item that begins; give its id, and a Deferred that fires when it is safe.

        The item whose id is *replaces* ends in the same transaction. Where that fails, the old
        row stays until the new id ends, so that the item is never without a row.

        End the id in any case, even when its Deferred has failed.
        """
        row = (stage, item, item_type, page_url, missing)
        item_id, _ = self.add(row, attempts, replaces)
        return item_id, self._await_write() if self._is_open else fail(_not_open(self.path))

    def add(
        self,
        row: tuple[str, str, str, str | None, str | None],
        attempts: int = 1,
        replaces: str | None = None,
    ) -> tuple[str, Write]:
        """Note an item that begins, as :meth:`begin`; give its id, and the write that it is in.

        *row* has the stage, the item, its type, its page's URL, and what is missing.
        """
        self._last_position = position = self._last_position + 1
        group = self._waiting
        if self._is_open:
            group.rows[position] = (position, self._run, *row, time.time(), attempts)
            if replaces is not None:
                self._replace(replaces, position)
            if not self._is_write_due:
                self._want_write()
        else:
            group = Write()
            group.settle(Failure(_not_open(self.path)))
        return f"{self._run}-{position}", group

    def begin_again(self, item_id: str) -> Deferred[None]:
        """Note that this run tries an item of an earlier one: an attempt more, under its own id."""
        if not self._is_open:
            return fail(_not_open(self.path))
        self._waiting.again.append(_position_of(item_id))
        return self._await_write()

    def end(self, item_id: str) -> None:
        """Let the row of an item go with the next transaction; after ``close()``, let it stay.

        The id is one that ``begin()`` or ``unfinished()`` of this journal gave.
        """
        position = self._row_for(item_id)
        if position is None or not self._is_open:
            return
        group = self._waiting
        if group.rows.pop(position, None) is None:
            group.ends.add(position)
        else:
            group.replaced.pop(position, None)
        self._want_write()

    def has(self, item_id: str) -> bool:
        """Tell whether the file has a row for an item, as far as is known."""
        row: int | None = _position_of(item_id)
        while row is not None and row in self._unwritten:
            row = self._unwritten[row]
        return row is not None

    def unfinished(self, after: int, limit: int) -> Deferred[list[Entry]]:
        """Give at most *limit* entries of earlier runs behind the position *after*, in order.

        An empty list is the end. A row that cannot be read is told to *on_error* and stays.
        """
        if self._thread is None:
            return fail(_not_open(self.path))
        ended = self._waiting.ends.union(self._writing.ends if self._writing else ())
        reading = self._thread.call(self._file.read, after, self._last_unfinished, limit, ended)
        return reading.addCallback(self._found)

    def _found(self, found: tuple[list[Entry], list[JournalError]]) -> list[Entry]:
        entries, errors = found
        for error in errors:
            self._tell(error)
        return entries

    def count_unfinished(self) -> Deferred[int]:
        """Count the rows of earlier runs that are still there."""
        if self._thread is None:
            return fail(_not_open(self.path))
        return self._thread.call(self._file.count, self._last_unfinished)

    def close(self) -> Deferred[None]:
        """Write what waits and let the file go, whether or not that could be written.

        Fails with :exc:`JournalError` when it could not. Does nothing where nothing is open.
        """
        if self._thread is None:
            return succeed(None)
        thread, self._thread = self._thread, None
        group, self._waiting = self._waiting, Write()
        self._is_open = False
        closed: Deferred[None] = thread.call(self._file.close, group)
        thread.close()

        def settle(outcome: Any) -> Any:
            group.settle(outcome)
            return outcome

        return closed.addBoth(settle)

    def _replace(self, old_id: str, new: int) -> None:
        old = self._row_for(old_id)
        group = self._waiting
        if old is None:
            return
        if group.rows.pop(old, None) is None:
            group.ends.add(old)
            group.replaced[new] = old
        elif old in group.replaced:
            group.replaced[new] = group.replaced.pop(old)

    def _row_for(self, item_id: str) -> int | None:
        """Give the row that the file has for an item, be it the row that it could not replace."""
        row: int | None = _position_of(item_id)
        while row is not None and row in self._unwritten:
            row = self._unwritten.pop(row)
        return row

    def _await_write(self) -> Deferred[None]:
        begun: Deferred[None] = Deferred()
        self._waiting.begun.append(begun)
        self._want_write()
        return begun

    def _want_write(self) -> None:
        if self._is_write_due:
            return
        self._is_write_due = True
        if self._writing is None:
            # On a later turn, so that all of this turn goes into one transaction.
            call_soon(self._write)

    def _write(self) -> None:
        if self._thread is None:
            return
        group, self._waiting = self._waiting, Write()
        self._is_write_due = False
        if not group.changes_rows():
            group.settle(None)
            return
        self._writing = group
        self._thread.call(self._file.write, group).addBoth(self._written, group)

    def _written(self, outcome: Any, group: Write) -> None:
        if isinstance(outcome, Failure):
            self._note_unwritten(group)
            before, self._last_failure = self._last_failure, str(outcome.value)
            if before != self._last_failure:
                self._tell(outcome.value)
        else:
            self._last_failure = None
        group.settle(outcome)
        self._writing = None
        if self._is_write_due:
            self._write()

    def _note_unwritten(self, group: Write) -> None:
        waiting = self._waiting
        successors = {old: new for new, old in waiting.replaced.items()}
        for position in group.rows:
            old = group.replaced.get(position)
            if position not in waiting.ends:
                self._unwritten[position] = old
            elif old is not None:  # the item ended, or was replaced, while it was being written
                waiting.ends.add(old)
                if position in successors:
                    waiting.replaced[successors[position]] = old

    def _tell(self, error: Any) -> None:
        try:
            self._on_error(error)
        except Exception:
            logger.exception("What was to hear of a failure of the journal failed: %s", error)


# ------------------------------------------------------------------------------------ the file

# What leads from each version of the file to the next; `PRAGMA user_version` is the last one.
_MIGRATIONS = (
    """CREATE TABLE items (
        position INTEGER PRIMARY KEY, run TEXT, stage TEXT, item TEXT, item_type TEXT,
        page_url TEXT, missing TEXT, began_at REAL, attempts INTEGER)""",
)
_TEXT = ((str,), "text")
_TEXT_OR_NULL = ((str, type(None)), "text or NULL")
_INTEGER = ((int,), "an integer")
_COLUMNS: dict[str, tuple[tuple[type, ...], str]] = {
    "position": _INTEGER,
    "run": _TEXT,
    "stage": _TEXT,
    "item": _TEXT,
    "item_type": _TEXT,
    "page_url": _TEXT_OR_NULL,
    "missing": _TEXT_OR_NULL,
    "began_at": ((float,), "a number"),
    "attempts": _INTEGER,
}
_COLUMN_LIST = ", ".join(_COLUMNS)
_ROW = f"({', '.join('?' * len(_COLUMNS))})"
_ROWS_PER_STATEMENT = 100  # SQLite before 3.32 takes at most 999 parameters

_FIXES = {
    "is full": "make room on the disk",
    "readonly": "make the file and its directory writable",
    "unable to open": "its directory must exist and be writable",
    "No such file": "start the crawl again, and let its JOBDIR be while it runs",
    "not a database": "move the file away, or give the crawl another JOBDIR",
    "malformed": "move the file away, or give the crawl another JOBDIR",
}


class _File:
    """The SQLite file; all but the constructor is called in one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._owed_ends: set[int] = set()
        self._unreadable: set[int] = set()

    def open(self) -> int:
        """Connect, lock and migrate; give the last position."""
        try:
            self._connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
            # Whoever edits the file may leave bytes that are no text.
            self._connection.text_factory = lambda text: text.decode("utf-8", "replace")
            # The lock is the system's, held as long as the process and the connection live.
            self._execute("PRAGMA locking_mode = EXCLUSIVE")
            (version,) = self._execute("PRAGMA user_version").fetchone()
            if version > len(_MIGRATIONS):
                raise JournalTooNew(
                    f"the journal {self._path} is of version {version}, and this scrapy-deferkit "
                    f"knows versions up to {len(_MIGRATIONS)}: upgrade scrapy-deferkit, or give "
                    "the crawl another JOBDIR"
                )
            self._execute("PRAGMA journal_mode = WAL")
            self._execute("PRAGMA synchronous = NORMAL")
            self._transact(self._migrate, version)
            self._inode = self._path.stat().st_ino
            (last,) = self._execute("SELECT coalesce(max(position), 0) FROM items").fetchone()
        except Exception as error:
            self._disconnect()
            raise self._explain("opened", error) from error
        return int(last)

    def _migrate(self, version: int) -> None:
        for statement in _MIGRATIONS[version:]:
            self._execute(statement)
        self._execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    def write(self, group: Write) -> None:
        """Write *group*, and the ends that earlier groups could not write, in one transaction."""
        try:
            # SQLite would go on to write into a file that has no name any more.
            if self._path.stat().st_ino != self._inode:
                raise FileNotFoundError("No such file any more: another has its name")
            try:
                self._transact(self._change_rows, group, group.rows.values())
            except UnicodeEncodeError:
                self._transact(self._change_rows, group, map(_escape, group.rows.values()))
        except Exception as error:
            # What ends only because another begins stays, as that other has not begun.
            self._owed_ends |= group.ends.difference(group.replaced.values())
            raise self._explain("written", error) from error
        self._owed_ends.clear()

    def _change_rows(self, group: Write, rows: Iterable[tuple[Any, ...]]) -> None:
        # Few statements, however many items: at each, this thread may have to wait for the
        # interpreter's lock, and executemany() has one for each row.
        begun = list(rows)
        for start in range(0, len(begun), _ROWS_PER_STATEMENT):
            part = begun[start : start + _ROWS_PER_STATEMENT]
            marks = ", ".join([_ROW] * len(part))
            values = [value for row in part for value in row]
            self._execute(f"INSERT INTO items ({_COLUMN_LIST}) VALUES {marks}", values)
        among = "WHERE position IN (SELECT value FROM json_each(?))"
        if group.again:
            again = json.dumps(group.again)
            self._execute(f"UPDATE items SET attempts = attempts + 1 {among}", [again])
        if ends := [*group.ends, *self._owed_ends]:
            self._execute(f"DELETE FROM items {among}", [json.dumps(ends)])

    def read(
        self, after: int, last: int, limit: int, ended: Collection[int]
    ) -> tuple[list[Entry], list[JournalError]]:
        """Give what :meth:`Journal.unfinished` gives, and errors for rows that are not entries."""
        entries: list[Entry] = []
        errors: list[JournalError] = []
        query = f"SELECT {_COLUMN_LIST} FROM items WHERE position > ? AND position <= ? ORDER BY 1"
        try:
            rows = self._execute(query, [after, last])
            while len(entries) < limit and (row := rows.fetchone()) is not None:
                if row[0] in ended or row[0] in self._owed_ends or row[0] in self._unreadable:
                    continue
                try:
                    entries.append(_entry(row))
                except ValueError as error:
                    self._unreadable.add(row[0])
                    errors.append(UnreadableRow(f"the journal {self._path}: {error}"))
            rows.close()
        except sqlite3.Error as error:
            raise self._explain("read", error) from error
        return entries, errors

    def count(self, last: int) -> int:
        try:
            rows = self._execute("SELECT count(*) FROM items WHERE position <= ?", [last])
            return int(rows.fetchone()[0])
        except sqlite3.Error as error:
            raise self._explain("read", error) from error

    def close(self, group: Write) -> None:
        """Write *group*, empty the write-ahead log, and let the file go in any case."""
        if self._connection is None:
            return
        try:
            if group.changes_rows() or self._owed_ends:
                self.write(group)
            self._execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise self._explain("written", error) from error
        finally:
            self._disconnect()

    def _transact(self, change: Callable[..., None], *args: Any) -> None:
        self._execute("BEGIN IMMEDIATE")
        try:
            change(*args)
            self._execute("COMMIT")
        except BaseException:
            # SQLite has rolled back by itself after some errors.
            if self._connection is not None and self._connection.in_transaction:
                self._execute("ROLLBACK")
            raise

    def _execute(self, statement: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        if self._connection is None:
            raise _not_open(self._path)
        return self._connection.execute(statement, tuple(values))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _explain(self, action: str, error: Exception) -> JournalError:
        if isinstance(error, JournalError):
            return error
        if "locked" in str(error):
            pid = _holder_of(self._path)
            who = {None: "another process", os.getpid(): "this process"}.get(pid, f"process {pid}")
            return JournalInUse(
                f"the journal {self._path} is in use by {who}: wait until that ends, or give this "
                "crawl a JOBDIR of its own"
            )
        fixes = (fix for sign, fix in _FIXES.items() if sign in str(error))
        fix = next(fixes, "check the file and the disk")
        return JournalError(f"the journal {self._path} cannot be {action}: {error}: {fix}")


def _not_open(path: Path) -> JournalError:
    return JournalError(f"the journal {path} is not open: wait for open(), and close() it last")


def _position_of(item_id: str) -> int:
    return int(item_id.rpartition("-")[2])


def _entry(row: tuple[Any, ...]) -> Entry:
    """Build an entry of *row*; raise ``ValueError`` where somebody has made it none."""
    named = dict(zip(_COLUMNS, row, strict=True))
    for column, value in named.items():
        types, allowed = _COLUMNS[column]
        if not isinstance(value, types):
            shown = "NULL" if value is None else repr(value)[:80]
            raise ValueError(
                f"{column} of the row at position {named['position']} is {shown}, and must be "
                f"{allowed}: correct the row in the table items, or delete it"
            )
    return Entry(id=f"{named.pop('run')}-{named['position']}", **named)


def _escape(row: tuple[Any, ...]) -> tuple[Any, ...]:
    r"""Write lone surrogates, which SQLite cannot hold, as ``\ud800``: JSON reads them back."""
    return tuple(
        value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for value in row
    )


def _holder_of(path: Path) -> int | None:
    """Give the process that has *path* locked, where the system tells: on Linux."""
    try:
        inode = str(path.stat().st_ino)
        locks = [line.split() for line in Path("/proc/locks").read_text("utf-8").splitlines()]
    except OSError:
        return None
    holders = (int(lock[-4]) for lock in locks if lock[-3].rpartition(":")[2] == inode)
    return next((pid for pid in holders if pid > 0), None)
