"""No two runs of a replay ever hold one letter, and every run comes to an end."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from twisted.internet.task import Clock

from scrapy_deferkit import deadletters
from scrapy_deferkit.deadletters import DeadLetters, DeadLettersError, Selection

from .failures import at, database, failed, run_sql

pytestmark = pytest.mark.no_runtime

BOOKS = Selection(spider="books")


def take(letters: DeadLetters, owner: str, limit: int = 10, seconds: float = 60) -> list[str]:
    return [letter.id for letter in letters.take(BOOKS, limit, owner, seconds)]


def test_what_one_owner_holds_no_other_is_given(letters: DeadLetters) -> None:
    letters.put([failed("a"), failed("b", 1), failed("c", 2)])
    assert take(letters, "run 1", limit=2) == ["a", "b"]
    assert take(letters, "run 2") == ["c"]
    assert take(letters, "run 1") == take(letters, "run 2") == []


def test_a_lease_is_seen_on_the_letter(letters: DeadLetters) -> None:
    letters.put([failed("a")])
    before = datetime.now(timezone.utc)
    (letter,) = letters.take(BOOKS, 1, "run 1", 60)
    assert letter.leased_by == "run 1"
    assert letter.leased_until is not None
    assert letter.leased_until - before >= timedelta(seconds=59)
    assert letters.get("a") == letter


def test_a_lease_that_ended_gives_the_letter_to_another_owner_alone(letters: DeadLetters) -> None:
    letters.put([failed("a"), failed("b", 1)])
    assert take(letters, "run 1", limit=1, seconds=0) == ["a"]
    assert take(letters, "run 1") == ["b"]  # what it has in hand, it is not given twice
    assert take(letters, "run 2") == ["a"]
    assert letters.delivered("run 1", ["a", "b"]) == {"b"}
    assert letters.delivered("run 2", ["a", "b"]) == {"a"}
    assert letters.count() == 0


def test_a_lease_that_ended_still_lets_its_owner_deliver_what_nobody_took(
    letters: DeadLetters,
) -> None:
    letters.put([failed("a")])
    take(letters, "run 1", seconds=0)
    assert letters.delivered("run 1", ["a"]) == {"a"}


def test_a_renewed_lease_lasts(letters: DeadLetters) -> None:
    letters.put([failed("a"), failed("b", 1)])
    take(letters, "run 1", seconds=0)
    assert letters.renew("run 1", ["a", "x"], 60) == {"a"}
    assert take(letters, "run 2") == ["b"]
    assert letters.renew("run 1", ["a", "b"], 60) == {"a"}


def test_delivered_twice_is_heard_once(letters: DeadLetters) -> None:
    letters.put([failed("a")])
    take(letters, "run 1")
    assert letters.delivered("run 1", ["a"]) == {"a"}
    assert letters.delivered("run 1", ["a"]) == set()


def test_what_failed_again_has_one_attempt_more_and_no_lease(letters: DeadLetters) -> None:
    letters.put([failed("a", missing="a field")])
    take(letters, "run 1")
    again = failed("a", 60, error_type="x.Y", error="new", step="s", item="other", traceback="t")
    letters.failed_again("run 1", [again])
    letters.failed_again("run 1", [again])  # said twice, it counts once
    letter = letters.get("a")
    assert letter is not None
    assert (letter.attempts, letter.first_failed_at, letter.failed_at) == (2, at(0), at(60))
    assert (letter.error_type, letter.error, letter.step) == ("x.Y", "new", "s")
    assert (letter.item, letter.missing) == (failed("a").item, "a field")
    assert (letter.traceback, letter.leased_by, letter.leased_until) == ("t", None, None)


def test_what_an_owner_lost_it_cannot_fail(letters: DeadLetters) -> None:
    letters.put([failed("a")])
    take(letters, "run 1", seconds=0)
    take(letters, "run 2")
    letters.failed_again("run 1", [failed("a", 60, error="late")])
    letters.failed_again("run 2", [])
    letter = letters.get("a")
    assert letter is not None
    assert (letter.attempts, letter.leased_by) == (1, "run 2")


def test_a_run_ends_where_all_fails_again(letters: DeadLetters) -> None:
    letters.put([failed(str(number), number) for number in range(5)])
    seen: list[str] = []
    while taken := take(letters, "run 1", limit=2):
        seen += taken
        # Hosts' clocks differ: these failures claim to be older than all.
        letters.failed_again("run 1", [failed(each, -100) for each in taken])
    assert sorted(seen) == ["0", "1", "2", "3", "4"]
    assert len(take(letters, "a later run")) == 5


def test_two_runs_at_once_end_where_all_fails_again(letters: DeadLetters, url: str) -> None:
    letters.put([failed(str(number), number) for number in range(4)])
    runs = {"run 1": letters, "run 2": DeadLetters(url)}
    seen: dict[str, list[str]] = {"run 1": take(letters, "run 1", 1), "run 2": []}
    seen["run 2"] += take(runs["run 2"], "run 2", 1)
    held = {owner: list(ids) for owner, ids in seen.items()}
    for _ in range(100):
        for owner, store in runs.items():
            store.failed_again(owner, [failed(each, 60) for each in held[owner]])
            held[owner] = take(store, owner, 1)
            seen[owner] += held[owner]
    runs["run 2"].close()
    assert sorted(seen["run 1"] + seen["run 2"]) == ["0", "1", "2", "3"]


def test_an_edited_letter_is_tried_once_more_by_a_run_that_saw_it_fail(
    letters: DeadLetters,
) -> None:
    letters.put([failed("a")])
    take(letters, "run 1")
    letters.failed_again("run 1", [failed("a", 60)])
    assert take(letters, "run 1") == []
    letters.edit("a", "{}", "builtins.dict")
    assert take(letters, "run 1") == ["a"]


def test_released_letters_are_anybodys(letters: DeadLetters) -> None:
    letters.put([failed("a"), failed("b"), failed("c")])
    take(letters, "run 1", limit=2)
    take(letters, "run 2")
    assert letters.release("run 1") == 2
    assert letters.release("run 1") == 0
    assert take(letters, "run 3") == ["a", "b"]


def test_more_letters_than_a_statement_takes_are_taken_and_delivered_at_once(
    letters: DeadLetters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "_PAGE", 7)
    ids = [f"{number:03}" for number in range(100)]
    letters.put([failed(each, number) for number, each in enumerate(ids)])
    assert take(letters, "run 1", limit=1000) == ids
    assert letters.renew("run 1", ids, 60) == set(ids)
    assert letters.delivered("run 1", ids) == set(ids)


def test_the_time_of_a_lease_is_the_databases(
    letters: DeadLetters, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.put([failed("a")])
    take(letters, "run 1", seconds=60)
    tomorrow = datetime.now(timezone.utc) + timedelta(days=1)
    monkeypatch.setattr(deadletters, "_host_time", lambda: tomorrow)
    # SQLite has no clock but the host's.
    assert take(letters, "run 2") == (["a"] if url.startswith("sqlite") else [])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the host, which SQLite goes by."""
    clock = Clock()
    monkeypatch.setattr(deadletters, "_host_time", lambda: at(clock.seconds()))
    return clock


