"""Schedulers with an engine that downloads nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import scrapy
from scrapy.utils.test import get_crawler

from scrapy_deferkit import Scheduler


class Pages(scrapy.Spider):
    name = "pages"

    def parse(self, response: Any) -> None:
        """Do nothing."""


def made(kind: Any, folder: Path, **settings: Any) -> Any:
    """Return an open scheduler of *kind*, with its job in *folder*."""
    settings = {"TELNETCONSOLE_ENABLED": False, **settings, "JOBDIR": str(folder)}
    crawler = get_crawler(Pages, settings)
    crawler.crawling = True
    crawler.spider = crawler._create_spider()
    downloader = SimpleNamespace(active=set(), slots={}, get_slot_key=slot_key)
    crawler.engine = SimpleNamespace(
        downloader=downloader,
        scraper=SimpleNamespace(enqueue_scrape=None, handle_spider_error=None),
        close_spider_async=None,
        _slot=SimpleNamespace(inprogress=set(), nextcall=SimpleNamespace(schedule=lambda: None)),
    )
    scheduler = kind.from_crawler(crawler)
    scheduler.open(crawler.spider)
    scheduler.crawler = crawler
    return scheduler


def slot_key(request: scrapy.Request) -> str:
    return str(request.meta.get("download_slot") or request.url.split("/")[2])


def ours(folder: Path, **settings: Any) -> Any:
    return made(Scheduler, folder, **settings)


def let_go(scheduler: Any) -> None:
    """Close as a process that dies does: nothing more is written."""
    if scheduler._timer is not None:
        scheduler._timer.cancel()
    scheduler._thread.close()
    scheduler._file.close()
