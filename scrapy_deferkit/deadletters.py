"""The dead letters: items that failed, kept in a table until they are replayed or deleted.

SQLite or PostgreSQL, by SQLAlchemy Core. All of it blocks: callers call it in a thread.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from ._letters import ALL, REQUEST, DeadLetter, Failed, Selection
from ._secrets import SECRETS, without_secrets
from ._sqlite_check import (
    MAKE_ROOM,
    META_TABLE,
    MOVE,
    VERSION_ROW,
    check_sqlite_file,
    make_private,
    text_or_bytes,
    trouble_of,
    unusable,
    version_of,
)
from .exceptions import DeadLettersError, DeadLettersUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["ALL", "DeadLetter", "DeadLetters", "Failed", "Selection"]


class _Text(sa.TypeDecorator[Any]):
    """Text, and times as text of one length: a time that somebody has garbled is still read."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: object) -> Any:
        if isinstance(value, datetime):
            return value.astimezone(timezone.utc).isoformat(timespec="microseconds")
        if isinstance(value, str):
            # A database refuses NUL and lone surrogates.
            return value.replace("\0", "\\x00").encode(errors="backslashreplace").decode()
        return value


# Compared byte by byte, as SQLite does, so that an index serves prefixes and order.
_TEXT = _Text().with_variant(_Text(collation="C"), "postgresql")

_schema = sa.MetaData()

_meta = sa.Table(
    META_TABLE,
    _schema,
    sa.Column("name", _TEXT, primary_key=True),
    sa.Column("value", _TEXT, nullable=False),
)

_tracebacks = sa.Table(
    "deferkit_tracebacks",
    _schema,
    sa.Column("key", _TEXT, primary_key=True),
    sa.Column("traceback", _TEXT, nullable=False),
)

_letters = sa.Table(
    "deferkit_dead_letters",
    _schema,
    sa.Column("id", _TEXT, primary_key=True),
    sa.Column("spider", _TEXT, nullable=False),
    sa.Column("spider_args", _TEXT, nullable=False),
    sa.Column("stage", _TEXT, nullable=False),
    sa.Column("item", _TEXT, nullable=False),
    sa.Column("item_type", _TEXT, nullable=False),
    sa.Column("missing", _TEXT),
    sa.Column("page_url", _TEXT),
    sa.Column("step", _TEXT),
    sa.Column("error_type", _TEXT, nullable=False),
    sa.Column("error", _TEXT, nullable=False),
    sa.Column("traceback_key", _TEXT, nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("first_failed_at", _TEXT, nullable=False),
    sa.Column("failed_at", _TEXT, nullable=False),
    sa.Column("leased_by", _TEXT),
    sa.Column("leased_at", _TEXT, index=True),
    sa.Column("leased_until", _TEXT, index=True),
    sa.Column("tried_by", _TEXT),
    sa.Column("tried_at", _TEXT),
    # For pages in the order of time.
    sa.Index("deferkit_dead_letters_by_time", "failed_at", "id"),
)
_columns = _letters.c

# For pages of what nobody holds: a row leaves this index when it is taken.
sa.Index(
    "deferkit_dead_letters_free",
    _columns.spider,
    _columns.failed_at,
    _columns.id,
    sqlite_where=_columns.leased_by.is_(None),
    postgresql_where=_columns.leased_by.is_(None),
)

_MIGRATIONS: tuple[Callable[[Connection], None], ...] = ()
"""What makes version n + 1 of version n. New tables are made as the last version has them."""

# Keys of PostgreSQL's advisory locks, for all who use the database.
_SCHEMA_LOCK = 0x646566_0001
_TRACEBACKS_LOCK = 0x646566_0002

_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}

_BUSY_SECONDS = 30
_CONNECT_SECONDS = 10
_PAGE = 500
_PAGE_SIZE = 16_000_000  # characters of items
_ORDER = (_columns.failed_at, _columns.id)

_START = "start the server, or correct DEFERKIT_DEAD_LETTERS_URL"

