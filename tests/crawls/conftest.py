"""The local site of the crawls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .local_site import Site


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()
