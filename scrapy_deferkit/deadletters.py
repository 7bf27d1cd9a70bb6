"""The dead letters: items that failed, kept in a table until they are replayed or deleted.

SQLite or PostgreSQL, by SQLAlchemy Core. All of it blocks: callers call it in a thread.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from ._letters import ALL, DeadLetter, Failed, Letter, Selection
from ._sqlite_check import (
    MAKE_ROOM,
    META_TABLE,
    MOVE,
    VERSION_ROW,
    check_sqlite_file,
    os_trouble,
    refuse_newer,
    sqlite_trouble,
    text_or_bytes,
    unusable,
    version_of,
)
from .exceptions import DeadLettersError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["ALL", "DeadLetter", "DeadLetters", "Failed", "Selection"]


# Texts are compared byte by byte, as SQLite does, so that an index serves prefixes and order.
_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
# Times are text as well, all of one length: a time that somebody has garbled is still read.
_TIME = _TEXT

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
    sa.Column("first_failed_at", _TIME, nullable=False),
    sa.Column("failed_at", _TIME, nullable=False),
    sa.Column("leased_by", _TEXT),
    sa.Column("leased_until", _TIME, index=True),
    sa.Column("tried_by", _TEXT),
    sa.Column("tried_at", _TIME),
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
_ORDER = (_columns.failed_at, _columns.id)

_START = "start the server, or correct DEFERKIT_DEAD_LETTERS_URL"

# The beginning of PostgreSQL's SQLSTATE, whether that may pass, and what helps.
_POSTGRES_TROUBLE = (
    ("08", True, _START),
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
        self._is_postgres = parsed.drivername.startswith("postgresql")
        self._file = None if self._is_postgres else Path(parsed.database or "")
        try:
            self._engine = _postgres_engine(parsed) if self._is_postgres else _sqlite_engine(parsed)
        except ImportError as error:
            raise DeadLettersError(
                f"The dead letters at {self.url} need psycopg 3, which cannot be imported "
                f"({error}): pip install 'scrapy-deferkit[postgres]'"
            ) from error
        self._insert: Any = postgresql.insert if self._is_postgres else sqlite.insert
        self._first_taken_at: dict[str, str] = {}

    def check(self) -> None:
        """Raise ``DeadLettersError`` if the table cannot be used; nothing is created for that.

        Connects to a server, and closes the connection again.
        """
        if self._file is not None:
            check_sqlite_file(self._file, self.url)
            return
        try:
            with self._transaction():
                pass
        finally:
            self.close()

    def put(self, failures: Iterable[Failed]) -> None:
        """Put *failures* in, all or none.

        A failure that is in already changes nothing, so a put may be repeated when its outcome is
        not known. A later failure of the same id is one attempt more, with its error, at its time;
        the item stays as it is.
        """
        # Sorted, so that two processes do not wait for each other's rows.
        failures = sorted(failures, key=lambda failure: (failure.id, failure.at))
        if not failures:
            return
        insert = self._insert(_letters)
        attempt = {name: insert.excluded[name] for name in _attempt_of(failures[0])}
        statement = insert.on_conflict_do_update(
            index_elements=[_columns.id],
            set_={**attempt, "attempts": _one_more},
            where=insert.excluded.failed_at > _columns.failed_at,
        )
        with self._transaction(write=True, create=True) as connection:
            if connection is not None:
                self._put_tracebacks(connection, failures)
                connection.execute(statement, [_row_of(failure) for failure in failures])

    def count(self, selection: Selection = ALL) -> int:
        """Count the letters of *selection*."""
        with self._transaction() as connection:
            if connection is None:
                return 0
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
            with self._transaction() as connection:
                rows = [] if connection is None else connection.execute(further).mappings().all()
            yield from map(_letter_of, rows)
            if len(rows) < size:
                return
            last = sa.tuple_(*(sa.literal(rows[-1][column.name], _TEXT) for column in _ORDER))
            further = page.where(sa.tuple_(*_ORDER) > last)

    def get(self, id_or_prefix: str) -> DeadLetter | None:
        """Give the letter whose id this is, or the only one whose id begins so."""
        beginning = _clean(id_or_prefix)
        within = (_columns.id >= beginning, _columns.id < beginning + "\U0010ffff")
        with self._transaction() as connection:
            if connection is None:
                return None
            found = _reading.where(*within).order_by(_columns.id).limit(5)
            letters = [_letter_of(row) for row in connection.execute(found).mappings()]
        if len(letters) > 1 and letters[0].id != beginning:
            ids = ", ".join(letter.id for letter in letters)
            raise DeadLettersError(
                f"{id_or_prefix!r} is the beginning of several ids of the dead letters at "
                f"{self.url}: {ids}{', ...' if len(letters) == 5 else ''}. Give more of the id."
            )
        return letters[0] if letters else None

    def edit(self, letter_id: str, item: str, item_type: str) -> None:
        """Put a corrected *item* in the place of what the letter has; nothing is missing then.

        Replays that are under way may take it again. A letter that one of them holds is left alone.
        """
        this = _columns.id == _clean(letter_id)
        with self._transaction(write=True) as connection:
            found = None
            if connection is not None:
                held = _columns.leased_until > self._now(connection)
                lease = sa.select(_columns.leased_by, _columns.leased_until, held.label("held"))
                found = connection.execute(lease.where(this).with_for_update()).one_or_none()
            if connection is None or found is None:
                raise DeadLettersError(
                    f"There is no dead letter {letter_id} at {self.url}: "
                    "it has been delivered or deleted."
                )
            if found.held:
                raise DeadLettersError(
                    f"The dead letter {letter_id} at {self.url} is being replayed by "
                    f"{found.leased_by}: edit it when that is over, or after {found.leased_until}."
                )
            edited = {"item": _clean(item), "item_type": _clean(item_type), "missing": None}
            edited |= {"tried_by": None, "tried_at": None}
            connection.execute(sa.update(_letters).where(this).values(edited))

    def delete(self, selection: Selection) -> int:
        """Delete the letters of *selection*, held by a replay or not; tell how many they were."""
        with self._transaction(write=True) as connection:
            if connection is None:
                return 0
            deleted = connection.execute(sa.delete(_letters).where(*_where(selection))).rowcount
            self._forget_tracebacks(connection)
            return deleted

    def take(
        self, selection: Selection, limit: int, owner: str, lease_seconds: float
    ) -> list[DeadLetter]:
        """Lease at most *limit* letters of *selection* to *owner*, the oldest failures first.

        None that has failed again since this owner's first take, in its own run or in another, is
        given once more, so runs come to an end. Those whose owner let its lease end come last.
        """
        with self._transaction(write=True) as connection:
            if connection is None:
                return []
            now = self._now(connection)
            begun = self._first_taken_at.setdefault(owner, now)
            others = sa.and_(_columns.tried_by != owner, _columns.tried_at < begun)
            due = (*_where(selection), sa.or_(_columns.tried_by.is_(None), others))
            ended = sa.and_(_columns.leased_by != owner, _columns.leased_until <= now)
            ids: list[str] = []
            # Two queries, each with an index that steps over all that is leased.
            for available in (_columns.leased_by.is_(None), ended):
                wanted = sa.select(_columns.id).where(*due, available).order_by(*_ORDER)
                wanted = wanted.limit(limit - len(ids)).with_for_update(skip_locked=True)
                ids.extend(connection.scalars(wanted))
            lease = {"leased_by": owner, "leased_until": _later(now, lease_seconds)}
            letters: list[DeadLetter] = []
            for some in _in_pages(ids):
                connection.execute(sa.update(_letters).where(some).values(lease))
                rows = connection.execute(_reading.where(some).order_by(*_ORDER)).mappings()
                letters.extend(map(_letter_of, rows))
            return letters

    def renew(self, owner: str, ids: Iterable[str], lease_seconds: float) -> set[str]:
        """Lease *ids* to *owner* for longer; give those that are still its own."""
        with self._transaction(write=True) as connection:
            if connection is None:
                return set()
            until = _later(self._now(connection), lease_seconds)
            ours = _held(connection, owner, ids)
            for some in _in_pages(ours):
                connection.execute(sa.update(_letters).where(some).values(leased_until=until))
            return set(ours)

    def delivered(self, owner: str, ids: Iterable[str]) -> set[str]:
        """Remove *ids*, which *owner* has delivered; give those that were still its own."""
        with self._transaction(write=True) as connection:
            if connection is None:
                return set()
            ours = _held(connection, owner, ids)
            for some in _in_pages(ours):
                connection.execute(sa.delete(_letters).where(some))
            self._forget_tracebacks(connection)
            return set(ours)

    def failed_again(self, owner: str, failures: Iterable[Failed]) -> None:
        """Note the new failures of letters that *owner* holds, and give their leases up.

        The item stays as it is; a letter that is another's by now is left alone.
        """
        failures = sorted(failures, key=lambda failure: failure.id)
        if not failures:
            return
        ours = sa.and_(_columns.id == sa.bindparam("letter"), _columns.leased_by == owner)
        with self._transaction(write=True) as connection:
            if connection is None:
                return
            self._put_tracebacks(connection, failures)
            statement = sa.update(_letters).where(ours)
            statement = statement.values(attempts=_one_more, leased_by=None, leased_until=None)
            statement = statement.values(tried_by=owner, tried_at=self._now(connection))
            connection.execute(
                statement, [{"letter": _clean(each.id), **_attempt_of(each)} for each in failures]
            )

    def release(self, owner: str) -> int:
        """Give up the leases of *owner*, whose run has been stopped; tell how many they were."""
        with self._transaction(write=True) as connection:
            if connection is None:
                return 0
            held = sa.update(_letters).where(_columns.leased_by == owner)
            return connection.execute(held.values(leased_by=None, leased_until=None)).rowcount

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._engine.dispose()

    @contextmanager
    def _transaction(
        self, *, write: bool = False, create: bool = False
    ) -> Iterator[Connection | None]:
        """Give a connection to tables of this version, or ``None`` where there are no tables."""
        begin = "BEGIN IMMEDIATE" if write else "BEGIN"
        try:
            if self._file is not None and not self._file.exists():
                if not create:
                    yield None
                    return
                self._file.parent.mkdir(parents=True, exist_ok=True)
                _use_wal(self._engine)
            with self._engine.execution_options(deferkit_begin=begin).begin() as connection:
                yield connection if self._prepare(connection, create=create) else None
        except (SQLAlchemyError, OSError) as error:
            raise self._explain(error) from error

    def _prepare(self, connection: Connection, *, create: bool) -> bool:
        """Bring the tables to this version; tell whether there are any."""
        newest = 1 + len(_MIGRATIONS)
        version = self._version(connection)
        if version == newest or (version is None and not create):
            return version is not None
        if self._is_postgres:
            # Two processes may be here at once. The second one waits, and looks again.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            version = self._version(connection)
        if version is None:
            _schema.create_all(connection)
        elif version > newest:
            refuse_newer(version, newest, self.url)
        else:
            for migrate in _MIGRATIONS[version - 1 :]:
                migrate(connection)
        put = self._insert(_meta).values(name=VERSION_ROW, value=str(newest))
        put = put.on_conflict_do_update(index_elements=["name"], set_={"value": str(newest)})
        connection.execute(put)
        return True

    def _version(self, connection: Connection) -> int | None:
        if not sa.inspect(connection).has_table(_meta.name):
            return None
        value = connection.scalar(sa.select(_meta.c.value).where(_meta.c.name == VERSION_ROW))
        return None if value is None else version_of(value, self.url)

    def _put_tracebacks(self, connection: Connection, failures: Iterable[Failed]) -> None:
        if self._is_postgres:
            # Whoever clears tracebacks waits until the letters that point to these can be seen.
            locked = sa.func.pg_advisory_xact_lock_shared(_TRACEBACKS_LOCK)
            connection.execute(sa.select(locked))
        texts = {_traceback_key(failure): _clean(failure.traceback) for failure in failures}
        put = self._insert(_tracebacks).on_conflict_do_nothing(index_elements=["key"])
        connection.execute(put, [{"key": key, "traceback": texts[key]} for key in sorted(texts)])

    def _forget_tracebacks(self, connection: Connection) -> None:
        """Delete the tracebacks that no letter points to."""
        used = sa.exists().where(_columns.traceback_key == _tracebacks.c.key)
        if connection.scalar(sa.select(_tracebacks.c.key).where(~used).limit(1)) is None:
            return
        if self._is_postgres:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_TRACEBACKS_LOCK)))
        connection.execute(sa.delete(_tracebacks).where(~used))

    def _now(self, connection: Connection) -> str:
        if not self._is_postgres:
            return _time_text(_host_time())
        return _time_text(connection.scalars(sa.select(sa.func.clock_timestamp())).one())

    def _explain(self, error: SQLAlchemyError | OSError) -> DeadLettersError:
        return unusable(self.url, *_trouble(error, is_postgres=self._is_postgres))


def _host_time() -> datetime:
    return datetime.now(timezone.utc)


def _time_text(time: datetime) -> str:
    return time.astimezone(timezone.utc).isoformat(timespec="microseconds")


def _later(now: str, seconds: float) -> str:
    return _time_text(datetime.fromisoformat(now) + timedelta(seconds=seconds))


def _clean(text: str) -> str:
    """Replace what a database refuses: NUL and lone surrogates."""
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()


def _row_of(failure: Failed) -> dict[str, Any]:
    row = {field.name: getattr(failure, field.name) for field in fields(Letter)}
    del row["traceback"]
    row = {name: value if value is None else _clean(value) for name, value in row.items()}
    attempt = _attempt_of(failure)
    return {**row, **attempt, "attempts": 1, "first_failed_at": attempt["failed_at"]}


def _attempt_of(failure: Failed) -> dict[str, Any]:
    """Give the columns that one more attempt changes."""
    return {
        "stage": _clean(failure.stage),
        "step": failure.step if failure.step is None else _clean(failure.step),
        "error_type": _clean(failure.error_type),
        "error": _clean(failure.error),
        "traceback_key": _traceback_key(failure),
        "failed_at": _time_text(failure.at),
    }


# SQLite takes text that is no number for 0, so an edited row is a number again.
_one_more = sa.func.coalesce(_columns.attempts, 0) + 1

_FRAME = re.compile(r'^\s*File "(.*)", line (\d+), in (.*)$', re.MULTILINE)


def _traceback_key(failure: Failed) -> str:
    """Give the same key for one error from one place, whatever its message says."""
    frames = _FRAME.findall(failure.traceback) or failure.traceback
    return hashlib.sha256(_clean(f"{failure.error_type} {frames}").encode()).hexdigest()


_reading = sa.select(_letters, _tracebacks.c.traceback).select_from(
    _letters.outerjoin(_tracebacks, _columns.traceback_key == _tracebacks.c.key)
)


def _where(selection: Selection) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if selection.spider is not None:
        conditions.append(_columns.spider == _clean(selection.spider))
    if selection.step is not None:
        step = _clean(selection.step)
        within = _columns.step.startswith(f"{step}/", autoescape=True)
        conditions.append(sa.or_(_columns.step == step, within))
    if selection.error is not None:
        part = _clean(selection.error)
        columns = (_columns.error_type, _columns.error)
        conditions.append(sa.or_(*(each.icontains(part, autoescape=True) for each in columns)))
    if selection.older_than is not None:
        conditions.append(_columns.failed_at < _time_text(selection.older_than))
    if selection.newer_than is not None:
        conditions.append(_columns.failed_at > _time_text(selection.newer_than))
    if selection.ids is not None:
        conditions.append(_columns.id.in_([_clean(each) for each in selection.ids]))
    return conditions


def _in_pages(ids: Iterable[str]) -> Iterator[sa.ColumnElement[bool]]:
    """Give conditions that *ids* meet, each with no more of them than a statement can take."""
    rest = iter(ids)
    while page := list(islice(rest, _PAGE)):
        yield _columns.id.in_(page)


def _held(connection: Connection, owner: str, ids: Iterable[str]) -> list[str]:
    """Give those of *ids* that *owner* holds, and lock them.

    A lease that has ended holds until another owner takes the letter.
    """
    held: list[str] = []
    for some in _in_pages(ids):
        ours = sa.select(_columns.id).where(some, _columns.leased_by == owner).with_for_update()
        held.extend(connection.scalars(ours))
    return held


def _letter_of(row: Mapping[Any, Any]) -> DeadLetter:
    """Read a row, whatever somebody has made of it."""
    problems: list[str] = []

    def complain(name: str, due: str) -> None:
        problems.append(f"{name} is {row[name]!r}, where {due} is due")

    def text(name: str) -> str | None:
        value = row[name]
        if value is None or isinstance(value, str):
            return value
        complain(name, "text")
        return str(value)

    def time(name: str) -> datetime | None:
        value = row[name]
        if value is None:
            return None
        try:
            read = datetime.fromisoformat(value)
            return read.replace(tzinfo=read.tzinfo or timezone.utc).astimezone(timezone.utc)
        except (TypeError, ValueError, OverflowError):
            complain(name, "a time such as 2030-12-31T23:59:59.000000+00:00")
            return None

    attempts = row["attempts"]
    if not isinstance(attempts, int) or attempts < 1:
        complain("attempts", "a number from 1 on")
        attempts = None
    return DeadLetter(
        **{field.name: text(field.name) or "" for field in fields(Letter)}
        | {name: text(name) for name in ("missing", "page_url", "step")},  # type: ignore[arg-type]
        attempts=attempts,
        first_failed_at=time("first_failed_at"),
        failed_at=time("failed_at"),
        leased_by=text("leased_by"),
        leased_until=time("leased_until"),
        problem="; ".join(problems) or None,
    )


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        driver = _DRIVERS[parsed.drivername]
    except (SQLAlchemyError, ValueError, KeyError):
        raise _wrong_url(re.sub("//.*@", "//***@", url)) from None
    parsed = parsed.set(drivername=driver)
    if driver != "sqlite":
        return parsed
    if not parsed.database or parsed.database.startswith((":", "file:")):
        raise _wrong_url(url)
    # The folder that the process is in may change later.
    return parsed.set(database=str(Path(parsed.database).absolute()))


def _wrong_url(shown: str) -> DeadLettersError:
    return DeadLettersError(
        f"DEFERKIT_DEAD_LETTERS_URL is {shown!r}, where sqlite:///PATH or "
        "postgresql://USER:PASSWORD@HOST/DATABASE is due."
    )


def _shown(url: URL) -> str:
    return url.difference_update_query(["password", "sslpassword"]).render_as_string()


def _sqlite_engine(url: URL) -> Engine:
    # No pool: between two calls no file is kept open, and one that is deleted is made anew.
    engine = sa.create_engine(
        url, poolclass=sa.NullPool, hide_parameters=True, connect_args={"timeout": _BUSY_SECONDS}
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


def _trouble(error: SQLAlchemyError | OSError, *, is_postgres: bool) -> tuple[str, bool, str]:
    """Tell what went wrong, whether that may pass, and what to do."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, OSError):
        return os_trouble(cause)
    if not is_postgres:
        return sqlite_trouble(cause)
    what = " ".join(str(cause).split()) or type(cause).__name__
    state = getattr(cause, "sqlstate", None)
    if state is None:
        refused = any(part in what for part in _REFUSALS)
        lost = isinstance(error, (OperationalError, InterfaceError, sa.exc.TimeoutError))
        return what, lost and not refused, _START
    for beginning, passes, fix in _POSTGRES_TROUBLE:
        if state.startswith(beginning):
            return what, passes, fix
    return what, False, f"look at that database, or {MOVE}"
