"""The history of prices: a line of JSON for each time that a book was seen at a price."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from scrapy.crawler import Crawler

from .database import database_path
from .items import Book

if TYPE_CHECKING:
    from typing_extensions import Self


def price_history_path(crawler: Crawler) -> Path:
    """Give the file, which lies beside the database: ``books.prices.jsonl`` for ``books.db``."""
    return database_path(crawler).with_suffix(".prices.jsonl")


class NotePrice:
    """Add the price of a book to the history, which grows from crawl to crawl."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Build the processor; the file is made with the first price."""
        return cls(price_history_path(crawler))

    def __call__(self, book: Book) -> Book:
        if book.price is not None:
            seen = datetime.now(timezone.utc).isoformat(timespec="seconds")
            line = {"seen": seen, "upc": book.upc, "price": str(book.price)}
            with self._path.open("a", encoding="utf-8") as history:
                history.write(json.dumps(line) + "\n")
        return book
