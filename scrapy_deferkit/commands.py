"""``scrapy deferkit``: look at dead letters, correct and replay them; look at jobs.

Scrapy imports this for each of its commands, so what is slow to import is imported where it is
used.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
from argparse import ArgumentTypeError
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from functools import cache, cached_property, partial
from importlib import import_module
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from pkgutil import iter_modules
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from scrapy import signals
from scrapy.addons import AddonManager
from scrapy.commands import BaseRunSpiderCommand, ScrapyCommand, ScrapyHelpFormatter
from scrapy.crawler import Crawler
from scrapy.exceptions import UsageError
from scrapy.settings import default_settings
from scrapy.spiderloader import get_spider_loader
from scrapy.utils.conf import build_component_list
from scrapy.utils.misc import load_object
from scrapy.utils.project import inside_project
from scrapy.utils.spider import iter_spider_classes

from ._crawl import crawl_of
from ._crawl_command import CrawlCommand
from ._job_command import add_job_options, run_job_command
from ._letterbox import default_folder, default_url
from .codec import Codec, CodecError, UnstorableValue
from .exceptions import DeadLettersError, DeferKitError, StackConfigError, counted, text_of
from .gate import ItemGate
from .itemprocessor import DeferKitItemProcessor
from .replay import ReplayOrder
from .report import printable, table
from .signals import item_dead_lettered

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from types import ModuleType

    from scrapy import Spider
    from scrapy.settings import BaseSettings, Settings

    from .deadletters import DeadLetter, DeadLetters, Selection

_ADDON = 'ADDONS = {"scrapy_deferkit.Addon": 500}'
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_COLUMNS = ("id", "spider", "arguments", "step", "error", "attempts", "failed", "page", "notes")
# What each column needs at least on a terminal, the most important first.
_LEAST = {"id": 40, "error": 24, "step": 12, "failed": 9, "attempts": 8, "notes": 12}
_LEAST |= {"spider": 8, "page": 16, "arguments": 12}
_TABLE = 1000
_LOOKS: dict[str, dict[str, Any]] = {
    "attempts": {"justify": "right"},
    "notes": {"style": "red"},
}


class Command(BaseRunSpiderCommand):
    """``scrapy deferkit`` and its subcommands."""

    # Only a replay and a crawl need a crawler process; process_options() says so.
    requires_crawler_process = False

    def __init__(self) -> None:
        super().__init__()
        self._codec = cache(lambda spider: Codec.from_settings(self._settings_of(spider)))

    @cached_property
    def _crawl(self) -> CrawlCommand:
        return CrawlCommand(self._its_settings)

    def syntax(self) -> str:
        """Give the syntax, without the name of the command."""
        return "<crawl|dead-letters|replay|job> [options]"

    def short_desc(self) -> str:
        """Say in a line what the command is for."""
        return "List, correct and replay items that failed; look at a job"

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the subcommands, and to each its options and Scrapy's."""
        kinds = parser.add_subparsers(
            dest="what", prog="scrapy deferkit", metavar="crawl|dead-letters|replay|job"
        )
        add = partial(
            kinds.add_parser, formatter_class=ScrapyHelpFormatter, conflict_handler="resolve"
        )
        crawl = add(
            "crawl",
            usage="scrapy deferkit crawl SPIDER [options]",
            help="crawl, with an exit code that says how the items fared",
            description="Crawl as scrapy crawl does. The exit code is 0 if all items were "
            "delivered or dropped, 1 if some failed, 2 if the crawl was closed early, 3 if it did "
            "not start.",
        )
        self._crawl.add_options(crawl)
        letters = add(
            "dead-letters",
            usage="scrapy deferkit dead-letters [list | show ID | edit ID | delete] [options]",
            help="list items that failed, show, edit or delete them",
            description="List items that failed, show one whole, edit one, or delete some.",
        )
        ScrapyCommand.add_options(self, letters)
        _add_filters(letters, "list and delete")
        letters.add_argument(
            "--spider", type=_text, metavar="NAME", help="only those of this spider"
        )
        letters.add_argument("--json", action="store_true", help="JSON, for programs: list, show")
        letters.add_argument("--all", action="store_true", help="delete: no filter is needed")
        replay = add(
            "replay",
            usage="scrapy deferkit replay SPIDER [options]",
            help="run the items of a spider that failed through its pipelines again",
            description="Run the items of a spider that failed through its pipelines again.",
        )
        super().add_options(replay)
        _add_filters(replay, "replayed")
        replay.add_argument(
            "--lease",
            type=_seconds,
            default=300.0,
            metavar="SECONDS",
            help="how long no other replay gets an item of this one, if this one dies (300)",
        )
        replay.add_argument("--feeds", action="store_true", help="write the FEEDS of the project")
        job = add(
            "job",
            usage="scrapy deferkit job JOBDIR [options]",
            help="show what a job holds, and put back requests that it has set aside",
            description="Show what the job in JOBDIR holds, or put back what it has set aside.",
        )
        ScrapyCommand.add_options(self, job)
        add_job_options(job)

    def process_options(self, args: list[str], opts: argparse.Namespace) -> None:
        """Set settings, and refuse what makes no sense.

        Raises :exc:`~scrapy.exceptions.UsageError`.
        """
        if opts.what is None:
            raise UsageError
        if opts.what == "crawl":
            self._crawl.process_options(args, opts)
            self.requires_crawler_process = True
            return
        for arg in args:
            if arg.startswith("-"):
                raise UsageError(
                    f"there is no option {arg} here; options stand behind the subcommand, as in "
                    "scrapy deferkit replay SPIDER --limit 10"
                )
        assert self.settings is not None
        if opts.what != "replay":
            ScrapyCommand.process_options(self, args, opts)
        else:
            if not opts.feeds:
                # Else the project's would be written beside those of -o and -O.
                self.settings.setdict({"FEEDS": {}, "FEED_URI": None}, "cmdline")
            super().process_options(args, opts)
            self.requires_crawler_process = True
        if opts.what == "job":
            return
        if opts.url:
            self.settings.set("DEFERKIT_DEAD_LETTERS_URL", opts.url, "cmdline")
        elif not inside_project():
            raise UsageError("there is no project here: go to one, or say where with --url URL")

    def run(self, args: list[str], opts: argparse.Namespace) -> None:
        """Do what is asked for; the exit code tells how it went."""
        if isinstance(sys.stdout, TextIOWrapper):  # a terminal may know ASCII alone
            sys.stdout.reconfigure(errors="backslashreplace")
        if opts.what == "crawl":
            self._crawl.crawler_process = self.crawler_process
            self._crawl.run(args, opts)
            self.exitcode = self._crawl.exitcode
            return
        try:
            if not all(map(str.strip, args)):
                raise UsageError(f"{opts.what} is given an empty argument{_UNSET}")
            if opts.what == "replay":
                self._replay(args, opts)
            elif opts.what == "job":
                if len(args) != 1:
                    raise UsageError("job needs one JOBDIR, as in scrapy deferkit job crawls/books")
                self.exitcode = run_job_command(
                    Path(args[0]),
                    as_json=opts.json,
                    retries=opts.retry,
                    asks_whether_finished=opts.finished,
                )
            else:
                action, *words = args or ["list"]
                actions = {
                    "list": self._list,
                    "show": self._show,
                    "edit": self._edit,
                    "delete": self._delete,
                }
                if action not in actions:
                    raise UsageError(
                        f"there is no dead-letters {action}; there are {', '.join(actions)}"
                    )
                actions[action](words, opts)
            sys.stdout.flush()
        except DeferKitError as error:
            _say(f"Error: {error}")
            self.exitcode = 1
        except BrokenPipeError:  # such as | head; Python would complain once more as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.exitcode = 1

    # ------------------------------------------------------------------------------ dead letters

    def _list(self, words: list[str], opts: argparse.Namespace) -> None:
        _refuse(words, opts, "list", "all")
        places = self._places(opts)
        is_table = sys.stdout.isatty() and not opts.json
        limit = _screenful() if is_table and opts.limit is None else opts.limit
        letters = chain.from_iterable(store.select(meant, limit) for store, meant in places)
        rows = ((letter, self._notes(letter)) for letter in islice(letters, limit))
        if opts.json:
            for letter, notes in rows:
                _put(json.dumps(_described(letter, notes)))
            return
        first = next(rows, None)
        if first is None:
            _say(self._none(opts))
        elif is_table:
            shown = _print_tables(chain([first], rows))
            total = sum(store.count(meant) for store, meant in places)
            more = "" if shown == total else f"; {shown:,} are shown, --limit N shows more"
            _say(f"{counted(total, 'dead letter')}{more}")
        else:
            _put("\t".join(_COLUMNS))
            for letter, notes in chain([first], rows):
                _put("\t".join(_cells(letter, notes).values()))

    def _show(self, words: list[str], opts: argparse.Namespace) -> None:
        _, letter = self._one(words, opts, "show")
        described = _described(letter, self._notes(letter))
        if opts.json:
            _put(json.dumps({**described, "traceback": letter.traceback}))
            return
        for name, value in described.items():
            if name not in ("item", "error") and value not in (None, {}):
                shown = json.dumps(value) if isinstance(value, dict) else str(value)
                _put(f"{name + ':':<17}{printable(shown)}")
        for title, text in (
            ("error", letter.error),
            ("item", _pretty(letter.item)),
            # Kept once for all letters with this error, so its message may be of another.
            ("traceback of such an error", letter.traceback.rstrip()),
        ):
            _put(f"\n{title}:")
            for line in text.splitlines():
                _put(f"  {printable(line)}")

    def _edit(self, words: list[str], opts: argparse.Namespace) -> None:
        store, letter = self._one(words, opts, "edit", "json")
        codec = self._codec(letter.spider)
        before = _pretty(letter.item) + "\n"
        handle, name = tempfile.mkstemp(".json", "deferkit-")
        os.close(handle)
        path = Path(name)
        path.write_text(before, encoding="utf-8")
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        try:
            try:
                ended = subprocess.run([*shlex.split(editor), name], check=False).returncode
            except OSError as error:
                raise DeadLettersError(
                    f"the editor {editor} does not run ({error}): set VISUAL or EDITOR to one"
                ) from error
            if ended:
                raise DeadLettersError(f"{editor} ended with {ended}")
            after = path.read_text(encoding="utf-8")
            if after != before:
                encoded = codec.encode(codec.decode(after))
                store.edit(letter.id, encoded.text, encoded.item_type)
        except (DeferKitError, OSError, ValueError) as error:
            raise DeadLettersError(
                f"{error}\nThe dead letter is as it was. Your text is in {name}"
            ) from error
        path.unlink()
        changed = f"The dead letter {letter.id} is corrected."
        _say("Nothing changed." if after == before else changed)

    def _delete(self, words: list[str], opts: argparse.Namespace) -> None:
        opts.id = [*opts.id, *words]
        _refuse([], opts, "delete", "json")
        if not opts.all and not (opts.spider or opts.id or _has_filter(opts)):
            raise UsageError("delete what? Give a filter, or --all")
        number, left = 0, opts.limit
        for store, selection in self._places(opts):
            deleted = store.delete(selection, left)
            number, left = number + deleted, None if left is None else left - deleted
        _put(f"{counted(number, 'dead letter')} deleted.")
        if not number and not opts.all:
            _say(self._none(opts))

    def _none(self, opts: argparse.Namespace) -> str:
        """Say that the filters match nothing, and what they were to choose from."""
        from .deadletters import DeadLetters

        urls = [opts.url] if opts.url else self._urls(None)
        return _none_of(sum(DeadLetters(url).count() for url in urls))

    def _one(
        self, words: list[str], opts: argparse.Namespace, action: str, *wrong: str
    ) -> tuple[DeadLetters, DeadLetter]:
        """Give the one letter that is asked for, and the store that it is in."""
        if len(words) != 1:
            raise UsageError(f"{action} needs one ID: scrapy deferkit dead-letters {action} ID")
        if opts.id or opts.limit is not None or _has_filter(opts):
            raise UsageError(f"{action} takes an ID and no filters")
        _refuse([], opts, action, "all", *wrong)
        opts.id = words
        for store, selection in self._places(opts):
            for letter in store.select(selection):
                return store, letter
        raise DeadLettersError(f"There is no dead letter {words[0]}.")

    def _places(self, opts: argparse.Namespace) -> list[tuple[DeadLetters, Selection]]:
        return _places(opts, opts.spider, [opts.url] if opts.url else self._urls(opts.spider))

    def _urls(self, spider: str | None) -> list[str]:
        names = self._spiders() if spider is None else [spider]
        return list(dict.fromkeys(map(self._url_of, names)))

    def _url_of(self, spider: str) -> str:
        return self._settings_of(spider)["DEFERKIT_DEAD_LETTERS_URL"] or default_url(spider)

    def _spiders(self) -> list[str]:
        """Give the spiders of the project, and those others that have left a file."""
        files = default_folder().glob("*.sqlite")
        return sorted({*self._classes, *(unquote(file.stem) for file in files)})

    @cached_property
    def _classes(self) -> dict[str, type[Spider]]:
        """The spiders of the project that can be imported, by name."""
        settings = self._its_settings
        AddonManager.load_pre_crawler_settings(settings)
        try:
            loader = get_spider_loader(settings)
            return {name: loader.load(name) for name in loader.list()}
        except Exception:  # of one of their modules: each by itself
            modules = _modules(settings.getlist("SPIDER_MODULES"))
            return {cls.name: cls for module in modules for cls in iter_spider_classes(module)}

    @property
    def _its_settings(self) -> Settings:
        assert self.settings is not None
        return self.settings

    def _settings_of(self, spider: str) -> BaseSettings:
        """Give the settings of *spider*; those of the project where there is no such spider."""
        settings = self._its_settings.copy()
        if spider in self._classes:
            self._classes[spider].update_settings(settings)
        return settings

    def _notes(self, letter: DeadLetter) -> dict[str, str]:
        """Tell what is wrong with a letter."""
        known = (("problem", letter.problem), ("missing", letter.missing))
        notes = {name: note for name, note in known if note}
        try:
            self._codec(letter.spider).decode(letter.item)
        except UnstorableValue as error:
            notes.setdefault("missing", str(error))
        except CodecError as error:
            notes["unreadable"] = str(error)
        return notes

    # ------------------------------------------------------------------------------------ replay

    def _replay(self, words: list[str], opts: argparse.Namespace) -> None:
        if len(words) != 1:
            raise UsageError("replay needs one SPIDER, as in scrapy deferkit replay SPIDER")
        from .deadletters import Selection

        settings, process = self._its_settings, self.crawler_process
        assert process is not None
        (name,) = words
        try:
            spidercls = process.spider_loader.load(name)
        except KeyError:
            known = ", ".join(process.spider_loader.list()) or "none"
            raise UsageError(
                f"there is no spider {name!r} in this project; there are: {known}"
            ) from None
        always: dict[str, Any] = {
            "JOBDIR": None,
            "DEFERKIT_DEAD_LETTERS": True,
            "DEFERKIT_DEAD_LETTERS_MAX": 0,
            # One whose queue outlives the crawl would add what is in it.
            "SCHEDULER": default_settings.SCHEDULER,
        }
        settings.setdict(always, "cmdline")
        url = _checked(spidercls, settings)["DEFERKIT_DEAD_LETTERS_URL"] or default_url(name)
        places = _places(opts, name, [url])
        meant = [(store, replace(selection, items_only=True)) for store, selection in places]
        total = sum(store.count(selection) for store, selection in meant)
        requests = sum(store.count(selection) for store, selection in places) - total
        if requests:
            _say(
                f"Dead letters of {name} that are of requests stay as they are: {requests}. "
                "scrapy deferkit job JOBDIR --retry puts these back; each names its JOBDIR"
            )
        if opts.limit is not None:
            total = min(total, opts.limit)
        if not total:
            ours = Selection(spider=name, items_only=True)
            _say(_none_of(sum(store.count(ours) for store, _ in places), f" of {name} to replay"))
            return
        ((store, selection),) = meant
        settings.set("DEFERKIT_REPLAY", ReplayOrder(selection, opts.limit, opts.lease), "cmdline")
        crawler = process.create_crawler(_without_start(spidercls))
        tally = _Tally(crawler)
        with _progress(total) as tally.show:
            process.crawl(crawler, **opts.spargs)
            process.start()
        troubles, failed = list(tally.troubles()), tally.ended["failed again"]
        left = total - tally.ended.total()
        if left > 0 and not troubles:
            left = min(left, store.count(selection) - failed)
        if left > 0:
            troubles.append(f"{left} not replayed, or held by another replay")
        if tally.did_not_start:
            _offer_arguments(name, store, selection, opts.spargs)
        _say(", ".join([*(f"{tally.ended[how]} {how}" for how in _ENDS), *troubles]))
        self.exitcode = int(bool(failed or troubles or process.bootstrap_failed))


