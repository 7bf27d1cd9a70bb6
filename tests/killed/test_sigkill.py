"""No item that entered the item stage is lost, however often the process is killed.

``DEFERKIT_TEST_KILLS`` sets how many kills there are: 10, or 50 for the whole of it, with a hundred
items for each.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from .jobs import KILLS, Job, random_moments

pytestmark = pytest.mark.crawl

JOBS = 5
SINK_SECONDS = [0.02, 0.1]
LONGEST = 0.5
"""Seconds: half of it on average, ten times, is less than a job's items take."""


def kill_and_check(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(1_000_000)
    moments = random_moments(seed, KILLS // JOBS, LONGEST)
    for moment in moments:
        was_killed = job.kill_after(moment)
        assert was_killed, f"seed {seed}: the crawl ended before it was killed\n{job.log}"
    job.finish()
    told = job.check()
    with capsys.disabled():
        print(f"\n{job.plan['runtime']}, seed {seed}, {len(moments)} kills: {told}")


def test_killed_at_random_moments_a_crawl_loses_nothing(
    make_job: Callable[..., Job], of_each_runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(of_each_runtime, 20 * KILLS, sink_seconds=SINK_SECONDS)
    kill_and_check(job, capsys)


def test_the_items_of_the_spider_middlewares_stack_are_not_lost(
    make_job: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job("asyncio", 20 * KILLS, has_stack=True, sink_seconds=SINK_SECONDS)
    kill_and_check(job, capsys)


def test_with_dead_letters_in_postgresql_nothing_is_lost(
    make_job: Callable[..., Job], postgres: object, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job("none", 20 * KILLS, sink_seconds=SINK_SECONDS)
    job.letters_url = postgres.create_schema()
    job.plan["settings"] = {"DEFERKIT_DEAD_LETTERS_URL": job.letters_url}
    kill_and_check(job, capsys)
