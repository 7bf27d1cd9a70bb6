"""Every test of what the table does runs on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scrapy_deferkit.deadletters import DeadLetters

from ..postgres import Postgres, postgres

__all__ = ["postgres"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: Any) -> str:
    """The URL of a database that nobody has used yet."""
    if request.param == "sqlite":
        return request.getfixturevalue("sqlite_url")
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/data/dead.db"


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    return postgres.create_schema()


@pytest.fixture
def letters(url: str) -> Iterator[DeadLetters]:
    store = DeadLetters(url)
    yield store
    store.close()
