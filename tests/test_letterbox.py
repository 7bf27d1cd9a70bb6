"""The dead letters of a crawl: an unusable place is found early, and one hurts no other."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from scrapy_deferkit import StackConfigError, _letterbox, deadletters
from scrapy_deferkit._config import Config
from scrapy_deferkit._crawl import crawl_of
from scrapy_deferkit._engine import resolve
from scrapy_deferkit._letterbox import LetterBox, default_url
from scrapy_deferkit.deadletters import ALL, DeadLetters, Selection
from scrapy_deferkit.delivery import PIPELINES, Delivery, Visit
from scrapy_deferkit.exceptions import DeadLettersError
from scrapy_deferkit.replay import Replay, ReplayOrder
from scrapy_deferkit.testing import mock_crawler

from .deadletters.failures import failed, run_sql
from .itemprocessor.crawling import Starting, crawl_with, numbered, page
from .postgres import Postgres
from .postgres import postgres as postgres  # noqa: PLC0414


def letters_at(url: str | None, **settings: Any) -> LetterBox:
    crawler = mock_crawler({"DEFERKIT_DEAD_LETTERS_URL": url, **settings})
    return LetterBox(crawler, Config.from_settings(crawler.settings))


async def check(url: str | None, **settings: Any) -> None:
    letters = letters_at(url, **settings)
    try:
        await resolve(letters.prepare())
    finally:
        await letters.close()


# ------------------------------------------------------------------------------- at the start


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "= 'sqlite://': expected sqlite:///PATH or"),
        ("sqlite:///:memory:", "= 'sqlite:///:memory:': expected sqlite:///PATH or"),
        ("sqlite:///file:dead.db?mode=ro&uri=true", "expected sqlite:///PATH or"),
        ("dead.db", "= 'dead.db': expected sqlite:///PATH or"),
        ("mysql://me:secret@host/name", r"= 'mysql://\*\*\*@host/name': expected sqlite:"),
        ("sqlite:////dev/null/dead.db", "at sqlite:////dev/null/dead.db .*Not a directory"),
        ("sqlite:///dead.db?timout=5", "the option timout: the one option .* is timeout"),
        ("sqlite:///dead.db?timeout=long", "timeout=long, which has a wrong option: .*'long'"),
        ("postgresql://me:secret@/x?plugin=y", r"plugin=y, which has a wrong option: .*plugins:y"),
        ("postgresql://me:secret@/x?colour=y", 'invalid connection option "colour".*correct DEF'),
        (f"sqlite:///deep/{'x' * 248}.db", "File name too long: .*choose a shorter name"),
        (f"sqlite:///{'x' * 256}/dead.db", "File name too long: .*choose a shorter name"),
        ("sqlite:////dev/null/dead.db?timeout=5", "Not a directory.*allow writing there"),
        ("postgresql://me:secret@127.0.0.1:1/x", "127.0.0.1:1/x .*refused.*start the server"),
    ],
)
async def test_an_unusable_url_fails_at_the_start(url: str, message: str) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(DeadLettersError, match=message) as raised:
        await check(url)
    assert "secret" not in str(raised.value)


async def test_a_driver_that_is_missing_is_named_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DeadLettersError, match=r"scrapy-deferkit\[postgres\]"):
        await check("postgresql://me@host/name")


async def test_a_crawl_does_not_begin_with_an_unusable_url(tmp_path: Path) -> None:
    (tmp_path / "dead.db").write_text("my notes " * 100)
    with pytest.raises(StackConfigError, match="dead.db .*not a database.*move that file away"):
        await crawl_with(
            pages=[page(*numbered(1))],
            DEFERKIT_DEAD_LETTERS_URL=f"sqlite:///{tmp_path}/dead.db",
        )


@pytest.mark.parametrize("url", [None, "sqlite:///deep/dead.db", "sqlite:///dead.db?timeout=5"])
async def test_a_usable_file_is_not_made_before_it_is_needed(
    url: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await check(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "file"),
    [(None, ".scrapy/deferkit/default.sqlite"), ("sqlite:///dead.db", "dead.db")],
)
async def test_letters_go_to_the_folder_in_which_the_crawl_has_begun(
    url: str | None, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    letters = letters_at(url)
    await resolve(letters.prepare())
    monkeypatch.chdir(tmp_path / "elsewhere")
    await resolve(letters.put(failed("a"), is_replayed=False))
    await letters.close()
    assert DeadLetters(f"sqlite:///{tmp_path / file}").count() == 1
    assert not list((tmp_path / "elsewhere").iterdir())


async def start_of(spider: Any, **settings: Any) -> Any:
    trace = await crawl_with(Failing, items=[{"number": 1}], spider=spider, **settings)
    assert trace.reason == "finished"
    return trace


@pytest.mark.parametrize("name", ["x" * 300, "\u4e66" * 100, "a/\0/\ud800"])
async def test_a_spider_whose_name_no_file_can_have_has_its_letters(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await start_of(type("Named", (Starting,), {"name": name}))
    (file,) = tmp_path.rglob("*.sqlite")
    assert len(file.name) < 240
    assert DeadLetters(default_url(name)).count(Selection(spider=name)) == 1
    assert default_url(name) != default_url(f"{name}x")


async def test_a_spider_whose_name_is_no_text_is_refused() -> None:
    with pytest.raises(StackConfigError, match=r"name of the spider is 5 \(int\): text is"):
        await start_of(type("Numbered", (Starting,), {"name": 5}))


async def test_a_crawl_does_not_begin_with_as_many_letters_as_would_close_it(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/dead.db"
    settings = {"DEFERKIT_DEAD_LETTERS_URL": url, "DEFERKIT_DEAD_LETTERS_MAX": 2}
    await start_of(Starting, **settings)
    DeadLetters(url).put([failed("another spider's"), failed("b", spider="shop")])
    with pytest.raises(StackConfigError, match=r"MAX = 2: shop has so many .*\(2\).* replay shop"):
        await start_of(Starting, **settings)
    await start_of(Starting, **settings, DEFERKIT_DEAD_LETTERS=False)
    DeadLetters(url).delete(Selection(ids=["b"]))
    with closing(sqlite3.connect(tmp_path / "dead.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await check(url, DEFERKIT_DEAD_LETTERS_MAX=2)


async def test_a_server_with_as_many_letters_as_would_close_the_crawl_is_told(
    postgres: Postgres,
) -> None:
    url = postgres.create_schema()
    store = DeadLetters(url)
    store.put([failed("a", spider="default")])
    store.close()
    with pytest.raises(DeadLettersError, match="MAX = 1: default has so many dead letters already"):
        await check(url, DEFERKIT_DEAD_LETTERS_MAX=1)


async def test_a_server_is_asked_and_left_again(postgres: Postgres) -> None:
    url = postgres.create_schema()
    await check(url)
    assert run_sql(url, "SELECT 1 FROM pg_tables WHERE schemaname = current_schema()") == []
    with pytest.raises(DeadLettersError, match="database .* does not exist"):
        await check(url.replace("/postgres?", "/missing?"))


async def test_a_server_that_may_only_be_read_is_told_at_the_start(postgres: Postgres) -> None:
    url = postgres.create_schema()
    letters = DeadLetters(url)
    schema = url.rpartition("%3D")[2]
    run_sql(url, f"CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA {schema} TO reader")
    as_reader = url.replace("deferkit@", "reader@")
    read_only = f"{url}%20-cdefault_transaction_read_only%3Don"
    for _ in ("no tables", "tables"):
        with pytest.raises(DeadLettersError, match="permission denied for .*grant the user"):
            await check(as_reader)
        with pytest.raises(DeadLettersError, match="read-only transaction.* that may be written"):
            await check(read_only)
        await check(url)
        letters.put([failed("a")])
        run_sql(url, f"GRANT SELECT, DELETE ON ALL TABLES IN SCHEMA {schema} TO reader")
    run_sql(url, f"GRANT INSERT, UPDATE ON ALL TABLES IN SCHEMA {schema} TO reader")
    await check(as_reader)
    assert letters.count() == 1
    letters.close()


# -------------------------------------------------------------------- letters that are refused

REFUSE = """
    CREATE TRIGGER refuse BEFORE INSERT ON deferkit_dead_letters WHEN NEW.id LIKE 'bad%'
    BEGIN SELECT RAISE(ABORT, 'too large'); END
