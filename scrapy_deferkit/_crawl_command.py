"""``scrapy deferkit crawl``: Scrapy's own, with an exit code that says how the items fared."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

from scrapy import signals
from scrapy.addons import AddonManager
from scrapy.commands.crawl import Command as ScrapyCrawlCommand
from scrapy.exceptions import UsageError
from scrapy.spiderloader import get_spider_loader
from scrapy.utils.project import inside_project
from twisted.internet.defer import Deferred

from ._scrapy import crawler_for
from .exceptions import DeferKitError, text_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from rich.text import Text
    from scrapy.crawler import Crawler
    from scrapy.settings import Settings
    from twisted.python.failure import Failure

logger = logging.getLogger(__name__)

DELIVERED, SOME_FAILED, CLOSED, DID_NOT_START = range(4)
"""The exit codes."""

_OUTCOMES = ("delivered", "some_failed", "closed", "did_not_start")
_COMPLETE = frozenset(
    {
        "finished",
        # Limits that the settings have asked for.
        *("closespider_itemcount", "closespider_pagecount", "closespider_pagecount_no_item"),
        *("closespider_timeout", "closespider_timeout_no_item"),
    }
)
_COUNTED = {
    signals.response_received: "responses",
    signals.item_scraped: "scraped",
    signals.item_dropped: "dropped",
    signals.item_error: "failed",
    signals.spider_error: "callback_errors",
}
_STATS = {
    "kept": "deferkit/items/dead_lettered",
    "not_kept": "deferkit/items/not_dead_lettered",
    "set_aside": "deferkit/job/set_aside",
    "item_errors": "deferkit/items/errors",
}


class CrawlCommand(ScrapyCrawlCommand):
    """``scrapy crawl``, which tells a person and a program how the items have fared."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.settings: Settings = settings

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of ``scrapy crawl``, and ``--summary``."""
        super().add_options(parser)
        parser.add_argument(
            "--summary", metavar="FILE", type=Path, help="write how the crawl has ended, as JSON"
        )
        # Argparse exits with 2, which has a meaning here.
        parser.error = partial(_refuse, None)  # type: ignore[method-assign]

    def process_options(self, args: list[str], opts: argparse.Namespace) -> None:
        """Set settings and load the spider; exits with 3 if that cannot be done."""
        try:
            if opts.summary is not None:  # what an earlier crawl has left there is not of this one
                _write(opts.summary, {"outcome": "running", "exit_code": None})
        except OSError as error:
            _refuse(None, f"--summary {opts.summary}: cannot be written: {error}")
        try:
            self._process_options(args, opts)
        except UsageError as error:
            _refuse(opts.summary, str(error))
        except Exception as error:  # a spider's module does not import, say
            traceback.print_exc()
            _refuse(opts.summary, f"the spider cannot be loaded: {_told(error)}")

    def _process_options(self, args: list[str], opts: argparse.Namespace) -> None:
        if unknown := [arg for arg in args if arg.startswith("-")]:
            raise UsageError(
                f"there is no option {unknown[0]} here: see scrapy deferkit crawl --help"
            )
        if len(args) != 1 or not args[0].strip():
            raise UsageError(
                f"one SPIDER is expected, as in scrapy deferkit crawl books; got {' '.join(args)!r}"
            )
        if not inside_project():
            raise UsageError("there is no project here: go to one")
        super().process_options(args, opts)
        AddonManager.load_pre_crawler_settings(self.settings)
        loader = get_spider_loader(self.settings)
        if args[0] not in loader.list():
            known = ", ".join(loader.list()) or "none"
            raise UsageError(f"there is no spider {args[0]!r} in this project; there are: {known}")

    def run(self, args: list[str], opts: argparse.Namespace) -> None:
        """Crawl, and tell how it went."""
        process = self.crawler_process
        assert process is not None
        began = monotonic()
        crawler = crawler_for(self, args[0])
        watch = Watch(crawler)
        try:
            with _live(watch):
                _outcome_of(process.crawl(crawler, **opts.spargs), watch)
                process.start()
        except Exception as error:
            watch.on_failed(error)
        self.exitcode = watch.exit_code
        if opts.summary is not None:
            seconds = round(monotonic() - began, 3)
            _write(opts.summary, {**watch.summary(), "seconds": seconds})
        _say(watch.text())


class Watch:
    """How the items of a crawl fare."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler
        self._name = getattr(crawler.spidercls, "name", None) or crawler.spidercls.__name__
        self._began = monotonic()
        self._has_opened = False
        self._reason: str | None = None
        self._error: BaseException | None = None
        self._counts: Counter[str] = Counter()
        for signal in _COUNTED:
            crawler.signals.connect(self._count, signal)
        crawler.signals.connect(self._on_opened, signals.spider_opened)
        crawler.signals.connect(self._on_closed, signals.spider_closed)

    def _count(self, signal: Any) -> None:
        self._counts[_COUNTED[signal]] += 1

    def _on_opened(self) -> None:
        self._has_opened = True

    def _on_closed(self, reason: str) -> None:
        self._reason = reason

    def on_failed(self, error: BaseException) -> None:
        """Log the *error* of the crawl, and remember it."""
        self._error = error
        logger.error("The crawl has failed", exc_info=error)

    @property
    def exit_code(self) -> int:
        """What the worst thing that has happened makes of the exit code."""
        if not self._has_opened:
            return DID_NOT_START
        if self._reason not in _COMPLETE:
            return CLOSED
        figures = self._figures()
        has_trouble = any(figures[name] for name in ("failed", "set_aside", "item_errors"))
        return SOME_FAILED if has_trouble else DELIVERED

    def _figures(self) -> dict[str, int]:
        stats = self._crawler.stats if self._has_opened else None
        return {
            **{name: self._counts[name] for name in _COUNTED.values()},
            **{name: stats.get_value(key, 0) if stats else 0 for name, key in _STATS.items()},
        }

    def summary(self) -> dict[str, Any]:
        """Return how the crawl has ended, for programs."""
        code = self.exit_code
        why = {"error": self._why()} if code == DID_NOT_START else {}
        return {
            "spider": self._name,
            "outcome": _OUTCOMES[code],
            "exit_code": code,
            "reason": self._reason,
            **why,
            **self._figures(),
        }

    def text(self) -> str:
        """Return how the crawl has ended, in one line."""
        if not self._has_opened:
            return f"{self._name} did not start: {self._why()}"
        figures = self._figures()
        parts = ["{scraped} delivered, {dropped} dropped, {failed} failed".format(**figures)]
        if figures["kept"]:
            parts.append(f"{figures['kept']} kept: scrapy deferkit dead-letters")
        if figures["not_kept"]:
            parts.append(f"{figures['not_kept']} not kept: they are in the log")
        if figures["set_aside"]:
            parts.append(f"{figures['set_aside']} set aside: scrapy deferkit job JOBDIR")
        if figures["callback_errors"]:
            parts.append(
                f"errors in callbacks, whose items are missing: {figures['callback_errors']}"
            )
        if figures["item_errors"]:
            parts.append(f"errors outside the pipelines: {figures['item_errors']}")
        if self._reason != "finished":
            parts.append(f"closed early ({self._reason or 'by force'})")
        return f"{self._name}: {'; '.join(parts)}"

    def _why(self) -> str:
        return "the log says why" if self._error is None else _told(self._error)

    def line(self) -> Text:
        """Return how it stands now, for a terminal."""
        from rich.text import Text

        names = ("responses", "scraped", "dropped", "failed")
        counts = ", ".join(f"{self._counts[name]} {name}" for name in names)
        minutes, seconds = divmod(int(monotonic() - self._began), 60)
        text = f"{self._name}: {counts}, {minutes}:{seconds:02}"
        return Text(text, no_wrap=True, overflow="ellipsis")


