"""What goes wrong says where, what and the fix, and whether trying again may help."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from scrapy_deferkit import deadletters
from scrapy_deferkit.deadletters import ALL, DeadLetters
from scrapy_deferkit.exceptions import DeadLettersError, DeadLettersUnavailable

from ..postgres import Postgres
from .failures import database, failed, run_sql

pytestmark = pytest.mark.no_runtime


@contextmanager
def lasting_trouble(what: str) -> Iterator[None]:
    with pytest.raises(DeadLettersError, match=what) as raised:
        yield
    assert not isinstance(raised.value, DeadLettersUnavailable)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "dead.db",
        "mysql://me:secret@host/name",
        "postgresql+psycopg2://me:secret@host/name",
        "postgresql://me:secret@host:port/name",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:dead.db?mode=ro&uri=true",
    ],
)
def test_a_url_that_is_not_one_of_ours_is_refused(url: str) -> None:
    with lasting_trouble("DEFERKIT_DEAD_LETTERS_URL = '.*': expected sqlite:///PATH or") as _:
        DeadLetters(url)


def test_a_refused_url_keeps_its_password() -> None:
    with pytest.raises(DeadLettersError) as raised:
        DeadLetters("mysql://me:sec/r@et@host/name")
    assert "'mysql://***@host/name'" in str(raised.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_means_psycopg_3_and_a_driver_that_is_missing_names_the_extra(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with lasting_trouble(
        r"\*\*\*@host.* need psycopg 3.*pip install 'scrapy-deferkit\[postgres\]'"
    ):
        DeadLetters(f"{scheme}://me:secret@host/name")


@pytest.mark.parametrize("url", ["me:secret@127.0.0.1:1/x", "me@127.0.0.1:1/x?password=secret"])
def test_a_server_that_is_down_may_come_up_again(url: str) -> None:
    pytest.importorskip("psycopg")
    letters = DeadLetters(f"postgresql://{url}")
    for use in (letters.count, lambda: letters.put([failed("a")])):
        with pytest.raises(DeadLettersUnavailable, match="refused.*start the server") as raised:
            use()
        assert "127.0.0.1:1/x" in str(raised.value)
        assert "secret" not in str(raised.value)


def test_a_server_that_was_restarted_is_met_with_a_new_connection(
    postgres: Postgres, postgres_url: str
) -> None:
    letters = DeadLetters(postgres_url)
    letters.put([failed("a")])
    postgres.restart()
    letters.put([failed("b")])
    postgres.restart()
    assert letters.count() == 2
    postgres.stop()
    try:
        with pytest.raises(DeadLettersUnavailable):
            letters.count()
    finally:
        postgres.start()
    assert letters.count() == 2
    letters.close()


def test_a_connection_that_is_lost_half_way_may_be_made_again(
    postgres: Postgres, postgres_url: str
) -> None:
    letters = DeadLetters(postgres_url)
    letters.put([failed("a")])

    def crash(*_: object) -> None:
        sa.event.remove(Engine, "before_cursor_execute", watch)
        postgres.restart()

    def watch(_c: Any, _cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO deferkit_dead_letters"):
            crash()

    sa.event.listen(Engine, "before_cursor_execute", watch)
    with pytest.raises(DeadLettersUnavailable):
        letters.put([failed("b"), failed("c")])
    assert letters.count() == 1
    letters.put([failed("b"), failed("c")])
    assert letters.count() == 3
    letters.close()


def test_a_database_that_does_not_exist_does_not_come_by_itself(postgres_url: str) -> None:
    letters = DeadLetters(postgres_url.replace("/postgres?", "/missing?"))
    with lasting_trouble("database .* does not exist.*correct DEFERKIT_DEAD_LETTERS_URL"):
        letters.count()


def test_a_user_without_the_right_is_told_so(postgres_url: str) -> None:
    schema = postgres_url.rpartition("%3D")[2]
    run_sql(postgres_url, f"CREATE ROLE guest LOGIN; GRANT USAGE ON SCHEMA {schema} TO guest")
    letters = DeadLetters(postgres_url.replace("deferkit@", "guest@"))
    assert letters.count() == 0
    with lasting_trouble("permission denied for schema test_.*grant"):
        letters.put([failed("a")])
    letters.close()


def test_a_server_that_may_only_be_read_may_be_written_by_another_connection(
    postgres_url: str,
) -> None:
    schema = postgres_url.rpartition("%3D")[2]
    run_sql(postgres_url, f"CREATE ROLE moved LOGIN; GRANT ALL ON SCHEMA {schema} TO moved")
    run_sql(postgres_url, "ALTER ROLE moved SET default_transaction_read_only = on")
    letters = DeadLetters(postgres_url.replace("deferkit@", "moved@"))
    assert letters.count() == 0
    with pytest.raises(DeadLettersUnavailable, match="read-only.*server that may be written"):
        letters.put([failed("a")])
    # Sessions that have begun stay as they are, as those with a server that is now the standby.
    run_sql(postgres_url, "ALTER ROLE moved RESET default_transaction_read_only")
    letters.put([failed("a")])
    assert letters.count() == 1
    letters.close()


def test_a_table_that_another_session_locks_may_be_free_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "_BUSY_SECONDS", 0.05)
    letters = DeadLetters(postgres_url)
    letters.put([failed("a")])
    with database(postgres_url) as other:
        other.execute(sa.text("LOCK TABLE deferkit_dead_letters"))
        with pytest.raises(DeadLettersUnavailable, match="lock timeout.*end the session"):
            letters.count()
    assert letters.count() == 1
    letters.close()


def test_a_file_that_another_process_locks_may_be_free_again(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "_BUSY_SECONDS", 0.05)
    letters = DeadLetters(sqlite_url)
    letters.put([failed("a")])
    with closing(sqlite3.connect(tmp_path / "data/dead.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        for use in (lambda: letters.put([failed("b")]), lambda: letters.take(ALL, 1, "me", 60)):
            with pytest.raises(DeadLettersUnavailable, match="dead.db.*is locked.*end the process"):
                use()
        assert letters.count() == 1  # readers do not wait
    letters.put([failed("b")])
    assert letters.count() == 2


def test_a_full_disk_may_have_room_again(sqlite_url: str) -> None:
    letters = DeadLetters(sqlite_url)
    letters.put([failed("a")])

    def fill(connection: sqlite3.Connection, _: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    sa.event.listen(Engine, "connect", fill)
    try:
        with pytest.raises(DeadLettersUnavailable, match="disk is full.*make room"):
            letters.put([failed(str(number)) for number in range(1000)])
    finally:
        sa.event.remove(Engine, "connect", fill)
    assert letters.count() == 1
    letters.put([failed("b")])
    assert letters.count() == 2


def test_a_file_that_is_no_database_is_left_alone(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "data/dead.db"
    path.parent.mkdir()
    path.write_text("my notes " * 100)
    letters = DeadLetters(sqlite_url)
    for use in (letters.count, lambda: letters.put([failed("a")])):
        with lasting_trouble("dead.db.*not a database.*move that file away"):
            use()
    assert path.read_text() == "my notes " * 100


def test_a_folder_in_the_place_of_the_file_is_said_to_be_there(
    sqlite_url: str, tmp_path: Path
) -> None:
    (tmp_path / "data/dead.db").mkdir(parents=True)
    letters = DeadLetters(sqlite_url)
    for use in (letters.count, lambda: letters.put([failed("a")])):
        with lasting_trouble("unable to open"):
            use()


def test_a_file_in_the_place_of_the_folder_is_said_to_be_there(
    sqlite_url: str, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("")
    with lasting_trouble("File exists.*allow writing there"):
        DeadLetters(sqlite_url).put([failed("a")])


@contextmanager
def as_nobody() -> Iterator[None]:
    """Have no right to write what is read-only: root writes it all the same."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights are POSIX's here")