"""


@pytest.fixture
def refusing(tmp_path: Path) -> str:
    """The URL of a file that refuses some letters, and has none."""
    url = f"sqlite:///{tmp_path}/dead.db"
    letters = DeadLetters(url)
    letters.put([failed("first")])
    letters.delete(deadletters.ALL)
    run_sql(url, REFUSE)
    return url


async def test_a_letter_that_is_refused_hurts_no_other(refusing: str) -> None:
    letters = letters_at(refusing)
    ids = ["good 1", "bad 1", "good 2", "bad 2", "good 3"]
    # All but the first wait until that is written, and are one group.
    puts = [letters.put(failed(each), is_replayed=False) for each in ids]
    refused = []
    for each, put in zip(ids, puts, strict=True):
        try:
            await resolve(put)
        except DeadLettersError as error:
            refused.append((each, "too large" in str(error)))
    await letters.close()
    assert refused == [("bad 1", True), ("bad 2", True)]
    assert {it.id for it in DeadLetters(refusing).select()} == {"good 1", "good 2", "good 3"}


class Failing:
    def process_item(self, item: Any) -> Any:
        raise ValueError(f"no price in {item['number']}")


async def test_a_letter_that_is_refused_is_logged_whole_and_closes_nothing(refusing: str) -> None:
    run_sql(refusing, "DROP TRIGGER refuse")
    run_sql(refusing, REFUSE.replace("NEW.id LIKE 'bad%'", "NEW.item LIKE '%: 2}'"))
    trace = await crawl_with(
        Failing, pages=[page(*numbered(4))], DEFERKIT_DEAD_LETTERS_URL=refusing
    )
    assert trace.reason == "finished"
    assert len(trace.failed) == 4
    (lost,) = [it.getMessage() for it in trace.log if it.levelname == "CRITICAL"]
    assert "too large" in lost
    assert 'all that is left of the item: {"id": ' in lost
    assert r"{\"number\": 2}" in lost
    assert "no price in 2" in lost
    count = trace.crawler.stats.get_value
    assert count("deferkit/items/not_dead_lettered") == 1
    assert count("deferkit/items/dead_lettered") == DeadLetters(refusing).count() == 3


async def test_a_store_that_stays_away_closes_the_crawl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "_BUSY_SECONDS", 0.01)
    monkeypatch.setattr(_letterbox, "_PATIENCE", 0.01)
    url = f"sqlite:///{tmp_path}/dead.db"
    DeadLetters(url).put([failed("a")])
    with closing(sqlite3.connect(tmp_path / "dead.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        trace = await crawl_with(Failing, pages=[page(*numbered(3))], DEFERKIT_DEAD_LETTERS_URL=url)
    assert trace.reason == "dead_letters_unavailable"
    lost = [it.getMessage() for it in trace.log if it.levelname == "CRITICAL"]
    assert len(lost) == 3
    assert all("is locked" in it and "all that is left of the item" in it for it in lost)


async def test_a_letter_that_fails_again_while_the_store_is_away_is_not_said_to_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deadletters, "_BUSY_SECONDS", 0.01)
    monkeypatch.setattr(_letterbox, "_PATIENCE", 0.01)
    url = f"sqlite:///{tmp_path}/dead.db"
    DeadLetters(url).put([failed("a")])
    (letter,) = DeadLetters(url).select()
    crawler = mock_crawler({"DEFERKIT_DEAD_LETTERS_URL": url})
    crawl_of(crawler).delivery = delivery = Delivery(
        crawler, Config.from_settings(crawler.settings)
    )
    visit = Visit(crawl_of(crawler), PIPELINES, {}, None, letter)
    with closing(sqlite3.connect(tmp_path / "dead.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await visit.failed(ValueError("no price"))
    await delivery.letters.close()
    (said,) = [it.getMessage() for it in caplog.records if it.levelname == "CRITICAL"]
    assert "is locked" in said
    assert 'The letter stays as it was: {"id": "a"' in said
    assert "all that is left" not in said
    assert list(DeadLetters(url).select()) == [letter]


async def test_a_replay_that_cannot_give_its_leases_up_lets_go_of_the_store_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deadletters, "_BUSY_SECONDS", 0.01)
    monkeypatch.setattr(_letterbox, "_PATIENCE", 0.01)
    url = f"sqlite:///{tmp_path}/dead.db"
    DeadLetters(url).put([failed("a")])
    crawler = mock_crawler({"DEFERKIT_DEAD_LETTERS_URL": url, "DEFERKIT_REPLAY": ReplayOrder(ALL)})
    delivery = Delivery(crawler, Config.from_settings(crawler.settings))
    with closing(sqlite3.connect(tmp_path / "dead.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await delivery.close()
    assert "Leases could not be given up, and end by themselves" in caplog.text
    assert delivery.letters._thread is None


@pytest.mark.no_runtime
def test_a_replay_that_no_command_has_ordered_is_refused() -> None:
    with pytest.raises(StackConfigError, match=r"^DEFERKIT_REPLAY = 'x': only the command"):
        Replay.of(mock_crawler({"DEFERKIT_REPLAY": "x"}))
