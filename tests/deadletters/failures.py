"""Failed items to put in, and a way to the tables that is not the store's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import sqlalchemy as sa

from scrapy_deferkit.deadletters import Failed

EPOCH = datetime(2030, 1, 1, tzinfo=timezone.utc)

TRACEBACK = """\
Traceback (most recent call last):
  File "shop.py", line 7, in parse_price
    item["price"] = float(item["price"])
ValueError: could not convert string to float: 'ask us'
"""


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def failed(letter_id: str, seconds: float = 0, **changes: Any) -> Failed:
    """Give an item that failed *seconds* after the epoch of these tests."""
    values: dict[str, Any] = {
        "id": letter_id,
        "spider": "books",
        "spider_args": '{"site": "x"}',
        "stage": "pipelines",
        "item": f'{{"title": "{letter_id}"}}',
        "item_type": "builtins.dict",
        "missing": None,
        "page_url": "https://example.com/1",
        "step": "shop/Tolerant/parse_price",
        "error_type": "builtins.ValueError",
        "error": "could not convert string to float: 'ask us'",
        "traceback": TRACEBACK,
        "at": at(seconds),
    }
    return Failed(**{**values, **changes})


@contextmanager
def database(url: str) -> Iterator[sa.Connection]:
    """Connect as anybody could; what is done is committed."""
    engine = sa.create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool
    )
    with engine.begin() as connection:
        yield connection


def run_sql(url: str, statement: str) -> Any:
    """Run one statement; give the rows, if it has any."""
    with database(url) as connection:
        result = connection.execute(sa.text(statement))
        return [tuple(row) for row in result] if result.returns_rows else None
