"""The SQLite file: one row for each UPC, and clear words where it cannot be used."""

from __future__ import annotations

import sqlite3
from decimal import Decimal
from pathlib import Path

import pytest
import scrapy

from bookshop.database import BookTable
from bookshop.errors import DatabaseFailed
from bookshop.items import Book, Offer

from .crawling import crawl, read_rows

pytestmark = pytest.mark.no_runtime


def put(path: Path, *books: Book) -> None:
    table = BookTable(path)
    try:
        for book in books:
            table.put(book)
    finally:
        table.close()


def test_a_book_replaces_what_there_was_under_its_upc(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    put(path, Book("http://a.example", upc="1", title="Old"), Book("", upc="2"))
    put(path, Book("http://b.example", upc="1", title="New", price=Decimal("1.10")))
    found = [(row["upc"], row["title"], row["price"]) for row in read_rows(path)]
    assert found == [("1", "New", "1.10"), ("2", "", None)]


def test_offers_are_stored_as_json(tmp_path: Path) -> None:
    put(tmp_path / "books.db", Book("", upc="1", offers=[Offer("café", Decimal("1.10"))]))
    (row,) = read_rows(tmp_path / "books.db")
    assert row["offers"] == '[{"city": "", "name": "", "price": "1.10", "seller": "café"}]'


def test_a_book_without_a_upc_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(DatabaseFailed, match="upc"):
        put(tmp_path / "books.db", Book(""))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseFailed, match=r"there is no folder .*gone; choose another file"):
        BookTable(tmp_path / "gone" / "books.db")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "books.db").write_text("This is no database, only a text that is long enough.")
    with pytest.raises(DatabaseFailed, match="not a database; choose another file"):
        BookTable(tmp_path / "books.db")


def test_a_table_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "books.db")
    connection.execute("CREATE TABLE books (isbn TEXT)")
    connection.close()
    with pytest.raises(DatabaseFailed, match="another table called books"):
        BookTable(tmp_path / "books.db")


@pytest.mark.crawl
@pytest.mark.skipif(
    scrapy.version_info < (2, 18), reason="before 2.18 a pipeline cannot close the spider so early"
)
def test_a_crawl_that_cannot_store_says_so_and_crawls_nothing(tmp_path: Path) -> None:
    ended = crawl(tmp_path, "-a", f"db={tmp_path / 'gone' / 'books.db'}")
    assert "No place for the books" in ended.log
    assert "Traceback" not in ended.log
    assert "before its time: the database cannot be opened" in ended.summary
