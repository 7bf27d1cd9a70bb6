"""Jobs that leave no process behind, a PostgreSQL, and a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..disks import small_disk as small_disk  # noqa: PLC0414
from ..postgres import postgres as postgres  # noqa: PLC0414
from ..scale import IS_FULL, IS_LATEST
from .jobs import RUNTIMES, Job


# Crawls of the lowest Scrapy are killed on one runtime alone.
@pytest.fixture(params=RUNTIMES if IS_LATEST or IS_FULL else RUNTIMES[:1])
def of_each_runtime(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def make(runtime: str, items: int = 200, name: str = "", **plan: Any) -> Job:
        job = Job(tmp_path / (name or f"job{len(jobs)}"), runtime, items, **plan)
        jobs.append(job)
        return job

    yield make
    for job in jobs:
        job.stop()
