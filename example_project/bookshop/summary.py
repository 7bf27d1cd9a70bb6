"""What a person wants to know when the crawl is over."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scrapy import Spider, signals
from scrapy.crawler import Crawler
from twisted.python.failure import Failure

from scrapy_deferkit import step_of
from scrapy_deferkit.report import Report
from scrapy_deferkit.signals import item_dead_lettered

from .database import database_path
from .items import Book, Ebook
from .prices import price_history_path

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from typing_extensions import Self


class Summary:
    """Counts how items end, and prints it when the spider closes."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler
        self._stored: set[str | None] = set()
        self._fallbacks: Counter[str] = Counter()
        self._ebooks: set[str | None] = set()
        self._with_fallback = 0
        self._dropped: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._kept = 0

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Build the extension and connect it."""
        summary = cls(crawler)
        crawler.signals.connect(summary.item_scraped, signals.item_scraped)
        crawler.signals.connect(summary.item_dropped, signals.item_dropped)
        crawler.signals.connect(summary.item_error, signals.item_error)
        crawler.signals.connect(summary.item_dead_lettered, item_dead_lettered)
        crawler.signals.connect(summary.spider_closed, signals.spider_closed)
        return summary

    def item_scraped(self, item: Book) -> None:
        """Count a book that has been stored."""
        self._stored.add(item.upc)
        if isinstance(item, Ebook):
            self._ebooks.add(item.upc)
        fallbacks = item.fallbacks()
        self._with_fallback += bool(fallbacks)
        self._fallbacks.update(fallbacks)

    def item_dropped(self, exception: BaseException) -> None:
        """Count a book that was dropped, by the reason."""
        self._dropped[str(exception)] += 1

    def item_error(self, item: Any, failure: Failure) -> None:
        """Count a book that failed, by the step and the reason, and say which."""
        error = failure.value
        assert error is not None
        where = f"at {step_of(error) or 'a pipeline'}: {error or type(error).__name__}"
        self._failed[where] += 1
        logger.warning("A book failed %s (%s)", where, getattr(item, "url", item))

    def item_dead_lettered(self) -> None:
        """Count a book that failed and is kept."""
        self._kept += 1

    def spider_closed(self, spider: Spider, reason: str) -> None:
        """Print the add-on's report, unless the log has it, and the summary."""
        report, level = self._crawler.get_extension(Report), self._crawler.settings["LOG_LEVEL"]
        if report is not None and logging.getLevelName(level) > logging.INFO:
            print(f"\n{report.text()}", flush=True)
        arguments = getattr(spider, "arguments", {})
        print(self.text(getattr(spider, "lost_pages", 0), arguments, reason), flush=True)

    def text(self, lost_pages: int, arguments: Mapping[str, str], reason: str) -> str:
        """Give the summary as text."""
        lines = [
            f"\nBooks stored        {len(self._stored):5}",
            f"  of them e-books   {len(self._ebooks):5}",
            f"  with a fallback   {self._with_fallback:5}{_listed(self._fallbacks)}",
            f"Books dropped       {self._dropped.total():5}{_listed(self._dropped)}",
            f"Books failed        {self._failed.total():5}",
            *(f"{count:12}  {where}" for where, count in self._failed.most_common()),
            f"Pages not to be had {lost_pages:5}",
            f"Services asked again{self._times('retried'):5}{_listed(self._service_troubles())}",
        ]
        if self._stored:
            lines.append(f"The data is in {database_path(self._crawler)} (SQLite, table books)")
        history = price_history_path(self._crawler)
        if history.exists():
            lines.append(f"The prices so far are in {history} (JSON, a line each)")
        if self._kept:
            given = "".join(f" -a {shlex.quote(f'{k}={v}')}" for k, v in arguments.items())
            lines += [
                f"Dead letters kept   {self._kept:5}   to look at, edit or delete, and to replay:",
                "    scrapy deferkit dead-letters",
                f"    scrapy deferkit replay books{given}",
            ]
        if reason != "finished":
            lines.append(f"The crawl ended before its time: {reason}")
        return "\n".join(lines)

    def _service_troubles(self) -> Counter[str]:
        """Give what the policies around the services count."""
        counts = Counter(
            {
                "no answer in time": self._times("timed_out"),
                "given up": self._times("gave_up"),
                "not asked, since it is down": self._times("rejected"),
            }
        )
        return +counts

    def _times(self, what: str) -> int:
        """Count *what* over all policies, each of which has a stat of its own."""
        stats = self._crawler.stats
        assert stats is not None
        return sum(
            value
            for name, value in stats.get_stats().items()
            if name.startswith("deferkit/") and name.endswith(f"/{what}")
        )


def _listed(counts: Counter[str]) -> str:
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    return f"   {listed}" if listed else ""