# The beginning of PostgreSQL's SQLSTATE, whether that may pass, and what helps.
_POSTGRES_TROUBLE = (
    ("08", True, _START),
    ("25006", True, "let DEFERKIT_DEAD_LETTERS_URL lead to a server that may be written"),
    ("40", True, "try again"),
    ("5310", True, MAKE_ROOM),
    ("53", True, "give the server more of what it lacks"),
    ("55P03", True, "end the session that keeps the table locked"),
    ("57", True, _START),
    ("58", True, "look after the server's disk"),
    ("42501", False, "grant the user the right, or create the tables as another user first"),
)

# A connection that is refused has no SQLSTATE; these do not pass by themselves.
_REFUSALS = ("authentication failed", "no password supplied", "does not exist", "pg_hba.conf")


class DeadLetters:
    """The table of dead letters at *url*: ``sqlite:///PATH`` or ``postgresql://USER@HOST/NAME``.

    Nothing is opened before it is used, and nothing is created but by :meth:`put`. What goes wrong
    is a ``DeadLettersError``, and a ``DeadLettersUnavailable`` where trying again may help.

    An *owner* is one run of a replay, named as no other is. The letters that it takes are its own
    under a lease: until that ends no other owner is given them. On PostgreSQL the server's clock
    tells when that is, since the clocks of hosts differ.
    """

    def __init__(self, url: str) -> None:
        parsed = _parse(url)
        self.url: str = _shown(parsed)
        """The URL without its password."""
        is_file = parsed.drivername == "sqlite"
        self._file = Path(parsed.database or "") if is_file else None
        try:
            self._engine = _sqlite_engine(parsed) if is_file else _postgres_engine(parsed)
        except (SQLAlchemyError, TypeError, ValueError) as error:
            raise DeadLettersError(
                f"DEFERKIT_DEAD_LETTERS_URL is {self.url}, which has a wrong option: {error}."
            ) from error
        except ImportError as error:
            raise DeadLettersError(
                f"The dead letters at {self.url} need psycopg 3, which cannot be imported "
                f"({error}): pip install 'scrapy-deferkit[postgres]'"
            ) from error
        self._first_taken_at: dict[str, datetime] = {}

    def check(self) -> None:
        """Raise ``DeadLettersError`` if letters cannot be written; nothing is created for that.

        Connects to a server, and closes the connection again.
        """
        if self._file is not None:
            check_sqlite_file(self._file, self.url)
            return
        try:
            with self._transaction(write=True, create=True) as connection:
                for table in (_letters, _tracebacks):  # needs the right, and writes nothing
                    nothing = sa.select(table).where(sa.false())
                    connection.execute(sa.insert(table).from_select(list(table.c), nothing))
                connection.execute(sa.update(_letters).values(step=None).where(sa.false()))
                connection.rollback()
        finally:
            self.close()

    def put(self, failures: Iterable[Failed]) -> None:
        """Put *failures* in, all or none.

        A failure that is in already changes nothing, so a put may be repeated when its outcome is
        not known. A later failure of the same id is one attempt more, with its error, at its time;
        the item stays as it is, unless the failure replaces it: then nobody holds the letter.
        """
        # Sorted, so that two processes do not wait for each other's rows.
        failures = sorted(failures, key=lambda failure: (failure.id, failure.at))
        if not failures:
            return
        with self._transaction(write=True, create=True) as connection:
            _put_tracebacks(connection, failures)
            insert = _insert(connection, _letters)
            excluded, there = insert.excluded.failed_at, _columns.failed_at
            # What replaces another is the later one, whatever the clocks say.
            for replaces, names, is_new in (
                (False, _ATTEMPT, excluded > there),
                (True, _REPLACED, excluded != there),
            ):
                rows = [_row_of(failure) for failure in failures if failure.replaces is replaces]
                changed = {name: insert.excluded[name] for name in names}
                statement = insert.on_conflict_do_update(
                    index_elements=[_columns.id],
                    set_={**changed, "attempts": _one_more},
                    where=is_new,
                )
                if rows:
                    connection.execute(statement, rows)

    def count(self, selection: Selection = ALL) -> int:
        """Count the letters of *selection*."""
        with self._transaction() as connection:
            counting = sa.select(sa.func.count()).select_from(_letters).where(*_where(selection))
            return connection.scalar(counting) or 0

    def select(self, selection: Selection = ALL, limit: int | None = None) -> Iterator[DeadLetter]:
        """Yield the letters of *selection*, those that failed first before the others.

        They are read page by page, with no transaction left open between pages.
        """
        size = _PAGE if limit is None else min(limit, _PAGE)
        return islice(self._pages(selection, size), limit)

    def _pages(self, selection: Selection, size: int) -> Iterator[DeadLetter]:
        page = _reading.where(*_where(selection)).order_by(*_ORDER).limit(size)
        further = page
        while True:
            rows: list[Mapping[Any, Any]] = []
            with self._transaction() as connection:
                _read_page(connection, further, rows)
            if not rows:
                return
            yield from map(_letter_of, rows)
            last = sa.tuple_(*(sa.literal(rows[-1][column.name], _TEXT) for column in _ORDER))
            further = page.where(sa.tuple_(*_ORDER) > last)

    def get(self, id_or_prefix: str) -> DeadLetter | None:
        """Give the letter whose id this is, or the only one whose id begins so."""
        ids = self.find(id_or_prefix)
        if len(ids) > 1 and ids[0] != id_or_prefix:
            raise DeadLettersError(
                f"{id_or_prefix!r} is the beginning of several ids of the dead letters at "
                f"{self.url}: {', '.join(ids)}{' and more' if len(ids) == 5 else ''}. Give more of "
                "the id."
            )
        return next(self.select(Selection(ids=ids[:1])), None)

    def find(self, beginning: str, end: str = "") -> list[str]:
        """Return the first 5 ids that begin and end so, in their order."""
        within = (_columns.id >= beginning, _columns.id < beginning + "\U0010ffff")
        ends = _columns.id.endswith(end, autoescape=True) if end else sa.true()
        with self._transaction() as connection:
            found = sa.select(_columns.id).where(*within, ends).order_by(_columns.id).limit(5)
            return list(connection.scalars(found))

    def edit(self, letter_id: str, item: str, item_type: str) -> None:
        """Put a corrected *item* in the place of what the letter has; nothing is missing then.

        Replays that are under way may take it again. A letter that one of them holds is left alone.
        """
        this = _columns.id == letter_id
        with self._transaction(write=True) as connection:
            held = _columns.leased_until > self._lease_time(connection)
            lease = sa.select(_columns.leased_by, _columns.leased_until, held.label("held"))
            found = connection.execute(lease.where(this).with_for_update()).one_or_none()
            if found is not None and not found.held:
                edited = {"item": item, "item_type": item_type, "missing": None}
                edited |= {"tried_by": None, "tried_at": None}
                connection.execute(sa.update(_letters).where(this).values(edited))
        if found is None:
            raise DeadLettersError(
                f"There is no dead letter {letter_id} at {self.url}: "
                "it has been delivered or deleted."
            )
        if found.held:
            raise DeadLettersError(
                f"The dead letter {letter_id} at {self.url} is being replayed by "
                f"{found.leased_by}: edit it when that is over, or after {found.leased_until}."
            )

    def delete(self, selection: Selection, limit: int | None = None) -> int:
        """Delete the letters of *selection*, or the *limit* oldest failures of them.

        They may be held by a replay. Returns how many they were.
        """
        deletion = sa.delete(_letters).where(*_where(selection))
        if limit is not None:
            meant = sa.select(_columns.id).where(*_where(selection)).order_by(*_ORDER).limit(limit)
            deletion = deletion.where(_columns.id.in_(meant))
        with self._transaction(write=True) as connection:
            deleted = connection.execute(deletion).rowcount
            _forget_tracebacks(connection)
            return deleted

    def take(
        self, selection: Selection, limit: int, owner: str, lease_seconds: float
    ) -> list[DeadLetter]:
        """Lease at most *limit* letters of *selection* to *owner*, the oldest failures first.

        They are fewer where their items are large, and none only when there are no more.
        None that has failed again since this owner's first take, in its own run or in another, is
        given once more, so runs come to an end. Those whose owner let its lease end come last.
        """
        with self._transaction(write=True) as connection:
            now = self._lease_time(connection)
            begun = min(now, self._first_taken_at.get(owner, now))
            self._first_taken_at[owner] = begun
            tried_before = _columns.tried_at < begun
            if self._file is not None:  # the clock may have been set back since
                tried_before |= _columns.tried_at > now
            others = sa.and_(_columns.tried_by != owner, tried_before)
            due = (*_where(selection), sa.or_(_columns.tried_by.is_(None), others))
            ended = sa.and_(_columns.leased_by != owner, _columns.leased_until <= now)
            rows: list[Mapping[Any, Any]] = []
            # Two queries, each with an index that steps over all that is leased.
            for available in (_columns.leased_by.is_(None), ended):
                wanted = _reading.where(*due, available).order_by(*_ORDER).limit(limit - len(rows))
                wanted = wanted.with_for_update(of=_letters, skip_locked=True)
                _read_page(connection, wanted, rows)
            until = now + timedelta(seconds=lease_seconds)
            lease: dict[str, Any] = {"leased_by": owner, "leased_until": until}
            for some in _in_pages(row["id"] for row in rows):
                connection.execute(sa.update(_letters).where(some).values(**lease, leased_at=now))
            return [replace(_letter_of(row), **lease) for row in rows]

    def _lease_time(self, connection: Connection) -> datetime:
        """Return the time by which leases end.

        On SQLite it is the host's: if that was set back, leases that have begun later than now last
        as long from now on, so that one that died does not hold its letters until the clock has
        caught up, and one that lives keeps them until it renews its lease.
        """
        now = _now(connection)
        if self._file is None:
            return now
        ahead = sa.select(_columns.leased_at, _columns.leased_until).distinct()
        for begin, end in connection.execute(ahead.where(_columns.leased_at > now)).all():
            with suppress(TypeError, ValueError):  # somebody has garbled it
                lease = {"leased_at": now, "leased_until": now + (_time(end) - _time(begin))}
                this = (_columns.leased_at == begin, _columns.leased_until == end)
                connection.execute(sa.update(_letters).where(*this).values(lease))
        return now

    def renew(self, owner: str, ids: Iterable[str], lease_seconds: float) -> set[str]:
        """Lease *ids* to *owner* for longer; return those that are still its own."""
        with self._transaction(write=True) as connection:
            now = _now(connection)
            until = now + timedelta(seconds=lease_seconds)
            lease = sa.update(_letters).values(leased_at=now, leased_until=until)
            return _execute_on_held(connection, lease, owner, ids)

    def delivered(self, owner: str, ids: Iterable[str]) -> set[str]:
        """Remove *ids*, which *owner* has delivered; return those that were still its own."""
        with self._transaction(write=True) as connection:
            ours = _execute_on_held(connection, sa.delete(_letters), owner, ids)
            _forget_tracebacks(connection)
            return ours

    def remove(self, ids: Iterable[str]) -> None:
        """Remove *ids*, whoever holds them."""
        with self._transaction(write=True) as connection:
            connection.execute(sa.delete(_letters).where(_columns.id.in_(list(ids))))
            _forget_tracebacks(connection)

    def failed_again(self, owner: str, failures: Iterable[Failed]) -> None:
        """Note the new failures of letters that *owner* holds, and give their leases up.

        The item stays as it is; a letter that is another's by now is left alone.
        """
        failures = sorted(failures, key=lambda failure: failure.id)
        if not failures:
            return
        ours = sa.and_(_columns.id == sa.bindparam("letter"), _columns.leased_by == owner)
        with self._transaction(write=True) as connection:
            _put_tracebacks(connection, failures)
            statement = sa.update(_letters).where(ours)
            statement = statement.values(attempts=_one_more, **_NO_LEASE)
            statement = statement.values(tried_by=owner, tried_at=_now(connection))
            connection.execute(
                statement, [{"letter": each.id, **_attempt_of(each)} for each in failures]
            )

    def release(self, owner: str) -> int:
        """Give up the leases of *owner*, whose run has been stopped; return how many they were."""
        with self._transaction(write=True) as connection:
            held = sa.update(_letters).where(_columns.leased_by == owner)
            return connection.execute(held.values(_NO_LEASE)).rowcount

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, write: bool = False, create: bool = False) -> Iterator[Connection]:
        """Yield a connection to tables of this version; to empty ones while there are none."""
        begin = "BEGIN IMMEDIATE" if write else "BEGIN"
        try:
            is_there = self._file is None or self._file.exists()
            if self._file is not None and create and not is_there:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                make_private(self._file)
                _use_wal(self._engine)
            if is_there or create:
                with self._engine.execution_options(deferkit_begin=begin).begin() as connection:
                    if self._prepare(connection, create=create):
                        yield connection
                        return
            with _nothing.begin() as connection:
                _schema.create_all(connection)
                yield connection
        except (SQLAlchemyError, OSError) as error:
            trouble = self._explain(error)
            if isinstance(trouble, DeadLettersUnavailable):
                self.close()  # a new connection may lead to another server, after a failover
            raise trouble from error

    def _prepare(self, connection: Connection, *, create: bool) -> bool:
        """Bring the tables to this version; return whether there are any."""
        newest = 1 + len(_MIGRATIONS)
        version = self._version(connection, newest)
        if version == newest or (version is None and not create):
            return version is not None
        # Two processes may be here at once. The second one waits, and looks again.
        _lock(connection, sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK))
        version = self._version(connection, newest)
        if version is None:
            _schema.create_all(connection)
        else:
            for migrate in _MIGRATIONS[version - 1 :]:
                migrate(connection)
        connection.execute(sa.delete(_meta).where(_meta.c.name == VERSION_ROW))
        connection.execute(sa.insert(_meta).values(name=VERSION_ROW, value=str(newest)))
        return True

    def _version(self, connection: Connection, newest: int) -> int | None:
        if not sa.inspect(connection).has_table(_meta.name):
            return None
        value = connection.scalar(sa.select(_meta.c.value).where(_meta.c.name == VERSION_ROW))
        return None if value is None else version_of(value, newest, self.url)

    def _explain(self, error: SQLAlchemyError | OSError) -> DeadLettersError:
        cause = getattr(error, "orig", None) or error
        if self._file is None and not isinstance(cause, OSError):
            return unusable(self.url, cause, *_server_trouble(error, cause))
        return unusable(self.url, cause, *trouble_of(cause))


