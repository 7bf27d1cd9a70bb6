"""The dead letters of a crawl: an unusable place is found at its start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scrapy_deferkit import StackConfigError
from scrapy_deferkit._config import Config
from scrapy_deferkit._engine import resolve
from scrapy_deferkit._letterbox import LetterBox
from scrapy_deferkit.deadletters import DeadLetters
from scrapy_deferkit.exceptions import DeadLettersError
from scrapy_deferkit.testing import mock_crawler

from .deadletters.failures import failed, run_sql
from .itemprocessor.crawling import crawl_with, numbered, page
from .postgres import Postgres
from .postgres import postgres as postgres  # noqa: PLC0414


def letters_at(url: str | None) -> LetterBox:
    crawler = mock_crawler({"DEFERKIT_DEAD_LETTERS_URL": url})
    return LetterBox(crawler, Config.from_settings(crawler.settings))


async def check(url: str | None) -> None:
    letters = letters_at(url)
    try:
        await resolve(letters.prepare())
    finally:
        await letters.close()


# ------------------------------------------------------------------------------- at the start


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "is 'sqlite://', where sqlite:///PATH or"),
        ("sqlite:///:memory:", "is 'sqlite:///:memory:', where sqlite:///PATH or"),
        ("sqlite:///file:dead.db?mode=ro&uri=true", "where sqlite:///PATH or"),
        ("dead.db", "is 'dead.db', where sqlite:///PATH or"),
        ("mysql://me:secret@host/name", r"is 'mysql://\*\*\*@host/name', where sqlite:///PATH or"),
        ("sqlite:////dev/null/dead.db", "at sqlite:////dev/null/dead.db .*Not a directory"),
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


async def test_a_server_is_asked_and_left_again(postgres: Postgres) -> None:
    url = postgres.create_schema()
    await check(url)
    assert run_sql(url, "SELECT 1 FROM pg_tables WHERE tablename = 'deferkit_meta'") == []
    with pytest.raises(DeadLettersError, match="database .* does not exist"):
        await check(url.replace("/postgres?", "/missing?"))
