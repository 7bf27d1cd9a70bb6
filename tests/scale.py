"""How much the long runs do: all of it under ``python -m tests --full``, else a part."""

from __future__ import annotations

import os

import pytest
import scrapy

VARIABLE = "DEFERKIT_TESTS"
IS_FULL = os.environ.get(VARIABLE) == "full"
IS_QUICK = os.environ.get(VARIABLE) == "quick"
IS_LATEST = scrapy.version_info >= (2, 19)
"""Where what takes longest runs; the lowest Scrapy has less of it."""


with_the_latest = pytest.mark.skipif(
    not (IS_LATEST or IS_FULL), reason="no version of Scrapy matters to it, so the latest will do"
)


def third_of(examples: int) -> int:
    """Return a number of hypothesis' examples: there are three runtimes, and four environments.

    A quick run takes a tenth, and so do the second runtime and the third.
    """
    return examples if IS_FULL else examples // (10 if IS_QUICK else 3)


def tenth_of(number: int) -> int:
    """Return *number* in a full run, and a tenth of it otherwise."""
    return number if IS_FULL else number // 10
