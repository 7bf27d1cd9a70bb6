"""How much the long runs do: all of it under ``python -m tests --full``, else about a tenth."""

from __future__ import annotations

import os

VARIABLE = "DEFERKIT_FULL_TESTS"
IS_FULL = bool(os.environ.get(VARIABLE))


def third_of(examples: int) -> int:
    """Return a number of hypothesis' examples: there are three runtimes, and four environments."""
    return examples if IS_FULL else examples // 3


def tenth_of(number: int) -> int:
    """Return *number* in a full run, and a tenth of it otherwise."""
    return number if IS_FULL else number // 10
