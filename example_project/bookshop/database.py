"""The table of books, in a SQLite file."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scrapy.crawler import Crawler

from .errors import DatabaseFailed
from .items import Book

COLUMNS = {
    "upc": "TEXT PRIMARY KEY NOT NULL",
    "url": "TEXT NOT NULL",
    "title": "TEXT NOT NULL",
    "price": "TEXT",  # as SQLite has no decimal numbers
    "currency": "TEXT NOT NULL",
    "tax_percent": "INTEGER",
    "rating": "INTEGER NOT NULL",
    "stock": "INTEGER NOT NULL",
    "category": "TEXT NOT NULL",
    "description": "TEXT",
    "image_url": "TEXT NOT NULL",
    "reviews": "TEXT NOT NULL",  # JSON
    "offers": "TEXT NOT NULL",  # JSON
    "sort_title": "TEXT NOT NULL",
    "place": "TEXT NOT NULL",
    "price_band": "TEXT NOT NULL",
    "reading_minutes": "INTEGER",
    "label": "TEXT NOT NULL",
    "fallbacks": "TEXT NOT NULL",
}
_HINT = "choose another file with -s BOOKSHOP_DB=... or -a db=..."


def database_path(crawler: Crawler) -> Path:
    """Give the file: the spider's argument ``db``, else the setting ``BOOKSHOP_DB``."""
    chosen = getattr(crawler.spider, "db", None) or crawler.settings.get("BOOKSHOP_DB", "books.db")
    return Path(chosen).absolute()


class BookTable:
    """The table, open until it is closed. Each book is safe once :meth:`put` has returned."""

    def __init__(self, path: Path) -> None:
        self._path = path
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        marks = ", ".join(f":{name}" for name in COLUMNS)
        updates = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name != "upc")
        self._upsert = (
            f"INSERT INTO books ({', '.join(COLUMNS)}) VALUES ({marks}) "
            f"ON CONFLICT (upc) DO UPDATE SET {updates}"
        )
        if not path.parent.is_dir():
            raise DatabaseFailed(f"{path}: there is no folder {path.parent}; {_HINT}")
        try:
            self._connection = sqlite3.connect(path, isolation_level=None)
        except sqlite3.Error as error:
            raise DatabaseFailed(f"{path}: {error}; {_HINT}") from error
        try:
            # The file outlives the process at any moment without a wait for the disk at each book.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS books ({columns})")
            found = [row[1] for row in self._connection.execute("PRAGMA table_info(books)")]
        except sqlite3.Error as error:
            self._connection.close()
            raise DatabaseFailed(f"{path}: {error}; {_HINT}") from error
        if found != list(COLUMNS):
            self._connection.close()
            raise DatabaseFailed(f"{path} has another table called books; {_HINT}")

    def put(self, book: Book) -> None:
        """Store *book*, in the place of what there was under its UPC."""
        try:
            self._connection.execute(self._upsert, _row(book))
        except sqlite3.Error as error:
            raise DatabaseFailed(f"{self._path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _row(book: Book) -> dict[str, Any]:
    fields = asdict(book)
    return {
        **{name: fields[name] for name in COLUMNS if name in fields},
        "price": None if book.price is None else str(book.price),
        "reviews": _json(fields["reviews"]),
        "offers": _json(fields["offers"]),
        "fallbacks": "; ".join(book.fallbacks()),
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
