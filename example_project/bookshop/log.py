"""One line, and no traceback, for the failures that a crawl of this shop expects."""

from __future__ import annotations

import logging
from typing import Any

from scrapy import Spider
from scrapy.http import Response
from scrapy.logformatter import LogFormatter, LogFormatterResult
from twisted.python.failure import Failure

from .errors import BookshopError


class BriefLogFormatter(LogFormatter):
    """Leave expected failures of items to the summary's own lines."""

    def item_error(
        self,
        item: Any,
        exception: BaseException,
        response: Response | Failure | None,
        spider: Spider,
    ) -> LogFormatterResult:
        """Log an expected failure, which comes with its traceback, for who debugs only."""
        entry = super().item_error(item, exception, response, spider)
        if isinstance(exception, BookshopError):
            entry["level"] = logging.DEBUG
        return entry