def _modules(paths: Iterable[str]) -> Iterator[ModuleType]:
    """Yield the modules at and below *paths*; say which cannot be imported."""
    for path in paths:
        try:
            module = import_module(path)
        except Exception as error:
            _say(
                f"Cannot import {path}, so the dead letters of its spiders are looked for where "
                f"the project's settings say: {type(error).__name__}: {text_of(error)}"
            )
            continue
        yield module
        inner = iter_modules(getattr(module, "__path__", ()))
        yield from _modules(f"{path}.{it.name}" for it in inner)


def _without_start(spidercls: type[Spider]) -> type[Spider]:
    """Return *spidercls* with nothing to crawl, whatever it makes of its settings."""

    async def start(_: Spider) -> AsyncIterator[Any]:
        outputs: tuple[Any, ...] = ()
        for output in outputs:
            yield output

    names = ("__module__", "__qualname__", "__doc__")
    same = {name: getattr(spidercls, name) for name in names}
    return type(spidercls.__name__, (spidercls,), {**same, "start": start})


def _offer_arguments(
    name: str, store: DeadLetters, selection: Selection, given: dict[str, str]
) -> None:
    """Say which arguments the spider had as its letters were left, if they are not *given*."""
    for letter in store.select(selection, 1):
        arguments = _parsed(letter.spider_args)
        if isinstance(arguments, dict) and arguments.keys() - given.keys():
            words = (f"-a {shlex.quote(f'{key}={arguments[key]}')}" for key in arguments)
            _say(
                f"The crawl that left the dead letter {letter.id} had arguments; perhaps "
                f"{name} needs them: scrapy deferkit replay {name} {' '.join(words)}"
            )