# Every connection to it has a database of its own, in memory.
_nothing = sa.create_engine("sqlite://", poolclass=sa.NullPool)


def _is_postgres(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def _insert(connection: Connection, table: sa.Table) -> Any:
    return (postgresql if _is_postgres(connection) else sqlite).insert(table)


def _lock(connection: Connection, lock: sa.Function[Any]) -> None:
    """Wait for an advisory lock of PostgreSQL; a file has one writer at a time anyway."""
    if _is_postgres(connection):
        connection.execute(sa.select(lock))


def _now(connection: Connection) -> datetime:
    if not _is_postgres(connection):
        return _host_time()
    now: datetime = connection.scalars(sa.select(sa.func.clock_timestamp())).one()
    return now


def _put_tracebacks(connection: Connection, failures: Iterable[Failed]) -> None:
    # Whoever clears tracebacks waits until the letters that point to these can be seen.
    _lock(connection, sa.func.pg_advisory_xact_lock_shared(_TRACEBACKS_LOCK))
    texts = {_traceback_key(failure): failure.traceback for failure in failures}
    put = _insert(connection, _tracebacks).on_conflict_do_nothing(index_elements=["key"])
    connection.execute(put, [{"key": key, "traceback": texts[key]} for key in sorted(texts)])


def _forget_tracebacks(connection: Connection) -> None:
    """Delete the tracebacks that no letter points to."""
    used = sa.exists().where(_columns.traceback_key == _tracebacks.c.key)
    if connection.scalar(sa.select(_tracebacks.c.key).where(~used).limit(1)) is not None:
        _lock(connection, sa.func.pg_advisory_xact_lock(_TRACEBACKS_LOCK))
        connection.execute(sa.delete(_tracebacks).where(~used))


def _host_time() -> datetime:
    return datetime.now(timezone.utc)


_NO_LEASE: dict[str, Any] = dict.fromkeys(("leased_by", "leased_at", "leased_until"))
_ATTEMPT = ("stage", "step", "error_type", "error", "traceback_key", "failed_at")
_REPLACED = set(_columns.keys()) - {"id", "attempts", "first_failed_at"}


def _row_of(failure: Failed) -> dict[str, Any]:
    row = {**asdict(failure), **_attempt_of(failure), "attempts": 1, "first_failed_at": failure.at}
    return {name: value for name, value in row.items() if name in _columns}


def _attempt_of(failure: Failed) -> dict[str, Any]:
    """Return the columns that one more attempt changes."""
    derived = {"traceback_key": _traceback_key(failure), "failed_at": failure.at}
    return {name: derived.get(name) or getattr(failure, name) for name in _ATTEMPT}


# SQLite takes text that is no number for 0, so an edited row is a number again.
_one_more = sa.func.coalesce(_columns.attempts, 0) + 1

_FRAME = re.compile(r'^\s*File "(.*)", line (\d+), in (.*)$', re.MULTILINE)


def _traceback_key(failure: Failed) -> str:
    """Give the same key for one error from one place, whatever its message says."""
    frames = _FRAME.findall(failure.traceback) or failure.traceback
    text = f"{failure.error_type} {frames}"
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


_reading = sa.select(
    _letters, sa.func.coalesce(_tracebacks.c.traceback, "").label("traceback")
).outerjoin_from(_letters, _tracebacks, _columns.traceback_key == _tracebacks.c.key)


def _read_page(connection: Connection, query: sa.Select[Any], rows: list[Any]) -> None:
    """Add what *query* gives to *rows*: one row at least, and no more when the items are large."""
    size = sum(len(row["item"]) for row in rows)
    # A server would else send all that there is.
    query = query.execution_options(stream_results=True, max_row_buffer=20)
    with connection.execute(query) as result:
        for row in result.mappings():
            rows.append(row)
            size += len(row["item"])
            if size >= _PAGE_SIZE:
                return


# What the fields of a selection mean.
_CONDITIONS: dict[str, Callable[[Any], sa.ColumnElement[bool]]] = {
    "spider": lambda name: _columns.spider == name,
    "step": lambda path: sa.or_(
        _columns.step == path, _columns.step.startswith(f"{path}/", autoescape=True)
    ),
    "error": lambda part: sa.or_(
        *(it.icontains(part, autoescape=True) for it in (_columns.error_type, _columns.error))
    ),
    "older_than": lambda time: _columns.failed_at < time,
    "newer_than": lambda time: _columns.failed_at > time,
    "ids": _columns.id.in_,
    "items_only": lambda is_on: _columns.stage != REQUEST if is_on else sa.true(),
}


def _where(selection: Selection) -> list[sa.ColumnElement[bool]]:
    given = ((getattr(selection, name), meaning) for name, meaning in _CONDITIONS.items())
    return [meaning(value) for value, meaning in given if value is not None]


def _in_pages(ids: Iterable[str]) -> Iterator[sa.ColumnElement[bool]]:
    """Give conditions that *ids* meet, each with no more of them than a statement can take."""
    rest = iter(ids)
    while page := list(islice(rest, _PAGE)):
        yield _columns.id.in_(page)


def _execute_on_held(
    connection: Connection, statement: sa.Update | sa.Delete, owner: str, ids: Iterable[str]
) -> set[str]:
    """Execute *statement* on those of *ids* that *owner* holds; return these.

    A lease that has ended holds until another owner takes the letter.
    """
    held: set[str] = set()
    for some in _in_pages(ids):
        ours = (some, _columns.leased_by == owner)
        held.update(connection.scalars(sa.select(_columns.id).where(*ours).with_for_update()))
        connection.execute(statement.where(*ours))
    return held


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError
    return value


def _time(value: Any) -> datetime:
    read = datetime.fromisoformat(value)
    return read.replace(tzinfo=read.tzinfo or timezone.utc).astimezone(timezone.utc)


# How each field is read from its column, and what is due there.
_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    **{field.name: (_text, "text") for field in fields(DeadLetter) if field.name != "problem"},
    "attempts": (_number, "a number from 1 on"),
}
for _name in ("first_failed_at", "failed_at", "leased_until"):
    _READERS[_name] = (_time, "a time such as 2030-12-31T23:59:59.000000+00:00")


