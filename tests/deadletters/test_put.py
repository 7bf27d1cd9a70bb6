"""What fails is put in once, whatever happens in between."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from scrapy_deferkit.deadletters import ALL, DeadLetters, DeadLettersError, Selection

from .failures import EPOCH, TRACEBACK, at, failed, run_sql

pytestmark = pytest.mark.no_runtime


def test_a_letter_comes_back_as_it_was_put_in(letters: DeadLetters) -> None:
    failure = failed("a", 5, missing="cover: a lock has no form", page_url=None, step=None)
    letters.put([failure])
    letter = letters.get("a")
    assert letter is not None
    common = ["id", "spider", "spider_args", "stage", "item", "item_type", "missing", "page_url"]
    for name in [*common, "step", "error_type", "error", "traceback"]:
        assert getattr(letter, name) == getattr(failure, name), name
    assert (letter.attempts, letter.first_failed_at, letter.failed_at) == (1, at(5), at(5))
    assert (letter.leased_by, letter.leased_until, letter.problem) == (None, None, None)


def test_a_failure_that_is_in_already_changes_nothing(letters: DeadLetters) -> None:
    letters.put([failed("a"), failed("b")])
    before = list(letters.select())
    letters.put([failed("b"), failed("a"), failed("a")])
    assert list(letters.select()) == before


def test_a_later_failure_of_one_id_is_one_attempt_more_and_the_item_stays(
    letters: DeadLetters,
) -> None:
    letters.put([failed("a")])
    letters.put([failed("a", 60, item="other", error_type="x.Y", error="new", step="s")])
    letter = letters.get("a")
    assert letter is not None
    assert (letter.attempts, letter.first_failed_at, letter.failed_at) == (2, EPOCH, at(60))
    assert (letter.error_type, letter.error, letter.step) == ("x.Y", "new", "s")
    assert letter.item == failed("a").item


def test_an_earlier_failure_that_comes_late_changes_nothing(letters: DeadLetters) -> None:
    letters.put([failed("a", 60)])
    letters.put([failed("a", 0, error="old")])
    letter = letters.get("a")
    assert letter is not None
    assert (letter.attempts, letter.error) == (1, failed("a").error)


def test_all_are_put_in_or_none(letters: DeadLetters, url: str) -> None:
    letters.put([failed("first")])
    broken = failed("c")
    object.__setattr__(broken, "item", None)
    with pytest.raises(Exception):  # noqa: B017 - what a caller must never do
        letters.put([failed("b"), broken])
    assert [letter.id for letter in letters.select()] == ["first"]


def test_nul_and_lone_surrogates_are_written_out(letters: DeadLetters) -> None:
    letters.put([failed("a", error="x\0y\udc80", traceback="t\0\udc80", item='{"x": "\ud800"}')])
    letter = letters.get("a")
    assert letter is not None
    assert letter.error == "x\\x00y\\udc80"
    assert letter.traceback == "t\\x00\\udc80"
    assert letter.item == '{"x": "\\ud800"}'
    assert letters.count(Selection(error="y\udc80")) == 1


def test_a_traceback_is_kept_once_for_errors_that_differ_in_their_message(
    letters: DeadLetters, url: str
) -> None:
    other = TRACEBACK.replace("ask us", "n/a")
    elsewhere = TRACEBACK.replace("line 7", "line 8")
    letters.put([failed("a"), failed("b", traceback=other, error="n/a")])
    letters.put([failed("c", traceback=elsewhere), failed("d", error_type="builtins.TypeError")])
    letters.put([failed("e", traceback="no frames"), failed("f", traceback="none either")])
    assert run_sql(url, "SELECT count(*) FROM deferkit_tracebacks") == [(5,)]
    assert [letter.error for letter in letters.select(Selection(ids=["b"]))] == ["n/a"]


@pytest.mark.parametrize("by", ["delete", "delivered"])
def test_tracebacks_go_with_the_last_letter_that_points_to_them(
    letters: DeadLetters, url: str, by: str
) -> None:
    def remove(letter: str) -> None:
        if by == "delete":
            assert letters.delete(Selection(ids=[letter])) == 1
        else:
            letters.take(Selection(ids=[letter]), 1, "me", 60)
            assert letters.delivered("me", [letter]) == {letter}

    def kept() -> int:
        return run_sql(url, "SELECT count(*) FROM deferkit_tracebacks")[0][0]

    letters.put([failed("a"), failed("b"), failed("c", error_type="x.Y")])
    assert kept() == 2
    remove("a")
    assert kept() == 2
    remove("b")
    assert kept() == 1
    remove("c")
    assert kept() == 0


def test_reading_creates_no_file_and_no_folder(sqlite_url: str, tmp_path: Path) -> None:
    letters = DeadLetters(sqlite_url)
    assert letters.count() == 0
    assert list(letters.select()) == []
    assert letters.get("a") is None
    assert letters.take(ALL, 10, "me", 60) == []
    assert letters.renew("me", ["a"], 60) == letters.delivered("me", ["a"]) == set()
    assert letters.release("me") == letters.delete(ALL) == 0
    letters.failed_again("me", [failed("a")])
    letters.put([])
    with pytest.raises(DeadLettersError, match="There is no dead letter a"):
        letters.edit("a", "{}", "builtins.dict")
    assert list(tmp_path.iterdir()) == []


def test_reading_creates_no_tables(letters: DeadLetters, url: str) -> None:
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir()
        run_sql(url, "CREATE TABLE books (title TEXT)")
    assert letters.count() == 0
    assert list(letters.select()) == letters.take(ALL, 10, "me", 60) == []
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
    if url.startswith("sqlite"):
        tables = "SELECT name FROM sqlite_master WHERE name <> 'books'"
    assert run_sql(url, tables) == []


def test_one_file_is_all_there_is_between_calls(sqlite_url: str, tmp_path: Path) -> None:
    letters = DeadLetters(sqlite_url)
    letters.put([failed("a")])
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["dead.db"]
    assert run_sql(sqlite_url, "PRAGMA journal_mode") == [("wal",)]


def test_a_file_that_is_deleted_meanwhile_is_made_anew(sqlite_url: str, tmp_path: Path) -> None:
    letters = DeadLetters(sqlite_url)
    letters.put([failed("a")])
    (tmp_path / "data/dead.db").unlink()
    assert letters.count() == 0
    letters.put([failed("b")])
    assert [letter.id for letter in letters.select()] == ["b"]


def test_a_relative_path_means_the_folder_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    letters = DeadLetters("sqlite:///dead.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    letters.put([failed("a")])
    assert (tmp_path / "dead.db").exists()


def test_the_tables_live_beside_others(letters: DeadLetters, url: str, tmp_path: Path) -> None:
    if url.startswith("sqlite"):
        (tmp_path / "data").mkdir()
    run_sql(url, "CREATE TABLE books (title TEXT)")
    letters.put([failed("a")])
    assert letters.count() == 1
    assert run_sql(url, "SELECT count(*) FROM books") == [(0,)]


def test_a_traceback_that_is_being_pointed_to_is_not_cleared(postgres_url: str) -> None:
    letters, other = DeadLetters(postgres_url), DeadLetters(postgres_url)
    letters.put([failed("a")])
    letters.take(ALL, 1, "me", 60)
    clearing: Future[set[str]] = Future()

    def deliver() -> None:
        clearing.set_result(other.delivered("me", ["a"]))

    thread = threading.Thread(target=deliver)

    def begin_to_clear(_c: Any, _cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO deferkit_dead_letters") and not thread.ident:
            thread.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while not clearing.done() and run_sql(postgres_url, waiting) == [(0,)]:
                pass

    sa.event.listen(Engine, "before_cursor_execute", begin_to_clear)
    try:
        letters.put([failed("b")])
    finally:
        sa.event.remove(Engine, "before_cursor_execute", begin_to_clear)
    assert clearing.result(30) == {"a"}
    thread.join()
    assert [(each.id, each.traceback) for each in letters.select()] == [("b", TRACEBACK)]
    letters.close()
    other.close()


def test_a_failure_that_replaces_another_of_its_id_takes_its_place(letters: DeadLetters) -> None:
    letters.put([failed("a"), failed("b")])
    letters.take(Selection(ids=["a"]), 1, "me", 60)
    later = failed("a", 60, item='{"title": "new"}', page_url="u", missing="m", error="e")
    letters.put([replace(later, replaces=True), failed("b", 60, item="other")])
    letters.put([replace(later, replaces=True)])  # is the same one
    letter = letters.get("a")
    assert letter is not None
    assert (letter.item, letter.page_url, letter.missing) == ('{"title": "new"}', "u", "m")
    assert (letter.attempts, letter.first_failed_at, letter.failed_at) == (2, EPOCH, at(60))
    assert letters.delivered("me", ["a"]) == set()  # what it has delivered was the earlier one
    assert [it.id for it in letters.take(ALL, 10, "other", 60)] == ["a", "b"]
    assert letters.get("b").item == failed("b").item  # type: ignore[union-attr]


def test_what_replaces_a_letter_does_so_though_the_clock_was_set_back(
    letters: DeadLetters,
) -> None:
    letters.put([failed("a", 60)])
    letters.put([failed("a", 30, replaces=True, item="{}")])
    letter = letters.get("a")
    assert letter is not None
    assert (letter.item, letter.failed_at) == ("{}", at(30))
