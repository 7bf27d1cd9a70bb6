"""The local site, and an engine that notices soon that it has nothing left to do."""

from __future__ import annotations

from ..itemprocessor.conftest import heartbeat, site

__all__ = ["heartbeat", "site"]
