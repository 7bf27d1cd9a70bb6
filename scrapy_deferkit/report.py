"""The report at the end of a crawl: what became of the items, and where the time went."""

from __future__ import annotations

import io
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from scrapy import signals
from scrapy.exceptions import NotConfigured

from ._config import Config
from ._imports import import_in_thread
from .exceptions import step_of, text_of
from .stats import StepFigures, step_stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.box import Box
    from rich.table import Table
    from scrapy.crawler import Crawler
    from scrapy.http import Response
    from twisted.python.failure import Failure
    from typing_extensions import Self

logger = logging.getLogger(__name__)

_DRAWN_BY = ("rich.box", "rich.console", "rich.table", "rich.text")
_MOST_KINDS = 200


class Report:
    """An extension that logs one table when the spider closes, where ``DEFERKIT_REPORT`` is on.

    It has the items that were scraped, dropped and failed; for each step its counts, its share of
    the time and its slowest item; and the commonest failure of each step, with the page of one such
    item.
    """

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}
        self._failed = 0
        crawler.signals.connect(self._on_error, signals.item_error)
        crawler.signals.connect(self._on_closed, signals.spider_closed)

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Self:
        """Build the extension; raises :exc:`~scrapy.exceptions.NotConfigured` where it is off."""
        if not Config.from_settings(crawler.settings).report:
            raise NotConfigured
        return cls(crawler)

    def _on_error(self, failure: Failure, response: Response | Failure | None) -> None:
        self._failed += 1
        error = failure.value
        assert error is not None
        step = step_of(error) or "(unknown)"
        kind = (step, _described(error))
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            kind = (step, type(error).__name__)  # messages that all differ say less
        self._kinds[kind] += 1
        self._examples.setdefault(kind, _url_of(response))

    async def _on_closed(self) -> None:
        await import_in_thread(*_DRAWN_BY)
        logger.info("%s", self.text(), extra={"spider": self._crawler.spider})

    def text(self) -> str:
        """Give the report as it is now."""
        count = self._crawler.stats.get_value
        scraped, dropped = count("item_scraped_count", 0), count("item_dropped_count", 0)
        figures = [step for step in step_stats(self._crawler) if step.entered]
        parts = [f"Items: {scraped} scraped, {dropped} dropped, {self._failed} failed"]
        if figures:
            parts.append(_table_of_steps(figures))
        if self._kinds:
            parts.append(self._table_of_failures())
        return "\n".join(parts)

    def _table_of_failures(self) -> str:
        rows: dict[str, tuple[str, ...]] = {}
        for (step, error), number in self._kinds.most_common():
            rows.setdefault(step, (step, str(number), error, self._examples[step, error]))
        head = ("commonest failure in", "times", "error", "for instance")
        return _drawn(head, list(rows.values()))


def _described(error: BaseException) -> str:
    lines = text_of(error).split("\n")
    text = f"{type(error).__name__}: {next(filter(str.strip, lines), '').strip()}"
    text = printable(text[:100])
    return text if len(text) <= 80 else f"{text[:79]}…"


def _url_of(response: Any) -> str:
    """Give the page of an item; that of an errback's stands in the failure's request."""
    if response is None:
        return "no page: from start()"
    request = getattr(response, "request", None)
    return getattr(response, "url", None) or getattr(request, "url", None) or "unknown"


def _in_time(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _table_of_steps(figures: list[StepFigures]) -> str:
    # Times of nested steps are part of their stack's: shares are of what the pipelines took.
    total = sum(step.total for step in figures if "/" not in step.path)
    counts = ["ok", "dropped", "failed", "retried"]
    if any(step.cancelled for step in figures):
        counts.insert(3, "cancelled")
    rows = [
        (
            step.path,
            str(step.entered),
            *(str(getattr(step, name)) for name in counts),
            f"{step.total / total:.0%}" if total else "-",
            *map(_in_time, (step.p50, step.p95, step.longest)),
        )
        for step in sorted(figures, key=lambda step: step.path)
    ]
    return _drawn(("step", "in", *counts, "time", "p50", "p95", "slowest"), rows)


def _drawn(head: tuple[str, ...], rows: Sequence[Sequence[str]]) -> str:
    """Draw a table in plain text; all but texts are numbers."""
    from rich import box
    from rich.console import Console

    texts = ("step", "commonest failure in", "error", "for instance")
    columns = {name: {} if name in texts else {"justify": "right"} for name in head}
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=False, width=160, color_system=None, legacy_windows=False
    )
    console.print(table(box.ASCII2, columns, rows))
    return out.getvalue().rstrip()


def table(
    box: Box, columns: Mapping[str, Mapping[str, Any]], rows: Iterable[Sequence[str]]
) -> Table:
    """Return a table whose *columns* have a name and the options that rich has for one."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box)
    for name, options in columns.items():
        drawn.add_column(name, overflow="fold", **options)
    for row in rows:
        # As Text: what a page has put into an error is no markup.
        drawn.add_row(*map(Text, row))
    return drawn


def printable(text: str) -> str:
    """Escape what would move the cursor, colour the terminal, or begin another column."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
