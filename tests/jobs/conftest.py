"""The local site, a small disk, and an engine that notices soon that nothing is left to do."""

from __future__ import annotations

import pytest

from scrapy_deferkit import _engine

from ..disks import small_disk
from ..itemprocessor.conftest import heartbeat, site

__all__ = ["heartbeat", "site", "small_disk"]


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a callback be iterated in one turn of the loop, however slow the machine is."""
    monkeypatch.setattr(_engine, "_SLICE", 60)
