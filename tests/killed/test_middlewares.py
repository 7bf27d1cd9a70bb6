"""What other spider middlewares do with items between the stack and the pipelines loses none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .jobs import Job

pytestmark = pytest.mark.crawl

STACK = "scrapy_deferkit.StackSpiderMiddleware"


def test_what_a_middleware_has_gathered_is_not_lost_with_the_process(
    make_job: Callable[..., Job], of_each_runtime: str
) -> None:
    settings = {"SPIDER_MIDDLEWARES": {STACK: 50, "__main__.Gathers": 40}, "CONCURRENT_ITEMS": 2}
    job = make_job(of_each_runtime, 100, has_stack=True, settings=settings)
    job.start(hold_after=50)
    assert job.wait_until(lambda: len(job.folder.lines("delivered")) > 30), job.log
    job.stop()
    job.finish()
    job.check()


def test_what_a_middleware_did_not_hand_on_goes_on_in_the_next_run(
    make_job: Callable[..., Job], of_each_runtime: str
) -> None:
    settings = {"SPIDER_MIDDLEWARES": {STACK: 50, "__main__.BreaksOff": 40}}
    job = make_job(of_each_runtime, 75, has_stack=True, settings=settings)
    assert job.run() == 0
    left = {number for number, stage in job.unfinished() if stage == "spider stack"}
    assert len(left) > 30
    job.finish()
    assert int(job.stat("deferkit/items/recovered")) == len(left)
    told = job.check()
    assert told.endswith(" 0 delivered twice")