def _letter_of(row: Mapping[Any, Any]) -> DeadLetter:
    """Read a row, whatever somebody has made of it."""
    read: dict[str, Any] = {}
    problems: list[str] = []
    for name, (reader, due) in _READERS.items():
        value = row[name]
        try:
            read[name] = None if value is None else reader(value)
        except (TypeError, ValueError, OverflowError):
            problems.append(f"{name} is {value!r}, where {due} is due")
            read[name] = str(value) if reader is _text else None
    return DeadLetter(**read, problem="; ".join(problems) or None)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        driver = _DRIVERS[parsed.drivername]
    except (SQLAlchemyError, ValueError, KeyError):
        raise _wrong_url(url) from None
    parsed = parsed.set(drivername=driver)
    if driver != "sqlite":
        if "@" in f"{parsed.host}{parsed.database}":
            raise _wrong_url(url, "; in a password, write @ as %40 and / as %2F")
        return parsed
    name = parsed.database or ":memory:"
    if name.startswith((":", "file:")) or parsed.host or parsed.username:
        raise _wrong_url(url)
    if others := set(parsed.query) - {"timeout"}:
        raise DeadLettersError(
            f"DEFERKIT_DEAD_LETTERS_URL has the option {', '.join(sorted(others))}: the one option "
            f"of a SQLite file is timeout, as in sqlite:///PATH?timeout={_BUSY_SECONDS}."
        )
    # The folder that the process is in may change later.
    return parsed.set(database=str(Path(name).absolute()))