def test_a_lease_lasts_no_longer_since_the_clock_was_set_back(
    sqlite_url: str, clock: Clock
) -> None:
    letters = DeadLetters(sqlite_url)
    letters.put([failed("a"), failed("b"), failed("c")])
    clock.advance(86400)
    assert take(letters, "dead", limit=1, seconds=60) == ["a"]
    assert take(letters, "alive", limit=1, seconds=90) == ["b"]
    clock.advance(-86400)
    assert take(letters, "third") == ["c"]  # the others may be at work
    assert letters.renew("alive", ["b"], 90) == {"b"}
    clock.advance(61)
    assert take(letters, "third") == ["a"]
    clock.advance(30)
    assert take(letters, "fourth") == ["b", "c"]


def test_a_letter_that_nobody_holds_any_more_can_be_edited_though_the_clock_was_set_back(
    sqlite_url: str, clock: Clock
) -> None:
    letters = DeadLetters(sqlite_url)
    letters.put([failed("a")])
    clock.advance(86400)
    take(letters, "dead", seconds=60)
    clock.advance(-86400)
    with pytest.raises(DeadLettersError, match="being replayed by dead"):
        letters.edit("a", "{}", "builtins.dict")
    clock.advance(61)
    letters.edit("a", "{}", "builtins.dict")


