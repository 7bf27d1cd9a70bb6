"""Requests come in the order of Scrapy's scheduler, and the same ones are filtered out."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scrapy import Request
from scrapy.core.scheduler import Scheduler as ScrapysScheduler

from scrapy_deferkit._engine import resolve

from ..scale import third_of
from .conftest import made, ours

FIFO = {
    "SCHEDULER_DISK_QUEUE": "scrapy.squeues.PickleFifoDiskQueue",
    "SCHEDULER_MEMORY_QUEUE": "scrapy.squeues.FifoMemoryQueue",
}
KINDS = {
    "default": {},
    "breadth first": FIFO,
    "one queue": {"SCHEDULER_PRIORITY_QUEUE": "scrapy.pqueues.ScrapyPriorityQueue"},
    "start as any": {"SCHEDULER_START_DISK_QUEUE": None, "SCHEDULER_START_MEMORY_QUEUE": None},
}

PUSHED = st.fixed_dictionaries(
    {
        "number": st.integers(0, 12),
        "domain": st.sampled_from(["a.example", "b.example"]),
        "priority": st.integers(-1, 1),
        "dont_filter": st.booleans(),
        "is_start": st.booleans(),
    }
)
STEPS = st.lists(st.one_of(st.none(), PUSHED), max_size=40)


def request_of(step: dict[str, Any]) -> Request:
    return Request(
        f"https://{step['domain']}/{step['number']}",
        priority=step["priority"],
        dont_filter=step["dont_filter"],
        meta={"is_start_request": True} if step["is_start"] else {},
    )


async def told_by(scheduler: Any, steps: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return what *scheduler* answers to the steps, and what it counts."""
    told: list[Any] = []
    for step in [*steps, *[None] * (len(steps) + 1)]:
        if step is None:
            request = scheduler.next_request()
            told.append(request and (request.url, request.priority))
        else:
            told.append(scheduler.enqueue_request(request_of(step)))
        told.append((len(scheduler), scheduler.has_pending_requests()))
    await resolve(scheduler.close("finished"))
    stats = scheduler.crawler.stats.get_stats()
    return told, {k: v for k, v in stats.items() if k.startswith(("scheduler/", "dupefilter/"))}


@pytest.mark.parametrize("kind", KINDS)
@hypothesis_settings(max_examples=third_of(45), deadline=None)
@given(steps=STEPS)
async def test_the_order_and_the_stats_are_scrapys(kind: str, steps: list[Any]) -> None:
    with TemporaryDirectory() as folder:
        answers = await told_by(ours(Path(folder, "ours"), **KINDS[kind]), steps)
        expected = await told_by(made(ScrapysScheduler, Path(folder, "its"), **KINDS[kind]), steps)
        assert answers == expected


@pytest.mark.parametrize("kind", KINDS)
@hypothesis_settings(max_examples=third_of(45), deadline=None)
@given(steps=STEPS, given_before=st.integers(0, 5))
async def test_what_waits_comes_in_the_same_order_in_the_next_run(
    kind: str, steps: list[Any], given_before: int
) -> None:
    # Scrapy's queues take turns between domains, and begin anew with each run.
    steps = [{**step, "domain": "a.example"} for step in steps if step]
    with TemporaryDirectory() as folder:
        asked: list[list[str]] = []
        for make in (lambda path: ours(path, **KINDS[kind]),) * 2:
            scheduler = make(Path(folder, str(len(asked))))
            for step in steps:
                scheduler.enqueue_request(request_of(step))
            given = list(filter(None, (scheduler.next_request() for _ in range(given_before))))
            scheduler.crawler.engine._slot.inprogress.update(given)
            if asked:  # in work as it is closed, so it comes first in the next run
                await resolve(scheduler.close("shutdown"))
                scheduler = make(Path(folder, "1"))
            later = []
            while (request := scheduler.next_request()) is not None:
                later.append(request.url)
            asked.append([it.url for it in given] * (not asked) + later)
            await resolve(scheduler.close("finished"))
        assert sorted(asked[0][:given_before]) + asked[0][given_before:] == (
            sorted(asked[1][:given_before]) + asked[1][given_before:]
        )
