"""Letters are listed, found, corrected and deleted, whatever somebody has made of their rows."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import pytest

from scrapy_deferkit import deadletters
from scrapy_deferkit.deadletters import ALL, DeadLetter, DeadLetters, DeadLettersError, Selection

from .failures import at, failed, run_sql

pytestmark = pytest.mark.no_runtime


def ids(letters: DeadLetters, selection: Selection = ALL) -> list[str]:
    return [letter.id for letter in letters.select(selection)]


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (ALL, ["c", "b", "a"]),
        (Selection(spider="books"), ["b", "a"]),
        (Selection(step="shop"), ["b", "a"]),
        (Selection(step="shop/price"), ["b"]),
        (Selection(step="shop/p"), []),
        (Selection(step="%"), []),
        (Selection(error="VALUEerror"), ["c", "b"]),
        (Selection(error="100%"), ["a"]),
        (Selection(error="1__%"), []),
        (Selection(older_than=at(20)), ["c"]),
        (Selection(older_than=at(20).astimezone(timezone(timedelta(hours=9)))), ["c"]),
        (Selection(newer_than=at(20)), ["a"]),
        (Selection(ids=["a", "c", "x"]), ["c", "a"]),
        (Selection(ids=[]), []),
        (Selection(spider="books", error="value", ids=["a", "b"]), ["b"]),
    ],
)
def test_a_selection_means_the_same_for_all_that_takes_one(
    letters: DeadLetters, selection: Selection, chosen: list[str]
) -> None:
    letters.put(
        [
            failed("a", 30, step="shop/stock", error_type="x.Y", error="100% wrong"),
            failed("b", 20, step="shop/price"),
            failed("c", 10, step=None, spider="films"),
        ]
    )
    assert ids(letters, selection) == chosen
    assert letters.count(selection) == len(chosen)
    assert [letter.id for letter in letters.take(selection, 10, "me", 60)] == chosen
    assert letters.delete(selection) == len(chosen)
    assert letters.count(selection) == 0
    assert letters.count() == 3 - len(chosen)


def test_of_what_is_deleted_the_oldest_failures_go_first(letters: DeadLetters) -> None:
    letters.put([failed("a", 30), failed("b", 20), failed("c", 10, spider="films")])
    assert letters.delete(Selection(spider="books"), 0) == 0
    assert letters.delete(Selection(spider="books"), 1) == 1
    assert ids(letters) == ["c", "a"]
    assert letters.delete(ALL, 5) == 2


def test_listing_goes_page_by_page_and_misses_none_of_one_time(
    letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "_PAGE", 3)
    letters.put([failed(f"{number:02}", number // 5) for number in range(20)])
    assert ids(letters) == [f"{number:02}" for number in range(20)]
    assert [letter.id for letter in letters.select(limit=7)] == [f"0{n}" for n in range(7)]
    assert list(letters.select(limit=0)) == []


def test_what_is_listed_may_be_deleted_meanwhile(
    letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "_PAGE", 3)
    letters.put([failed(f"{number:02}", number) for number in range(10)])
    seen = []
    for letter in letters.select():
        seen.append(letter.id)
        letters.delete(Selection(ids=[letter.id]))
    assert seen == [f"{number:02}" for number in range(10)]


def test_a_letter_is_found_by_the_beginning_of_its_id(letters: DeadLetters) -> None:
    letters.put([failed("abc1"), failed("abd"), failed("ab"), failed("b_%"), failed("B")])
    found = {beginning: letters.get(beginning) for beginning in ("abc", "ab", "b", "b_", "%", "c")}
    assert {key: letter and letter.id for key, letter in found.items()} == {
        "abc": "abc1",
        "ab": "ab",
        "b": "b_%",
        "b_": "b_%",
        "%": None,
        "c": None,
    }
    with pytest.raises(DeadLettersError, match="'a' is the beginning of .*: ab, abc1, abd. Give"):
        letters.get("a")


def test_an_edited_letter_has_its_new_item_and_misses_nothing(letters: DeadLetters) -> None:
    letters.put([failed("a", missing="a field"), failed("b")])
    letters.edit("a", '{"title": "Emma\0"}', "shop.Book")
    letter = letters.get("a")
    assert letter is not None
    assert letter.item == '{"title": "Emma\\x00"}'
    assert (letter.item_type, letter.missing, letter.attempts) == ("shop.Book", None, 1)
    with pytest.raises(DeadLettersError, match="There is no dead letter x at .*deleted"):
        letters.edit("x", "{}", "builtins.dict")


def test_a_letter_that_a_replay_holds_is_not_edited(letters: DeadLetters) -> None:
    letters.put([failed("a")])
    letters.take(ALL, 1, "run 1", 60)
    with pytest.raises(DeadLettersError, match="is being replayed by run 1: edit it when"):
        letters.edit("a", "{}", "builtins.dict")
    letters.release("run 1")
    letters.edit("a", "{}", "builtins.dict")
    letters.take(ALL, 1, "run 2", 0)
    letters.edit("a", "[]", "builtins.list")


def listed_with_problem(letters: DeadLetters) -> DeadLetter:
    found = {letter.id: letter for letter in letters.select()}
    assert sorted(found) == ["a", "b", "c"]
    assert found["a"].problem is found["c"].problem is None
    assert letters.get("b") == found["b"]
    assert {letter.id for letter in letters.take(ALL, 9, "me", 60)} == {"a", "b", "c"}
    return found["b"]


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("attempts", "0", "attempts is 0, where a number from 1 on is due"),
        ("attempts", "-7", "attempts is -7, where a number from 1 on is due"),
        ("failed_at", "'yesterday'", "failed_at is 'yesterday', where a time such as .* is due"),
        ("failed_at", "'2030-13-41T00:00:00'", "failed_at is '2030-13-41T00:00:00', where"),
        ("first_failed_at", "''", "first_failed_at is '', where"),
        ("first_failed_at", "'0001-01-01T00:00:00+23:59'", "first_failed_at is '0001"),
    ],
)
def test_a_row_edited_into_nonsense_is_listed_so_and_stops_no_other(
    letters: DeadLetters, url: str, column: str, value: str, problem: str
) -> None:
    letters.put([failed("a"), failed("b", 1), failed("c", 2)])
    run_sql(url, f"UPDATE deferkit_dead_letters SET {column} = {value} WHERE id = 'b'")
    letter = listed_with_problem(letters)
    assert letter.problem is not None
    assert re.match(problem, letter.problem)
    assert getattr(letter, column) is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("attempts", "'many'"),
        ("attempts", "1.5"),
        ("attempts", "x'00'"),
        ("failed_at", "x'00ff'"),
        ("failed_at", "CAST(x'ff' AS TEXT)"),
        ("item", "x'00ff'"),
        ("error", "CAST(x'ff' AS TEXT)"),
        ("step", "x'00ff'"),
    ],
)
def test_nonsense_that_only_sqlite_keeps_is_listed_too(
    sqlite_url: str, column: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "_PAGE", 1)
    letters = DeadLetters(sqlite_url)
    letters.put([failed("a"), failed("b", 1), failed("c", 2)])
    run_sql(sqlite_url, f"UPDATE deferkit_dead_letters SET {column} = {value} WHERE id = 'b'")
    letter = listed_with_problem(letters)
    assert letter.problem is not None
    assert letter.problem.startswith(f"{column} is ")


def test_a_failed_attempt_makes_a_number_of_attempts_again(sqlite_url: str) -> None:
    letters = DeadLetters(sqlite_url)
    letters.put([failed("a")])
    run_sql(sqlite_url, "UPDATE deferkit_dead_letters SET attempts = 'many'")
    letters.take(ALL, 1, "me", 60)
    letters.failed_again("me", [failed("a", 5)])
    letter = letters.get("a")
    assert letter is not None
    assert (letter.attempts, letter.problem) == (1, None)


def test_a_time_without_its_offset_is_taken_for_utc(letters: DeadLetters, url: str) -> None:
    letters.put([failed("a")])
    run_sql(url, "UPDATE deferkit_dead_letters SET failed_at = '2030-05-05 10:00:00'")
    letter = letters.get("a")
    assert letter is not None
    assert letter.failed_at == datetime(2030, 5, 5, 10, tzinfo=timezone.utc)
    assert letter.problem is None


def test_a_lost_traceback_leaves_the_letter(letters: DeadLetters, url: str) -> None:
    letters.put([failed("a")])
    run_sql(url, "DELETE FROM deferkit_tracebacks")
    assert [(each.id, each.traceback) for each in letters.take(ALL, 1, "me", 60)] == [("a", "")]


def test_pages_end_early_where_items_are_large(
    letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "_PAGE_SIZE", 250)
    letters.put([failed(f"{number}", number, item="x" * 100) for number in range(7)])
    listed = letters.select()
    next(listed)
    letters.delete(Selection(ids=["2", "3", "5"]))  # 0 to 2 have been read
    assert [letter.id for letter in listed] == ["1", "2", "4", "6"]
    assert [letter.id for letter in letters.take(ALL, 9, "me", 60)] == ["0", "1", "4"]
    assert [letter.id for letter in letters.take(ALL, 9, "me", 60)] == ["6"]


def test_an_id_is_found_by_how_it_begins_and_ends(letters: DeadLetters) -> None:
    letters.put([failed(each) for each in ("ab-1", "ab-11", "ac-1", "a-2", "a%-3", "b-1")])
    assert letters.find("a", "-1") == ["ab-1", "ac-1"]
    assert letters.find("ab") == ["ab-1", "ab-11"]
    assert letters.find("a", "%-3") == ["a%-3"]
    assert letters.find("c") == letters.find("a", "_1") == []