def test_what_has_failed_before_the_clock_was_set_back_is_tried_by_a_later_run(
    sqlite_url: str, clock: Clock
) -> None:
    letters = DeadLetters(sqlite_url)
    letters.put([failed("a"), failed("b")])
    clock.advance(86400)
    for owner in ("run 1", "run 2"):
        (taken,) = take(letters, owner, limit=1)
        letters.failed_again(owner, [failed(taken, 60)])
        clock.advance(-1000)
    assert take(letters, "run 3") == ["a", "b"]


def test_two_runs_come_to_an_end_though_the_clock_was_set_back(
    sqlite_url: str, clock: Clock
) -> None:
    letters = DeadLetters(sqlite_url)
    letters.put([failed(str(number)) for number in range(4)])
    clock.advance(86400)
    seen = []
    for number in range(40):
        for owner in ("run 1", "run 2"):
            ids = take(letters, owner, 1)
            letters.failed_again(owner, [failed(each, 60) for each in ids])
            seen += ids
            clock.advance(-50000 if number == 0 else 1)
    assert len(seen) <= 8


def test_a_lease_whose_time_somebody_has_garbled_stops_no_other(sqlite_url: str) -> None:
    letters = DeadLetters(sqlite_url)
    letters.put([failed("a"), failed("b")])
    take(letters, "run 1", limit=1)
    run_sql(sqlite_url, "UPDATE deferkit_dead_letters SET leased_at = 'zzz' WHERE id = 'a'")
    assert take(letters, "run 2") == ["b"]


def test_rows_that_another_transaction_holds_are_stepped_over(postgres_url: str) -> None:
    letters = DeadLetters(postgres_url)
    letters.put([failed("a"), failed("b")])
    with database(postgres_url) as other:
        other.execute(sa.text("SELECT 1 FROM deferkit_dead_letters WHERE id = 'a' FOR UPDATE"))
        assert take(letters, "run 1") == ["b"]
    assert take(letters, "run 1") == ["a"]
    letters.close()


@pytest.mark.parametrize("ending", ["hold", "deliver", "fail"])
def test_the_last_page_costs_what_the_first_one_costs(sqlite_url: str, ending: str) -> None:
    letters = DeadLetters(sqlite_url)
    letters.put([failed(f"{number:04}", number) for number in range(2000)])
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    def watch(connection: sqlite3.Connection, _: object) -> None:
        connection.set_progress_handler(count, 100)

    costs = []
    sa.event.listen(Engine, "connect", watch)
    try:
        for page in range(40):
            steps = 0
            ids = take(letters, "run 1", limit=50)
            costs.append(steps)
            assert len(ids) == 50
            if ending == "deliver":
                letters.delivered("run 1", ids)
            elif ending == "fail":
                letters.failed_again("run 1", [failed(each, 5000 + page) for each in ids])
    finally:
        sa.event.remove(Engine, "connect", watch)
    assert costs[0] > 10
    assert max(costs) < 2 * costs[0]


def test_the_lease_query_of_postgresql_has_an_index(postgres_url: str) -> None:
    letters = DeadLetters(postgres_url)
    letters.put([failed(f"{number:04}", number) for number in range(2000)])
    take(letters, "run 1", limit=1900)
    run_sql(postgres_url, "ANALYZE deferkit_dead_letters")
    plan = run_sql(
        postgres_url,
        "EXPLAIN SELECT id FROM deferkit_dead_letters WHERE spider = 'books'"
        " AND leased_by IS NULL AND tried_by IS NULL ORDER BY failed_at, id LIMIT 50"
        " FOR UPDATE SKIP LOCKED",
    )
    assert "deferkit_dead_letters_free" in str(plan)
    assert "Sort" not in str(plan)
    letters.close()