_ENDS = ("delivered", "dropped", "failed again")


class _Tally:
    """How the letters of a replay have ended: not the items, which they may have children of."""

    def __init__(self, crawler: Crawler) -> None:
        self.ended = crawl_of(crawler).replayed
        self.show: Callable[[int], object] | None = None
        self._reason: str | None = None
        self._crawler = crawler
        for signal in (signals.item_scraped, signals.item_dropped, item_dead_lettered):
            crawler.signals.connect(self._on_end, signal)
        crawler.signals.connect(self._on_closed, signals.spider_closed)

    def _on_end(self) -> None:
        if self.show is not None:
            self.show(self.ended.total())

    def _on_closed(self, reason: str) -> None:
        self._reason = reason

    @property
    def did_not_start(self) -> bool:
        return self._reason is None

    def troubles(self) -> Iterator[str]:
        """Yield what went wrong beside the items that failed."""
        if self.did_not_start:
            yield "the crawl did not start"
            return
        if self._reason != "finished":
            yield f"the crawl was closed early ({self._reason})"
        for key, noun, what in (
            ("replay/not_removed", "letter", "delivered and still there"),
            ("items/not_dead_lettered", "failure", "that could not be kept"),
            ("items/dead_lettered", "new letter", "of items that these have led to"),
            ("items/errors", "error", "outside the pipelines"),
            ("replay/errors", "trouble", "with the store"),
        ):
            number = self._crawler.stats.get_value(f"deferkit/{key}", 0)
            if number:
                yield f"{counted(number, noun)} {what}"


