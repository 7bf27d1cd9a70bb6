"""Pipelines that somebody adds to the item processor while it runs, as Scrapy's takes them."""

from __future__ import annotations

from typing import Any

import pytest
from scrapy import signals

from .crawling import crawl_with, numbered, numbers, page


class Added:
    """A pipeline that somebody adds to the processor that runs."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def open_spider(self) -> None:
        raise AssertionError("the others are open")

    def process_item(self, item: Any) -> Any:
        self.seen.append(item)
        return item

    def close_spider(self) -> None:
        self.seen.append("closed")


class Adding:
    """Adds a pipeline as the spider opens."""

    added: Added

    @classmethod
    def from_crawler(cls, crawler: Any) -> Any:
        self = cls()
        self.crawler = crawler
        crawler.signals.connect(self.add, signals.spider_opened)
        return self

    def add(self) -> None:
        self.added = Added()
        self.crawler.engine.scraper.itemproc._add_middleware(self.added)

    def process_item(self, item: Any) -> Any:
        return item


@pytest.mark.parametrize("has_stats", [True, False])
async def test_a_pipeline_that_is_added_to_the_processor_gets_items_and_is_closed(
    has_stats: bool,
) -> None:
    trace = await crawl_with(Adding, pages=[page(*numbered(3))], DEFERKIT_STEP_STATS=has_stats)
    *items, closed = trace.crawler.get_item_pipeline(Adding).added.seen
    assert numbers(items) == [0, 1, 2]
    assert closed == "closed"
    assert trace.crawler.stats.get_value("deferkit/Added/ok") == (3 if has_stats else None)
