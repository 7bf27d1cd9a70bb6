"""Feeds in local files that go on, whole, after the process has died."""

from __future__ import annotations

import csv
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from scrapy import signals
from w3lib.url import file_uri_to_path

from ._secrets import without_password
from .exceptions import JobError

if TYPE_CHECKING:
    from collections.abc import Callable

    from scrapy.crawler import Crawler

    from ._jobfile import Found

logger = logging.getLogger(__name__)

_PARAMETER = re.compile(r"%\((\w+)\)s")
_OF_A_RUN = {"time", "batch_time", "batch_id"}
_DIALECT = (
    "dialect",
    "delimiter",
    "quotechar",
    "escapechar",
    "doublequote",
    "skipinitialspace",
    "quoting",
    "strict",
)
"""What a reader of CSV takes, and FEEDS may say of how it is written."""


class Feeds:
    """The feeds of a crawl that are lines in a local file: their length is kept with the job.

    What a file has beyond that length is of pages that are crawled again, or half a record.
    """

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler
        self._exporter: Any = None
        self._paths: dict[str, str] = {}
        self._trouble: OSError | None = None

    def resume(self, found: Found, folder: Path) -> list[tuple[str, int]]:
        """Cut the files to the lengths that *found* has; return the lengths to begin with.

        Raises :exc:`~scrapy_deferkit.exceptions.JobError` if a feed of a job that goes on is to be
        overwritten.
        """
        # Scrapy's exporters import itemadapter, and that what it adapts: not in `scrapy list`.
        from scrapy.extensions.feedexport import FeedExporter

        self._exporter = self._crawler.get_extension(FeedExporter)
        feeds = {} if self._exporter is None else self._exporter.feeds
        for uri, options in feeds.items():
            why_not = self._why_not(uri, options)
            if why_not is None:
                applied = _PARAMETER.sub(self._value, uri)
                is_uri = applied.startswith("file:")
                self._paths[uri] = file_uri_to_path(applied) if is_uri else applied
            else:
                self._log(
                    "The feed %s is not covered by the job in %s, since %s: after a death it may "
                    "lack items, or have half of one",
                    without_password(uri),
                    folder,
                    why_not,
                )
        if self._paths:
            self._watch(self._exporter.item_scraped)
        return [
            (path, self._resume(path, feeds[uri], found, folder))
            for uri, path in self._paths.items()
        ]

    def _watch(self, export: Callable[[Any, Any], None]) -> None:
        """Learn of an item that could not be written: Scrapy's signals log it, and go on."""

        def item_scraped(item: Any, spider: Any) -> None:
            try:
                export(item, spider)
            except OSError as error:
                self._trouble = error
                raise

        self._crawler.signals.disconnect(export, signals.item_scraped)
        self._crawler.signals.connect(item_scraped, signals.item_scraped, weak=False)

    def _value(self, parameter: re.Match[str]) -> str:
        """Return the spider's value of a *parameter* in the path of a feed: its name, say."""
        return str(getattr(self._crawler.spider, parameter[1]))

    def _why_not(self, uri: str, options: dict[str, Any]) -> str | None:
        from scrapy.exporters import CsvItemExporter, JsonLinesItemExporter
        from scrapy.extensions.feedexport import FileFeedStorage

        storage = self._exporter.storages.get(urlparse(uri).scheme)
        exporter = self._exporter.exporters[options["format"]]
        if not (isinstance(storage, type) and issubclass(storage, FileFeedStorage)):
            return "it is no local file"
        if not issubclass(exporter, (JsonLinesItemExporter, CsvItemExporter)):
            return f"its format is {options['format']} and not jsonlines or csv"
        is_fixed = not options["uri_params"] and all(
            hasattr(self._crawler.spider, name) and name not in _OF_A_RUN
            for name in _PARAMETER.findall(uri)
        )
        if options.get("batch_item_count") or (
            "%(" in uri and not (is_fixed and "%(" not in _PARAMETER.sub("", uri))
        ):
            return "its file has another name in each run"
        if options.get("postprocessing"):
            return "it has post-processing"
        return None

    def _resume(self, path: str, options: dict[str, Any], found: Found, folder: Path) -> int:
        file, length = Path(path), found.feeds.get(path)
        size = file.stat().st_size if file.exists() else 0
        if length is None:
            size = 0 if options.get("overwrite") else size
        elif options.get("overwrite"):
            raise JobError(
                f"the feed {path} is to be overwritten, and the job in {folder} goes on: what its "
                "earlier runs have delivered would be gone. Append (-o, 'overwrite': False), or "
                "begin the job anew with another JOBDIR"
            )
        elif size < length:
            self._log("The feed %s lacks %d bytes that it has had", path, length - size)
        elif size > length and not found.was_closed:  # else another crawl has written to it since
            size = length
            os.truncate(path, length)
        from scrapy.exporters import CsvItemExporter

        if size and issubclass(self._exporter.exporters[options["format"]], CsvItemExporter):
            self._take_header(path, options)
        return size

    def _take_header(self, path: str, options: dict[str, Any]) -> None:
        """Let the CSV file at *path* go on with the columns that it has."""
        kwargs = options["item_export_kwargs"]
        if not kwargs.get("include_headers_line", True):
            return
        options["item_export_kwargs"] = {**kwargs, "include_headers_line": False}
        if not options["fields"]:
            dialect = {key: kwargs[key] for key in _DIALECT if key in kwargs}
            with Path(path).open(encoding=options["encoding"] or "utf-8", newline="") as file:
                options["fields"] = next(csv.reader(file, **dialect))

    def flushed(self, files: list[int]) -> list[tuple[str, int]]:
        """Flush the files; return their lengths, and add them to *files*.

        Raises :exc:`OSError` if that fails, or if an item could not be written before.
        """
        if self._trouble is not None:
            raise self._trouble
        lengths = []
        for slot in () if self._exporter is None else self._exporter.slots:
            path = self._paths.get(slot.uri_template)
            if path is not None and slot.file is not None and not slot.file.closed:
                slot.file.flush()
                files.append(slot.file.fileno())
                lengths.append((path, os.fstat(slot.file.fileno()).st_size))
        return lengths

    def _log(self, message: str, *args: object) -> None:
        logger.warning(message, *args, extra={"spider": self._crawler.spider})