def _wrong_url(url: str, advice: str = "") -> DeadLettersError:
    return DeadLettersError(
        f"DEFERKIT_DEAD_LETTERS_URL = {without_secrets(url)!r}: expected sqlite:///PATH or "
        f"postgresql://USER:PASSWORD@HOST/DATABASE{advice}."
    )


def _shown(url: URL) -> str:
    hidden = [name for name in url.query if re.search(SECRETS, name, re.IGNORECASE)]
    return url.difference_update_query(hidden).render_as_string()


def _sqlite_engine(url: URL) -> Engine:
    # No pool: between two calls no file is kept open, and one that is deleted is made anew.
    connect = {"timeout": float(url.query.get("timeout", _BUSY_SECONDS))}  # type: ignore[arg-type]
    engine = sa.create_engine(
        url, poolclass=sa.NullPool, hide_parameters=True, connect_args=connect
    )

    @sa.event.listens_for(engine, "connect")
    def set_up(connection: Any, _: object) -> None:
        connection.text_factory = text_or_bytes

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options()["deferkit_begin"])

    return engine


def _use_wal(engine: Engine) -> None:
    """Let readers and the writer of a new file not wait for each other."""
    # In the place of BEGIN, because a transaction cannot hold it. Another process may be at it
    # too, and what else is wrong with the file is met again by the transaction that follows.
    with (
        suppress(OperationalError),
        engine.execution_options(deferkit_begin="PRAGMA journal_mode = WAL").begin(),
    ):
        pass


def _postgres_engine(url: URL) -> Engine:
    connect = {"client_encoding": "utf8", "connect_timeout": _CONNECT_SECONDS}
    engine = sa.create_engine(
        url,
        isolation_level="READ COMMITTED",  # which SKIP LOCKED and the locks here count on
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={name: value for name, value in connect.items() if name not in url.query},
    )

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_BUSY_SECONDS}s'")

    return engine


def _server_trouble(error: Exception, cause: BaseException) -> tuple[bool, str]:
    """Return whether *cause*, which SQLAlchemy wraps in *error*, may pass, and what helps."""
    state = getattr(cause, "sqlstate", None)
    if state is None:
        what = " ".join(str(cause).split())
        refused = any(part in what for part in _REFUSALS)
        lost = isinstance(error, (OperationalError, InterfaceError, sa.exc.TimeoutError))
        return lost and not refused, _START
    known = ((passes, fix) for part, passes, fix in _POSTGRES_TROUBLE if state.startswith(part))
    return next(known, (False, f"look at that database, or {MOVE}"))
