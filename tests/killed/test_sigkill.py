"""No item that entered the item stage is lost, however often the process is killed.

There are 50 kills in all, with a hundred items for each, and a fifth of that unless all is run:
each job is killed while it recovers, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ..scale import IS_FULL
from .jobs import Job, random_moments

pytestmark = pytest.mark.crawl

KILLS = 50 if IS_FULL else 10
JOBS = 5
ITEMS = 100 * KILLS // JOBS
SINK_SECONDS = [0.02, 0.1]
LONGEST = 0.3
"""Seconds, in which a run's share of the items is at work."""


def kill_and_check(job: Job, tell: Callable[[str], None]) -> None:
    seed = random.randrange(1_000_000)
    moments = random_moments(seed, KILLS // JOBS, LONGEST)
    for moment in moments:
        job.kill_after(moment, job.items // (len(moments) + 1))
    job.finish()
    told = job.check()
    tell(f"{job.plan['runtime']}, seed {seed}, {len(moments)} kills: {told}")


def test_killed_at_random_moments_a_crawl_loses_nothing(
    make_job: Callable[..., Job], of_each_runtime: str, tell: Callable[[str], None]
) -> None:
    job = make_job(of_each_runtime, ITEMS, sink_seconds=SINK_SECONDS)
    kill_and_check(job, tell)


def test_the_items_of_the_spider_middlewares_stack_are_not_lost(
    make_job: Callable[..., Job], tell: Callable[[str], None]
) -> None:
    job = make_job("asyncio", ITEMS, has_stack=True, sink_seconds=SINK_SECONDS)
    kill_and_check(job, tell)


def test_with_dead_letters_in_postgresql_nothing_is_lost(
    make_job: Callable[..., Job], postgres: object, tell: Callable[[str], None]
) -> None:
    job = make_job("none", ITEMS, sink_seconds=SINK_SECONDS)
    job.letters_url = postgres.create_schema()
    job.plan["settings"] = {"DEFERKIT_DEAD_LETTERS_URL": job.letters_url}
    kill_and_check(job, tell)
