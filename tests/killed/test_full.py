"""Dead letters that are too many close the crawl, and none is forgotten."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .jobs import Job

pytestmark = pytest.mark.crawl


def test_too_many_dead_letters_close_the_crawl_and_none_is_forgotten(
    make_job: Callable[..., Job], of_each_runtime: str
) -> None:
    job = make_job(of_each_runtime, 800, has_stack=True)
    settings = {"DEFERKIT_DEAD_LETTERS_MAX": 5, "CONCURRENT_REQUESTS": 2, "DOWNLOAD_DELAY": 0.1}
    assert job.run(settings=settings) == 0
    assert job.reason == "dead_letters_full"
    assert job.whole_log.count("closing the spider (DEFERKIT_DEAD_LETTERS_MAX") == 1
    assert 5 <= len(job.dead()) < 48
    assert len(job.entered) < 800
    job.check(all_entered=False)
    job.finish()
    job.check()


def test_dead_letters_that_cannot_be_counted_do_not_hold_the_crawl(
    make_job: Callable[..., Job], of_each_runtime: str
) -> None:
    job = make_job(of_each_runtime, faults={"fail_to_count": "gone"})
    assert job.run(settings={"DEFERKIT_DEAD_LETTERS_MAX": 5}) == 0
    assert "gone" in job.whole_log
    job.check()