def test_what_must_not_be_written_says_so_and_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    letters = DeadLetters(f"sqlite:///{folder}/dead.db")
    letters.put([failed("a")])
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(0o755)
    (folder / "dead.db").chmod(0o444)
    folder.chmod(0o555)
    uses: list[Callable[[], Any]] = [
        lambda: letters.put([failed("b")]),
        lambda: letters.delete(ALL),
        lambda: DeadLetters(f"sqlite:///{folder}/deeper/dead.db").put([failed("b")]),
        lambda: DeadLetters(f"sqlite:///{folder}/other.db").put([failed("b")]),
    ]
    with as_nobody():
        for use in uses:
            with lasting_trouble("readonly|unable to open|Permission denied.*allow writing"):
                use()
    folder.chmod(0o755)
    assert letters.count() == 1


def test_a_table_that_somebody_dropped_is_said_to_be_missing(
    letters: DeadLetters, url: str
) -> None:
    letters.put([failed("a")])
    run_sql(url, "DROP TABLE deferkit_dead_letters")
    with lasting_trouble("deferkit_dead_letters.*look at that"):
        letters.count()


@pytest.mark.crawl
def test_the_package_is_imported_without_what_is_heavy() -> None:
    heavy = ["sqlalchemy", "tenacity", "rich", "itemadapter"]
    code = f"import sys, scrapy_deferkit; sys.exit(any(map(sys.modules.get, {heavy})))"
    assert subprocess.run([sys.executable, "-I", "-c", code], check=False).returncode == 0
