"""The policies' time is a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet.task import Clock

from scrapy_deferkit._runtime import clock_set_to


@pytest.fixture
def clock() -> Iterator[Clock]:
    """Give the clock; at the end no timer may be left on it."""
    fake = Clock()
    with clock_set_to(fake):
        yield fake
    assert not fake.getDelayedCalls(), "a timer was left behind"
