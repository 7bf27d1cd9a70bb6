"""The local site, and an engine that notices soon that it has nothing left to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from scrapy.core.engine import ExecutionEngine

from ..crawls.conftest import site

__all__ = ["site"]


@pytest.fixture(autouse=True)
def heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Scrapy look every 50 ms, and not every 5 s, whether all items of start() have ended."""
    monkeypatch.setattr(ExecutionEngine, "_SLOT_HEARTBEAT_INTERVAL", 0.05)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Where dead letters are kept, in a file of the test's own."""
    return f"sqlite:///{tmp_path}/letters.sqlite"
