"""A slow disk does not hold the loop."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from .jobs import Job

pytestmark = pytest.mark.crawl

COMMIT_SECONDS = 0.1
LATEST = 0.05


def test_while_each_transaction_takes_long_the_loop_goes_on(
    make_job: Callable[..., Job], of_each_runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(
        of_each_runtime,
        600,
        sink_seconds=[0.1, 0.2],
        faults={"slow_commits": COMMIT_SECONDS},
        settings={"EXTENSIONS": {"__main__.Heartbeat": 1}},
    )
    assert job.run() == 0
    late = sorted(json.loads(job.folder.lines("late")[0]))
    latest = late[int(len(late) * 0.999)]
    commits = len(job.folder.lines("commits"))
    with capsys.disabled():
        print(
            f"\n{of_each_runtime}, {commits} transactions of {COMMIT_SECONDS:g} s: of {len(late)} "
            f"calls each 5 ms, 99.9 % were at most {latest * 1000:.1f} ms late, all at most "
            f"{late[-1] * 1000:.1f} ms"
        )
    assert commits > 20
    assert latest < LATEST
    job.check()