def _checked(spidercls: type[Spider], settings: Settings) -> BaseSettings:
    """Give the settings of a replay with *spidercls*, whose add-ons have run.

    Raises :exc:`~scrapy.exceptions.UsageError` where that crawl would be no replay.
    """
    crawler = Crawler(spidercls, settings)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the crawl itself will say it all again
    try:
        crawler.addons.load_settings(crawler.settings)
    except StackConfigError as error:
        raise UsageError(str(error), print_help=False) from None
    finally:
        logging.disable(level)
    keeps = _is_a(DeferKitItemProcessor, crawler.settings["ITEM_PROCESSOR"])
    enabled = build_component_list(crawler.settings.getwithbase("SPIDER_MIDDLEWARES"))
    begins = any(_is_a(ItemGate, each) for each in enabled)
    if not keeps and not begins:
        raise UsageError(
            f"{spidercls.name} does not keep items, so nothing can be replayed: the add-on is not "
            f"in its settings; add {_ADDON}, and see that DEFERKIT_ENABLED is not False"
        )
    if not keeps:
        raise UsageError(
            f"{spidercls.name} has ITEM_PROCESSOR = {crawler.settings['ITEM_PROCESSOR']!r}, which "
            "keeps no items: set DEFERKIT_FALLBACK_ITEM_PROCESSOR to it, derive it from "
            "DeferKitItemProcessor, or take it out"
        )
    if not begins:
        raise UsageError(
            f"{spidercls.name} has no ItemGate in SPIDER_MIDDLEWARES, which a "
            f"replay begins with: take out what disables it, and see to {_ADDON}"
        )
    return crawler.settings


