"""The failures that a crawl of this shop expects."""

from __future__ import annotations


class BookshopError(Exception):
    """Base class of the failures that are expected: one line in the log, and no traceback."""


class IncompletePage(BookshopError):
    """A page lacks what a book cannot do without."""


class UnreadableText(BookshopError):
    """A text on a page is not what it should be, such as a price that is no number."""


class ServiceFailed(BookshopError):
    """A service gave no answer, or one that cannot be used."""


class ServiceBusy(ServiceFailed):
    """A service is down or has too much to do; asked again, it may well answer."""


class DatabaseFailed(BookshopError):
    """The database cannot be opened, or does not take a book."""
