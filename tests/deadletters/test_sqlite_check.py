"""The check of a SQLite file says what the store would say, and makes and changes nothing."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from scrapy_deferkit import deadletters
from scrapy_deferkit._sqlite_check import VERSION, check_sqlite_file, sqlite_file, unusable
from scrapy_deferkit.deadletters import DeadLetters
from scrapy_deferkit.exceptions import DeadLettersError, DeadLettersUnavailable

from .failures import failed, run_sql
from .test_trouble import as_nobody

pytestmark = pytest.mark.no_runtime


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "dead.db"


@pytest.fixture(autouse=True)
def nothing_is_made(tmp_path: Path) -> Iterator[None]:
    yield
    assert not [path.name for path in tmp_path.rglob("*-*")]  # such as dead.db-wal


def said(file: Path) -> str:
    """Return what the check says, which is an error that does not pass."""
    before = {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()}
    with pytest.raises(DeadLettersError) as raised:
        check_sqlite_file(file, f"sqlite:///{file}")
    assert not isinstance(raised.value, DeadLettersUnavailable)
    after = {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()}
    assert before == after
    return str(raised.value)


def said_by_the_store(file: Path) -> str:
    with pytest.raises(DeadLettersError) as raised:
        DeadLetters(f"sqlite:///{file}").put([failed("a")])
    return str(raised.value)


def passes(file: Path) -> None:
    check_sqlite_file(file, f"sqlite:///{file}")


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:////data/dead.db", Path("/data/dead.db")),
        ("sqlite+pysqlite:////data/my letters.db", Path("/data/my letters.db")),
        ("sqlite:///dead.db", Path.cwd() / "dead.db"),
        ("sqlite://", None),
        ("sqlite:///", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///file:dead.db", None),
        ("sqlite:///dead.db?timeout=5", None),
        ("sqlite:///dead%20letters.db", None),  # means another file from SQLAlchemy 2.1 on
        ("sqlite://host/dead.db", None),
        ("postgresql://host/dead.db", None),
    ],
)
def test_a_plain_url_is_a_file(url: str, file: Path | None) -> None:
    assert sqlite_file(url) == file
    if file is not None:
        assert DeadLetters(url)._file == file


def test_the_version_that_is_known_is_that_of_the_tables() -> None:
    assert 1 + len(deadletters._MIGRATIONS) == VERSION


def test_what_is_not_there_and_can_be_made_passes_and_is_not_made(tmp_path: Path) -> None:
    passes(tmp_path / "dead.db")
    passes(tmp_path / "deep/deeper/dead.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_letters_passes_and_stays_as_it_is(file: Path) -> None:
    DeadLetters(f"sqlite:///{file}").put([failed("a")])
    before = file.read_bytes()
    passes(file)
    assert file.read_bytes() == before


def test_a_fix_follows_one_full_stop() -> None:
    error = unusable("sqlite:///x", OSError("no route to it."), passes=False, fix="go there")
    assert str(error) == (
        "The dead letters at sqlite:///x cannot be used: no route to it. To fix it, go there."
    )


def test_a_file_of_others_passes_and_so_does_an_empty_one(file: Path) -> None:
    file.touch()
    passes(file)
    assert file.read_bytes() == b""
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE books (title)")
    passes(file)


def test_a_file_that_another_process_writes_passes(file: Path) -> None:
    DeadLetters(f"sqlite:///{file}").put([failed("a")])
    for lock in ("IMMEDIATE", "EXCLUSIVE"):
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute(f"BEGIN {lock}")
            passes(file)


def test_a_file_that_is_no_database_is_told_as_the_store_tells_it(file: Path) -> None:
    file.write_text("my notes " * 100)
    assert "not a database. To fix it, move that file away" in said(file)
    assert said(file) == said_by_the_store(file)


def test_a_folder_in_its_place_is_told_as_the_store_tells_it(file: Path) -> None:
    file.mkdir()
    assert "unable to open database file" in said(file)
    assert said(file) == said_by_the_store(file)


def test_a_file_in_the_place_of_a_folder_is_told(file: Path) -> None:
    file.touch()
    assert f"Not a directory: '{file}'. To fix it, allow writing there" in said(file / "dead.db")
    assert f"Not a directory: '{file}'" in said(file / "deep/dead.db")


def test_a_newer_version_is_told_as_the_store_tells_it(file: Path) -> None:
    DeadLetters(f"sqlite:///{file}").put([failed("a")])
    run_sql(f"sqlite:///{file}", "UPDATE deferkit_meta SET value = '9'")
    assert "have version 9" in said(file)
    assert said(file) == said_by_the_store(file)


@pytest.mark.parametrize("value", ["'new'", "'0'", "CAST(x'ff' AS TEXT)"])
def test_a_version_that_is_none_is_told_as_the_store_tells_it(file: Path, value: str) -> None:
    DeadLetters(f"sqlite:///{file}").put([failed("a")])
    run_sql(f"sqlite:///{file}", f"UPDATE deferkit_meta SET value = {value}")
    assert "where a number from 1 on is due" in said(file)
    assert said(file) == said_by_the_store(file)


def test_tables_that_lost_their_version_pass(file: Path) -> None:
    DeadLetters(f"sqlite:///{file}").put([failed("a")])
    run_sql(f"sqlite:///{file}", "DELETE FROM deferkit_meta")
    passes(file)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights are POSIX's here")
def test_what_must_not_be_written_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    file, other = folder / "dead.db", folder / "other.db"
    DeadLetters(f"sqlite:///{file}").put([failed("a")])
    with closing(sqlite3.connect(other)) as writer:  # which has its journal in the folder
        writer.execute("CREATE TABLE books (title)")
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    folder.chmod(0o777)
    file.chmod(0o444)
    with as_nobody():
        assert f"denied: '{file}'. To fix it, allow writing there, or set" in said(file)
    file.chmod(0o666)
    other.chmod(0o666)
    folder.chmod(0o555)
    with as_nobody():
        for each in (file, other, folder / "new.db", folder / "deep/new.db"):
            assert f"denied: '{folder}'. To fix it, allow writing there" in said(each)
    folder.chmod(0o755)