def _is_a(base: type, path: Any) -> bool:
    component = load_object(path)
    return isinstance(component, type) and issubclass(component, base)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object] | None]:
    """Show a bar on a terminal, beneath the log; give what is told how many have ended."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
    console, to_terminal = Console(stderr=True, soft_wrap=True), sys.stdout.isatty()
    with Progress(*columns, console=console, redirect_stdout=to_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda ended: progress.update(task, completed=ended)


# ------------------------------------------------------------------------------- what is meant


def _add_filters(parser: argparse.ArgumentParser, of: str) -> None:
    group = parser.add_argument_group(f"Which dead letters ({of})")
    group.add_argument("--step", type=_text, help="failed in this step, or in one within it")
    group.add_argument(
        "--error", type=_text, metavar="TEXT", help="TEXT is in the error's type or message"
    )
    for name in ("older", "newer"):
        group.add_argument(
            f"--{name}-than",
            type=_moment,
            metavar="AGE",
            help=f"last failed {'before' if name == 'older' else 'after'} this: 30m, 12h, 7d ago, "
            "or a date such as 2030-12-31 or 2030-12-31T23:59 (UTC)",
        )
    group.add_argument(
        "--id",
        type=_text,
        action="append",
        default=[],
        help="this one; its beginning will do (repeatable)",
    )
    group.add_argument("--limit", type=_whole_number, metavar="N", help="at most so many")
    parser.add_argument(
        "--url",
        type=_text,
        help="where the dead letters are, in the place of DEFERKIT_DEAD_LETTERS_URL",
    )


_UNSET = ": leave it out, or see whether a shell variable is unset"


def _text(text: str) -> str:
    if not text.strip():
        raise ArgumentTypeError(f"it is empty{_UNSET}")
    return text


def _none_of(number: int, of: str = "") -> str:
    """Say that the filters have chosen none of *number* letters."""
    if not number:
        return f"There are no dead letters{of}."
    are = "is" if number == 1 else "are"
    return f"None match: there {are} {counted(number, 'dead letter')}{of}."


def _moment(text: str) -> datetime:
    age = _AGE.fullmatch(text.strip())
    try:
        if age is not None:
            ago = timedelta(seconds=float(age[1]) * _SECONDS[age[2]])
            return datetime.now(timezone.utc) - ago
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        return moment.replace(tzinfo=moment.tzinfo or timezone.utc)
    except (ValueError, OverflowError):
        raise _wrong(text, "an age such as 30m, 12h or 7d, or a date such as 2030-12-31") from None


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise _wrong(text, "a whole number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 1 <= seconds <= _SECONDS["w"]:
        raise _wrong(text, "a number of seconds, from 1 to those of a week,")
    return seconds


def _wrong(text: str, expected: str) -> Exception:
    return ArgumentTypeError(f"{text!r}: {expected} is expected")


_FILTERS = ("step", "error", "older_than", "newer_than")


def _has_filter(opts: argparse.Namespace) -> bool:
    return any(getattr(opts, name) is not None for name in _FILTERS)


def _refuse(words: list[str], opts: argparse.Namespace, action: str, *wrong: str) -> None:
    if words:
        raise UsageError(f"{action} takes options only; what is {words[0]!r}?")
    for name in wrong:
        if getattr(opts, name):
            raise UsageError(f"--{name} does not go with {action}")


def _places(
    opts: argparse.Namespace, spider: str | None, urls: list[str]
) -> list[tuple[DeadLetters, Selection]]:
    """Return the stores that have letters of those meant, and which these are there."""
    from .deadletters import DeadLetters, Selection

    selection = Selection(spider=spider, **{name: getattr(opts, name) for name in _FILTERS})
    stores = [DeadLetters(url) for url in urls]
    if not opts.id:
        return [(store, selection) for store in stores]
    ids: dict[DeadLetters, list[str]] = {store: [] for store in stores}
    for wanted in opts.id:
        found = [(store, letter_id) for store in stores for letter_id in _found(store, wanted)]
        if not found:
            raise DeadLettersError(
                f"There is no dead letter {wanted}: it has been delivered or deleted, or is "
                "elsewhere."
            )
        if len(found) > 1:
            listed = ", ".join(letter_id for _, letter_id in found[:5])
            raise DeadLettersError(f"{wanted!r} may be one of several: {listed}.")
        ((store, letter_id),) = found
        ids[store].append(letter_id)
    return [(store, replace(selection, ids=some)) for store, some in ids.items() if some]


def _found(store: DeadLetters, wanted: str) -> list[str]:
    """Return the ids that *wanted* stands for: the whole, its beginning, or as _short() made it."""
    letter = store.get(wanted)
    if letter is not None:
        return [letter.id]
    head, dash, number = wanted.rpartition("-")
    return store.find(head, f"{dash}{number}") if head else []


# -------------------------------------------------------------------------------- what is shown


_DESCRIBED = (
    *("id", "spider", "spider_args", "stage", "step", "error_type", "error", "attempts"),
    *("first_failed_at", "failed_at", "page_url", "item_type", "item"),
    *("problem", "missing", "unreadable", "leased_by", "leased_until"),
)


def _described(letter: DeadLetter, notes: dict[str, str]) -> dict[str, Any]:
    """Return what is known of *letter*, but its traceback, in the form that JSON has."""
    known: dict[str, Any] = {**asdict(letter), "missing": None, "unreadable": None, **notes}
    for name, value in known.items():
        if isinstance(value, datetime):
            known[name] = _time(value)
    known.update(item=_parsed(letter.item), spider_args=_parsed(letter.spider_args))
    return {name: known[name] for name in _DESCRIBED}


def _parsed(text: str) -> Any:
    """Give what a JSON text has; the text itself where it is none."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _pretty(text: str) -> str:
    parsed = _parsed(text)
    if parsed == text:  # it is no JSON
        return text
    pretty = json.dumps(parsed, indent=2, ensure_ascii=False)
    has_lone_surrogates = pretty.encode(errors="replace").decode() != pretty
    return json.dumps(parsed, indent=2) if has_lone_surrogates else pretty