def _outcome_of(crawl: Any, watch: Watch) -> None:
    """Have *watch* learn of the error that *crawl* ends with, before asyncio or Twisted logs it."""

    def failed(failure: Failure) -> None:
        assert failure.value is not None
        watch.on_failed(failure.value)

    if isinstance(crawl, Deferred):
        crawl.addErrback(failed)
        return

    def done(task: Any) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            watch.on_failed(error)

    crawl.add_done_callback(done)


@contextmanager
def _live(watch: Watch) -> Iterator[None]:
    """Show how the crawl stands, on a terminal beneath the log."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, soft_wrap=True)  # the log keeps its lines
    # What the spider prints into a file or a pipe goes there.
    to_terminal = sys.stdout.isatty()
    with Live(
        console=console,
        get_renderable=watch.line,
        redirect_stdout=to_terminal,
        transient=True,
    ):
        yield


def _told(error: BaseException) -> str:
    kind = "" if isinstance(error, DeferKitError) else f"{type(error).__name__}: "
    return f"{kind}{text_of(error)}"


def _refuse(summary: Path | None, message: str) -> NoReturn:
    if summary is not None:
        ended = {"outcome": _OUTCOMES[DID_NOT_START], "exit_code": DID_NOT_START, "error": message}
        _write(summary, ended)
    _say(f"scrapy deferkit crawl: error: {message}")
    raise SystemExit(DID_NOT_START)


def _write(path: Path, summary: dict[str, Any]) -> None:
    """Write *summary* whole or not at all: who reads it may do so at any time."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")
