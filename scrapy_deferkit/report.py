"""The report at the end of a crawl: what became of the items, and where the time went."""

from __future__ import annotations

import io
import logging
import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from scrapy import signals
from scrapy.exceptions import NotConfigured
from scrapy.utils.project import inside_project

from ._config import Config
from ._imports import import_in_thread
from ._letterbox import default_url
from .exceptions import step_of, text_of
from .stats import StepFigures, step_stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.box import Box
    from rich.table import Table
    from scrapy.crawler import Crawler
    from scrapy.http import Response
    from twisted.python.failure import Failure
    from typing_extensions import Self

logger = logging.getLogger(__name__)

_DRAWN_BY = ("rich.box", "rich.console", "rich.table", "rich.text")
_MOST_KINDS = 200
_WIDTH = 100
_NUMBER = {"justify": "right"}


class Report:
    """An extension that logs one table when the spider closes, where ``DEFERKIT_REPORT`` is on.

    It has the items that were scraped, dropped and failed; the tree of all steps in the order of
    execution, each with its counts, its share of the time and its slowest item; and the commonest
    failure of each step, with the page of one such item.
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
        """Give the report as it is now, at most 100 columns wide."""
        count = self._crawler.stats.get_value
        name = getattr(self._crawler.spider, "name", None) or "the crawl"
        scraped, dropped = count("item_scraped_count", 0), count("item_dropped_count", 0)
        kept = count("deferkit/items/dead_lettered", 0) + count("deferkit/replay/failed", 0)
        parts = [f"Items of {name}: {scraped} scraped, {dropped} dropped, {self._failed} failed"]
        if kept:
            parts.append(f"{kept} kept: scrapy deferkit dead-letters{self._where(name)}")
        figures = [step for step in step_stats(self._crawler) if step.entered]
        if figures:
            parts.append(_table_of_steps(figures))
        if self._kinds:
            parts.append(self._table_of_failures())
        return "\n".join(parts)

    def _where(self, spider: str) -> str:
        """Tell what the command needs to find the dead letters where there is no project."""
        if inside_project():
            return ""
        is_default = not self._crawler.settings["DEFERKIT_DEAD_LETTERS_URL"]
        return f" --url {shlex.quote(default_url(spider)) if is_default else 'URL'}"

    def _table_of_failures(self) -> str:
        # By type: messages often differ with the item, and 30 of one type are no 30 kinds.
        types: Counter[tuple[str, str]] = Counter()
        commonest: dict[tuple[str, str], tuple[str, int]] = {}
        for (step, error), number in self._kinds.most_common():
            kind = (step, error.partition(":")[0])
            types[kind] += number
            commonest.setdefault(kind, (error, number))
        rows: dict[str, tuple[str, str]] = {}
        for (step, name), total in types.most_common():
            error, number = commonest[step, name]
            told = error if number == total else error.replace(":", ", for example:", 1)
            text = f"{step}: {told}\n{self._examples[step, error]}"
            rows.setdefault(step, (str(total), text))
        return _drawn({"times": _NUMBER, "commonest failure of each step": {}}, [*rows.values()])


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
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    number, unit = (seconds * 1000, "ms") if seconds < 0.9995 else (seconds, "s")
    return f"{number:.{int(number < 99.95)}f} {unit}"


class _Branch(NamedTuple):
    """A step in the tree of all steps."""

    name: str
    share: float
    step: StepFigures


def _tree(figures: Iterable[StepFigures]) -> Iterator[_Branch]:
    """Yield the steps in the order of execution, each under the stack that it is a step of.

    A step's share of the time is part of its stack's. What steps of a stack that run side by side
    take is more than the stack does: its share is divided among them.
    """
    steps = [*figures]
    # A pipeline stands for the stack that it is.
    places = {place: step for step in steps for place in (step.stack, step.path) if place}
    below: dict[str, list[tuple[str, StepFigures]]] = {}
    for step in steps:
        place, name = step.path, step.path
        while "/" in place:
            place = place.rpartition("/")[0]
            if place in places:
                name = step.path[len(place) + 1 :]
                break
        else:
            place = ""
        parent = places[place].path if place else ""
        below.setdefault(parent, []).append((name, step))

    def walk(parent: str, depth: int, share: float, total: float) -> Iterator[_Branch]:
        branches = below.get(parent, [])
        total = max(total, sum(step.total for _, step in branches))
        for name, step in branches:
            its = share * step.total / total if total else 0.0
            if step.stack not in ("", name):
                name = f"{name} ({step.stack})"  # noqa: PLW2901
            yield _Branch("  " * depth + name, its, step)
            yield from walk(step.path, depth + 1, its, step.total)

    return walk("", 0, 1.0, 0.0)


_NOT_OK = ("dropped", "failed", "cancelled", "retried")


def _table_of_steps(figures: Iterable[StepFigures]) -> str:
    numbers = dict.fromkeys(("in", "time", "p50", "p95", "slowest"), _NUMBER)
    rows = [
        (
            name,
            str(step.entered),
            f"{share:.0%}",
            *map(_in_time, (step.p50, step.p95, step.longest)),
            ", ".join(f"{vars(step)[what]} {what}" for what in _NOT_OK if vars(step)[what]),
        )
        for name, share, step in _tree(figures)
    ]
    return _drawn({"step": {}, **numbers, "not ok": {}}, rows)


def _drawn(columns: Mapping[str, Mapping[str, Any]], rows: Iterable[Sequence[str]]) -> str:
    """Draw a table in plain text, no wider than :data:`_WIDTH`."""
    from rich.box import Box
    from rich.console import Console

    plain = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
    drawn = table(plain, columns, rows)
    drawn.show_edge, drawn.padding = False, (0, 1, 0, 0)
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=False, width=_WIDTH, color_system=None, legacy_windows=False
    )
    console.print(drawn)
    return "\n".join(map(str.rstrip, out.getvalue().splitlines()))


def table(
    box: Box, columns: Mapping[str, Mapping[str, Any]], rows: Iterable[Sequence[str]]
) -> Table:
    """Return a table whose *columns* have a name and the options that rich has for one."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box)
    for name, options in columns.items():
        drawn.add_column(name, **{"overflow": "fold", **options})
    for row in rows:
        # As Text: what a page has put into an error is no markup.
        drawn.add_row(*map(Text, row))
    return drawn


def printable(text: str) -> str:
    """Escape what would move the cursor, colour the terminal, or begin another column."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