def _cells(letter: DeadLetter, notes: dict[str, str]) -> dict[str, str]:
    arguments = _parsed(letter.spider_args)
    if isinstance(arguments, dict):
        arguments = " ".join(f"{name}={value}" for name, value in arguments.items())
    error, *_ = letter.error.splitlines() or [""]
    cells = {
        "id": letter.id,
        "spider": letter.spider,
        "arguments": arguments,
        "step": letter.step,
        "error": f"{letter.error_type.removeprefix('builtins.')}: {error}",
        "attempts": letter.attempts,
        "failed": _time(letter.failed_at),
        "page": letter.page_url,
        "notes": "; ".join(f"{name}: {note}" for name, note in notes.items()),
    }
    return {name: "" if cell is None else printable(str(cell)) for name, cell in cells.items()}


def _screenful() -> int:
    """Return how many letters a terminal shows beside the head of the table, and what follows."""
    return max(1, get_terminal_size().lines - 6)


def _print_tables(rows: Iterator[tuple[DeadLetter, dict[str, str]]]) -> int:
    """Print a line for each of *rows*; return how many they are."""
    number = 0
    lines = (_line(letter, notes) for letter, notes in rows)
    while some := list(islice(lines, _TABLE)):
        _print_table(some)
        number += len(some)
    return number


