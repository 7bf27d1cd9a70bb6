"""Whole crawls of the bookshop, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from scrapy_deferkit.deadletters import DeadLetter, DeadLetters

from .. import warm

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "example_project"

# Long enough for a busy machine, short enough for a page that never answers, which is waited for
# once. More than the stacks give a service, so that it is they who end the wait.
QUICK = """
DOWNLOAD_TIMEOUT = 3
RETRY_TIMES = 0
BOOKSHOP_SITE_DELAY = 0.02
"""
ASYNCIO = ()
TWISTED = ("-s", "TWISTED_REACTOR=twisted.internet.selectreactor.SelectReactor")
NO_REACTOR = ("-s", "TWISTED_REACTOR_ENABLED=False")


class Crawl(NamedTuple):
    """What a crawl left behind."""

    rows: list[dict[str, Any]]
    prices: list[dict[str, Any]]
    summary: str
    log: str
    letters: list[DeadLetter]

    def rows_wherever(self) -> list[dict[str, Any]]:
        """Give the rows with the paths of addresses only: a site may be served at any port."""
        return [
            {name: urlsplit(value).path if name.endswith("url") else value for name, value in row}
            for row in (row.items() for row in self.rows)
        ]

    def data(self) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
        """Give all that the crawl stored, but where and when it was seen."""
        return self.rows_wherever(), sorted((line["upc"], line["price"]) for line in self.prices)


def crawl(folder: Path, *options: str, settings: str = "") -> Crawl:
    """Run ``scrapy crawl books`` with *options*, its database and dead letters in *folder*.

    *settings* are lines of Python that change those of the project.
    """
    return _run_scrapy(folder, ["crawl", "books"], options, settings, code=0)


def replay(folder: Path, *options: str, settings: str = "", code: int) -> Crawl:
    """Run ``scrapy deferkit replay books`` in the *folder* of a crawl; it is to end with *code*."""
    return _run_scrapy(folder, ["deferkit", "replay", "books"], options, settings, code)


def _run_scrapy(
    folder: Path, command: list[str], options: tuple[str, ...], settings: str, code: int
) -> Crawl:
    letters = f"DEFERKIT_DEAD_LETTERS_URL = {_letters(folder)!r}"
    text = f"from bookshop.settings import *\n{letters}\n{settings}\n"
    (folder / "changed_settings.py").write_text(text, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    ended = warm.run(
        *("-m", "scrapy", *command, "-a", f"db={folder / 'books.db'}", *options),
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": path, "SCRAPY_SETTINGS_MODULE": "changed_settings"},
    )
    assert ended.returncode == code, ended.stderr
    return _left_in(folder, ended)


def _letters(folder: Path) -> str:
    return f"sqlite:///{folder / 'letters.sqlite'}"


def _left_in(folder: Path, ended: subprocess.CompletedProcess[str]) -> Crawl:
    letters = DeadLetters(_letters(folder))
    try:
        kept = list(letters.select())
    finally:
        letters.close()
    rows, prices = read_rows(folder / "books.db"), read_prices(folder / "books.prices.jsonl")
    return Crawl(rows, prices, ended.stdout, ended.stderr, kept)


def read_rows(database: Path) -> list[dict[str, Any]]:
    """Give the rows of the table of books, by UPC."""
    if not database.exists():
        return []
    connection = sqlite3.connect(database)
    try:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM books ORDER BY upc")]
    finally:
        connection.close()


def read_prices(history: Path) -> list[dict[str, Any]]:
    """Give the lines of the history of prices."""
    lines = history.read_text(encoding="utf-8").splitlines() if history.exists() else ()
    return [json.loads(line) for line in lines]


def troubles_in(log: str) -> list[str]:
    """Give the lines of a log that tell of more than the troubles the shop expects."""
    # Scrapy says at each start that its download handler for no reactor is an experiment; in older
    # versions it cannot be told to give up a request more quietly.
    expected = re.compile(
        r"WARNING: (A book failed|Cannot have|AiohttpDownloadHandler|HttpxD)"
        r"|ERROR: Gave up retrying"
    )
    return [line for line in log.splitlines() if line.strip() and not expected.search(line)]
