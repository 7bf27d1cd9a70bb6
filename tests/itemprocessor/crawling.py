"""Crawls of pages that need no site, under the item processor."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from scrapy_deferkit.deadletters import DeadLetter, DeadLetters

from ..crawls.tracing import Shop, Trace, crawl


def page(*items: Any) -> str:
    """Give the URL of a page with *items*."""
    return "data:application/json," + quote(json.dumps(items))


def numbered(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Give *count* items, with numbers."""
    return [{"number": number} for number in range(start, start + count)]


def numbers(items: Iterable[Any]) -> list[int]:
    """Give the numbers of *items*, in order of size."""
    return sorted(item["number"] for item in items)


def letters_at(url: str) -> list[DeadLetter]:
    """Return all dead letters that are kept at *url*."""
    store = DeadLetters(url)
    try:
        return list(store.select())
    finally:
        store.close()


class Starting(Shop):
    """Yields items from ``start()``, and after them the pages."""

    def __init__(self, items: Iterable[Any] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.items = list(items)

    async def start(self) -> AsyncIterator[Any]:
        for item in self.items:
            yield item
        async for request in super().start():
            yield request


async def crawl_with(
    *pipelines: Any,
    pages: Iterable[str] = (),
    items: Iterable[Any] = (),
    addon: bool = True,
    spider: type[Starting] = Starting,
    arguments: Mapping[str, Any] = MappingProxyType({}),
    **settings: Any,
) -> Trace:
    """Crawl *pages*, and *items* from ``start()``, with the add-on and these *pipelines*."""
    for position, pipeline in enumerate(pipelines):
        settings.setdefault("ITEM_PIPELINES", {})[pipeline] = position
    settings["URLLENGTH_LIMIT"] = 0  # the items are in the URLs
    if addon:
        settings["ADDONS"] = {"scrapy_deferkit.Addon": 500}
    return await crawl(*pages, settings=settings, spider=spider, items=items, **arguments)