def _line(letter: DeadLetter, notes: dict[str, str]) -> dict[str, str]:
    """Return the cells of a terminal, where the module of an error would hide what it says."""
    cells = _cells(letter, notes)
    module = letter.error_type.rpartition(".")[0]
    error = cells["error"].removeprefix(f"{module}.")
    return {**cells, "error": error, "failed": _ago(letter.failed_at)}


def _print_table(rows: list[dict[str, str]]) -> None:
    from rich import box
    from rich.console import Console

    console = Console()
    for row, short in zip(rows, _short([row["id"] for row in rows]), strict=True):
        row["id"] = short
        for name, text in row.items():  # what the terminal has no letters for
            row[name] = text.encode(console.encoding, "backslashreplace").decode(console.encoding)
    cut = "ellipsis" if console.encoding.startswith("utf") else "crop"
    head = {
        name: {**_LOOKS.get(name, {}), "width": width, "no_wrap": True, "overflow": cut}
        for name, width in _fitted(rows, console.width).items()
    }
    console.print(table(box.SIMPLE_HEAD, head, ([row[name] for name in head] for row in rows)))


def _fitted(rows: list[dict[str, str]], width: int) -> dict[str, int]:
    """Return the columns that a line of *width* has room for, and how wide each of them is."""
    from rich.cells import cell_len

    widths: dict[str, int] = {}
    longest = {name: max(cell_len(row[name]) for row in rows) for name in _COLUMNS}
    left = width - 1
    for name, least in _LEAST.items():
        needed = min(max(longest[name], len(name)), least)
        if longest[name] and (needed + 3 <= left or not widths):  # 3: what is between columns
            widths[name] = needed
            left -= needed + 3
    for name, has in widths.items():
        widths[name] += max(0, min(left, longest[name] - has))
        left -= widths[name] - has
    return {name: widths[name] for name in _COLUMNS if name in widths}


def _ago(moment: datetime | None) -> str:
    if moment is None:
        return ""
    seconds = max(0.0, (datetime.now(timezone.utc) - moment).total_seconds())
    unit = next(it for it in "dhms" if seconds >= _SECONDS[it] or it == "s")
    return f"{int(seconds / _SECONDS[unit])}{unit} ago"


def _short(ids: list[str]) -> list[str]:
    """Give ids that can be told apart: ``<run>-<number>`` with less of the run."""
    for length in (6, 8, 12, 20):
        some = []
        for letter_id in ids:
            head, dash, number = letter_id.rpartition("-")
            some.append(f"{head[:length]}{dash}{number}" if dash else letter_id[: length + 2])
        if len(set(some)) == len(ids):
            return some
    return ids


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def _put(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _say(message: str) -> None:
    sys.stderr.write(f"{message}\n")
