"""The tables have a version, which is brought forward and never misread."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from scrapy_deferkit import deadletters
from scrapy_deferkit.deadletters import ALL, DeadLetters, DeadLettersError

from .failures import failed, run_sql

pytestmark = pytest.mark.no_runtime

VERSION = "SELECT value FROM deferkit_meta WHERE name = 'dead letters version'"


def add_note(connection: sa.Connection) -> None:
    connection.execute(sa.text("ALTER TABLE deferkit_dead_letters ADD COLUMN note TEXT"))


def test_new_tables_have_the_newest_version(letters: DeadLetters, url: str) -> None:
    letters.put([failed("a")])
    assert run_sql(url, VERSION) == [("1",)]


@pytest.mark.parametrize("first_use", ["count", "put", "take"])
def test_older_tables_are_migrated_by_whoever_uses_them_first(
    letters: DeadLetters, url: str, first_use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.put([failed("a")])
    monkeypatch.setattr(deadletters, "_MIGRATIONS", (add_note, lambda _: None))
    uses = {
        "count": letters.count,
        "put": lambda: letters.put([failed("b")]),
        "take": lambda: letters.take(ALL, 1, "me", 60),
    }
    uses[first_use]()
    assert run_sql(url, VERSION) == [("3",)]
    assert run_sql(url, "SELECT note FROM deferkit_dead_letters WHERE id = 'a'") == [(None,)]
    monkeypatch.setattr(deadletters, "_MIGRATIONS", (add_note, lambda _: None, lambda _: None))
    assert letters.get("a") is not None
    assert run_sql(url, VERSION) == [("4",)]


def test_a_migration_that_fails_leaves_the_tables_as_they_were(
    letters: DeadLetters, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: sa.Connection) -> None:
        raise ZeroDivisionError

    letters.put([failed("a")])
    monkeypatch.setattr(deadletters, "_MIGRATIONS", (add_note, fail))
    with pytest.raises(ZeroDivisionError):
        letters.put([failed("b")])
    assert run_sql(url, VERSION) == [("1",)]
    monkeypatch.setattr(deadletters, "_MIGRATIONS", (add_note,))
    assert letters.count() == 1


def test_a_newer_version_is_refused(letters: DeadLetters, url: str) -> None:
    letters.put([failed("a")])
    run_sql(url, "UPDATE deferkit_meta SET value = '9'")
    for use in (letters.count, lambda: letters.put([failed("b")])):
        with pytest.raises(DeadLettersError, match="have version 9, .* knows 1 at most: install"):
            use()


def test_a_version_that_is_none_is_refused(letters: DeadLetters, url: str) -> None:
    letters.put([failed("a")])
    run_sql(url, "UPDATE deferkit_meta SET value = 'new'")
    with pytest.raises(DeadLettersError, match=re.escape("version' is 'new', where a number")):
        letters.count()


def test_tables_that_lost_their_version_get_it_back(letters: DeadLetters, url: str) -> None:
    letters.put([failed("a")])
    run_sql(url, "DELETE FROM deferkit_meta")
    letters.put([failed("b")])
    assert run_sql(url, VERSION) == [("1",)]
    assert letters.count() == 2


def test_all_who_create_the_tables_at_once_put_their_letters_in(url: str) -> None:
    stores = [DeadLetters(url) for _ in range(8)]
    begin = threading.Barrier(len(stores))

    def put(number: int) -> None:
        begin.wait()
        stores[number].put([failed(str(number))])

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(put, range(len(stores))))
    assert stores[0].count() == len(stores)
    for store in stores:
        store.close()


def test_all_who_migrate_the_tables_at_once_migrate_them_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [DeadLetters(url) for _ in range(4)]
    stores[0].put([failed("a")])
    monkeypatch.setattr(deadletters, "_MIGRATIONS", (add_note,))
    begin = threading.Barrier(len(stores))

    def put(number: int) -> None:
        begin.wait()
        stores[number].put([failed(str(number))])

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(put, range(len(stores))))
    assert stores[0].count() == len(stores) + 1
    for store in stores:
        store.close()
