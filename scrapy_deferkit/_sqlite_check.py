"""Check whether a SQLite file can hold dead letters, by the standard library alone.

:mod:`.deadletters` needs SQLAlchemy, whose import would make up most of the time to start a crawl.
The error messages of both are made here.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from .exceptions import DeadLettersError, DeadLettersUnavailable

META_TABLE = "deferkit_meta"
VERSION_ROW = "dead letters version"
VERSION = 1
"""The version of the tables: one more than there are migrations."""

MOVE = "set DEFERKIT_DEAD_LETTERS_URL to another place"
MAKE_ROOM = "make room on the disk"

# What SQLite says (Python 3.10 gives no code), whether it may pass, and what helps.
_SQLITE_TROUBLE = (
    ("is locked", True, "end the process that keeps the file locked"),
    ("is full", True, MAKE_ROOM),
    ("disk i/o error", True, "look after the disk and its space"),
    ("readonly", False, f"allow writing to the file and its folder, or {MOVE}"),
    ("unable to open", False, f"allow writing to its folder, or {MOVE}"),
    ("not a database", False, f"move that file away, or {MOVE}"),
    ("malformed", False, f"restore that file, or {MOVE}"),
)

# Without a query, an escape or a special name: SQLAlchemy reads such a URL as it stands.
_PLAIN_URL = re.compile(r"sqlite(?:\+pysqlite)?:///(?!:|file:)([^?%\0]+)")


def sqlite_file(url: str) -> Path | None:
    """Return the file of a plain SQLite URL; ``None`` for all others, whether right or wrong.

    >>> sqlite_file("sqlite:////data/letters.sqlite")
    PosixPath('/data/letters.sqlite')
    >>> sqlite_file("sqlite://"), sqlite_file("postgresql://host/name")
    (None, None)
    """
    found = _PLAIN_URL.fullmatch(url)
    return None if found is None else Path(found[1]).absolute()


def check_sqlite_file(file: Path, url: str) -> None:
    """Raise ``DeadLettersError`` if dead letters cannot be written to *file*.

    Nothing is created. *url* is how the messages call the file. A file that another process has
    locked passes: it is there, and in use.
    """
    try:
        if file.exists():
            _check_database(file, url)
        else:
            _check_folder(file)
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, OSError) or "is locked" not in str(error):
            raise unusable(url, error, *trouble_of(error)) from error


def _check_folder(file: Path) -> None:
    """Check whether *file* can be made, and the folders that it is to be in."""
    existing = next(it for it in file.parents if it.exists())
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    _check_writable(existing, os.W_OK | os.X_OK)
    for name in (*file.parent.relative_to(existing).parts, f"{file.name}-journal"):
        with suppress(FileNotFoundError):
            (existing / name).stat()  # raises if the name is too long


def _check_writable(path: Path, mode: int = os.W_OK) -> None:
    if not os.access(path, mode, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _check_database(file: Path, url: str) -> None:
    # Before it is opened: SQLite leaves its own files beside one that it can only read.
    _check_writable(file)
    _check_writable(file.parent)
    # "rw" opens a file that is there, and creates none.
    name = f"{file.as_uri()}?mode=rw"
    with closing(sqlite3.connect(name, timeout=0, uri=True, isolation_level=None)) as connection:
        connection.text_factory = text_or_bytes
        of_meta = f"SELECT 1 FROM sqlite_master WHERE name = '{META_TABLE}'"
        if connection.execute(of_meta).fetchone():
            of_version = f"SELECT value FROM {META_TABLE} WHERE name = ?"
            for (value,) in connection.execute(of_version, (VERSION_ROW,)):
                version_of(value, VERSION, url)
        # Takes the lock that a write needs, and writes nothing.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def make_private(path: Path) -> Path:
    """Make the file at *path* if it is not there, for its owner alone; SQLite's own follow it."""
    # To close a file lets go of all locks of this process on it, which another crawler may have.
    if not path.exists():
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    return path


def text_or_bytes(raw: bytes) -> str | bytes:
    """Decode what SQLite has as text, if it is."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


# ----------------------------------------------------------------------------------- the messages


def version_of(value: object, newest: int, url: str) -> int:
    """Return the version of the tables.

    Raises ``DeadLettersError`` if it is not a number, or above *newest*.
    """
    if not str(value).isdecimal() or int(str(value)) < 1:
        raise DeadLettersError(
            f"The dead letters at {url} cannot be used: in {META_TABLE}, "
            f"{VERSION_ROW!r} is {value!r}, where a number from 1 on is due. Correct it."
        )
    version = int(str(value))
    if version > newest:
        raise DeadLettersError(
            f"The dead letters at {url} have version {version}, and this "
            f"scrapy-deferkit knows {newest} at most: install a newer scrapy-deferkit."
        )
    return version


def trouble_of(error: BaseException) -> tuple[bool, str]:
    """Return whether *error*, of the system or of SQLite, may pass, and what helps."""
    if isinstance(error, OSError):
        if error.errno == errno.ENAMETOOLONG:
            return False, f"choose a shorter name: {MOVE}"
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return is_full, MAKE_ROOM if is_full else f"allow writing there, or {MOVE}"
    what = str(error).lower()
    known = ((passes, fix) for part, passes, fix in _SQLITE_TROUBLE if part in what)
    return next(known, (False, f"look at that file, or {MOVE}"))


def unusable(url: str, error: BaseException, passes: bool, fix: str) -> DeadLettersError:
    """Return the error for dead letters that cannot be used: what happened, and the *fix*."""
    what = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    kind = DeadLettersUnavailable if passes else DeadLettersError
    return kind(f"The dead letters at {url} cannot be used: {what}. To fix it, {fix}.")
