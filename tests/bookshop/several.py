"""Crawl the bookshop several times in one process, one crawl after the other.

``python several.py BOOKS FOLDER...``: each folder has a ``changed_settings.py`` and gets a
``books.db``. To start a process takes longer than to crawl a few books.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scrapy.crawler import CrawlerRunner
from scrapy.settings import Settings
from scrapy.utils.reactor import install_reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import react


@inlineCallbacks
def crawl(_: object, books: str, *folders: str) -> Iterator[Deferred[Any]]:
    from bookshop.spiders.books import BooksSpider

    for folder in map(Path, folders):
        sys.modules.pop("bookshop.settings", None)  # whoever was first has changed its lists
        values = runpy.run_path(str(folder / "changed_settings.py"))
        settings = Settings({name: value for name, value in values.items() if name.isupper()})
        yield CrawlerRunner(settings).crawl(BooksSpider, books=books, db=str(folder / "books.db"))


if __name__ == "__main__":
    install_reactor("twisted.internet.asyncioreactor.AsyncioSelectorReactor")
    react(crawl, sys.argv[1:])
