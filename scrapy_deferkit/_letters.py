"""What a dead letter is made of. Importing this does not import SQLAlchemy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

REQUEST = "request"
"""The stage of what is no item: a request that its job has set aside, and puts back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    id: str
    spider: str
    spider_args: str
    stage: str
    item: str
    item_type: str
    missing: str | None
    page_url: str | None
    step: str | None
    error_type: str
    error: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Letter):
    """An item that failed *at* a time, on its way to the dead letters.

    ``item`` is the item as it entered, as tagged JSON, and ``missing`` says what that form could
    not hold; ``spider_args`` is JSON too. ``stage`` is where the item was: ``"pipelines"`` or
    ``"spider stack"``; :data:`REQUEST` if it is no item.
    """

    at: datetime
    replaces: bool = False
    """Whether it takes the place of a letter with its id, whose item is an earlier one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter(Letter):
    """An item that failed, as the table has it.

    ``problem`` tells what in its row cannot be read, where somebody has edited it; such times
    and numbers are ``None``. A traceback is kept once per distinct error, so its last line may have
    the message of another letter: this one's is ``error``.
    """

    attempts: int | None
    first_failed_at: datetime | None
    failed_at: datetime | None
    leased_by: str | None
    leased_until: datetime | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which letters are meant; one that says nothing means all of them.

    ``step`` means the steps within it too. ``error`` is any part of the error's type or message,
    in whatever case; ``older_than`` and ``newer_than`` go by the last failure. With ``items_only``,
    requests are not meant.
    """

    spider: str | None = None
    step: str | None = None
    error: str | None = None
    older_than: datetime | None = None
    newer_than: datetime | None = None
    ids: Sequence[str] | None = None
    items_only: bool = False


ALL = Selection()
