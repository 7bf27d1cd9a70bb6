"""The local site, a small disk, and an engine that notices soon that nothing is left to do."""

from __future__ import annotations

from ..disks import small_disk
from ..itemprocessor.conftest import heartbeat, site

__all__ = ["heartbeat", "site", "small_disk"]
