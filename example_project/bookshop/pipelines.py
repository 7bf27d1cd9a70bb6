"""The pipelines that are this project's own; scrapy_deferkit has the others."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from scrapy.crawler import Crawler
from scrapy.exceptions import CloseSpider

from scrapy_deferkit import StackPipeline
from scrapy_deferkit.defer import (
    parallel_async,
    process_chain_async,
    process_chain_both_async,
    process_parallel_async,
)

from .database import BookTable, database_path
from .errors import DatabaseFailed
from .items import Book
from .labels import (
    ask_at_the_desk,
    average_stars,
    cheapest_elsewhere,
    count_words,
    join_parts,
    price_in_words,
    shorten,
)
from .stacks import place

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)


class PlacePipeline(StackPipeline):
    """Run the stack that finds each kind of book its place in the shop."""

    stack = place


class LabelPipeline:
    """Write the label of a book, by hand, with the four helpers themselves.

    ``process_parallel`` calls several functions with one input, ``parallel`` one function with
    many; ``process_chain_both`` has errbacks; ``process_chain`` is a plain chain.
    """

    async def process_item(self, book: Book) -> Book:
        """Put the label on *book*."""
        stars, elsewhere = await process_parallel_async([average_stars, cheapest_elsewhere], book)

        words: Counter[str] = Counter()
        workers = await parallel_async(book.reviews, 4, count_words, words)
        for succeeded, failure in workers:
            if not succeeded:
                failure.raiseException()
        said = ", ".join(sorted(words, key=lambda word: (-words[word], word))[:2])

        price = await process_chain_both_async(
            [price_in_words, None], [None, ask_at_the_desk], book
        )
        book.label = await process_chain_async(
            [join_parts, shorten], [book.title, price, stars, elsewhere, said]
        )
        return book


class SQLitePipeline:
    """Store books in a SQLite file, one row for each UPC."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler
        self._table: BookTable | None = None

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Build the pipeline; the file is opened with the spider."""
        return cls(crawler)

    async def open_spider(self) -> None:
        """Open the file; where that cannot be done, say why and crawl nothing."""
        try:
            self._table = BookTable(database_path(self._crawler))
        except DatabaseFailed as error:
            logger.error("No place for the books: %s", error)
            raise CloseSpider("the database cannot be opened") from error

    def process_item(self, book: Book) -> Book:
        """Store *book*."""
        assert self._table is not None
        self._table.put(book)
        return book

    def close_spider(self) -> None:
        """Close the file."""
        if self._table is not None:
            self._table.close()
