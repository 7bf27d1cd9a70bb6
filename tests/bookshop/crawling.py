"""Whole crawls of the bookshop, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "example_project"

# Long enough for a busy machine, short enough for a page that never answers.
# More than the stacks give a service, so that it is they who end the wait.
QUICK = ("-s", "DOWNLOAD_TIMEOUT=3", "-s", "BOOKSHOP_SITE_DELAY=0.02")
ASYNCIO = ()
TWISTED = ("-s", "TWISTED_REACTOR=twisted.internet.selectreactor.SelectReactor")
NO_REACTOR = ("-s", "TWISTED_REACTOR_ENABLED=False")


class Crawl(NamedTuple):
    """What a crawl left behind."""

    rows: list[dict[str, Any]]
    prices: list[dict[str, Any]]
    summary: str
    log: str

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
    """Run ``scrapy crawl books`` with *options*, its database in *folder*.

    *settings* are lines of Python that change those of the project.
    """
    database = folder / "books.db"
    environment = dict(os.environ)
    if settings:
        lines = f"from bookshop.settings import *\n{settings}\n"
        (folder / "changed_settings.py").write_text(lines, encoding="utf-8")
        paths = [str(folder), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        environment["SCRAPY_SETTINGS_MODULE"] = "changed_settings"
    command = [sys.executable, "-m", "scrapy", "crawl", "books", "-a", f"db={database}", *options]
    ended = subprocess.run(
        command,
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    prices = read_prices(folder / "books.prices.jsonl")
    return Crawl(read_rows(database), prices, ended.stdout, ended.stderr)


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
        r"WARNING: (Lost a book|Cannot have|AiohttpDownloadHandler|HttpxD)|ERROR: Gave up retrying"
    )
    return [line for line in log.splitlines() if line.strip() and not expected.search(line)]
