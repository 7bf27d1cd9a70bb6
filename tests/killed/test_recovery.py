"""Unfinished items are taken up first, whatever the spider and its middlewares do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from .jobs import RUNTIMES, Job

pytestmark = pytest.mark.crawl

SPIDERS = ("Killed", "StartsWithNothing", "StartsWithItems", "FailsToStart", "IsAtHome")
IN_THE_WAY = {
    "drops requests": {"DOWNLOADER_MIDDLEWARES": {"__main__.DropsRequests": 1}},
    "drops requests late": {"DOWNLOADER_MIDDLEWARES": {"__main__.DropsRequests": 999}},
    "replaces requests": {"DOWNLOADER_MIDDLEWARES": {"__main__.ReplacesRequests": 1}},
    "refuses responses": {"SPIDER_MIDDLEWARES": {"__main__.RefusesResponses": 1}},
    "HTTPCACHE": {"HTTPCACHE_ENABLED": True},
    "ROBOTSTXT": {"ROBOTSTXT_OBEY": True},
    "DOWNLOAD_DELAY": {"DOWNLOAD_DELAY": 0.2},
    "one request at a time": {"CONCURRENT_REQUESTS": 1, "CONCURRENT_REQUESTS_PER_DOMAIN": 1},
    "DEPTH_LIMIT": {"DEPTH_LIMIT": 1},
}


ITEMS = 16
PLAN: dict[str, Any] = {"items": ITEMS, "per_page": 4, "has_stack": True}


@pytest.fixture(scope="module", params=RUNTIMES)
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job whose crawl was killed with all its items in flight."""
    job = Job(tmp_path_factory.mktemp("killed"), request.param, **PLAN)
    job.start(sink_seconds=[30, 30])
    assert job.wait_until(lambda: len(job.entered) == ITEMS), job.log
    job.stop()
    assert {stage for _, stage in job.unfinished()} == {"pipelines", "spider stack"}
    assert {number for number, _ in job.unfinished()} == set(range(ITEMS))
    return job


@pytest.fixture
def job(killed: Job, tmp_path: Path) -> Job:
    path = tmp_path / "job"
    shutil.copytree(killed.folder.path, path)
    return Job(path, killed.plan["runtime"], **PLAN)


def check_that_they_go_first(job: Job, **plan: Any) -> None:
    before = len(job.folder.lines("entered"))
    assert job.run(**plan) == 0, job.log
    entered = [int(line) for line in job.folder.lines("entered")[before:]]
    assert set(list(dict.fromkeys(entered))[:ITEMS]) == set(range(ITEMS)), job.log
    ended = job.rows().keys() | job.dead().keys() | job.numbers("dropped").keys()
    assert set(range(ITEMS)) <= ended
    assert int(job.stat("deferkit/items/recovered")) == ITEMS
    job.check(all_entered=False)


@pytest.mark.parametrize("spider", SPIDERS)
def test_whatever_the_spider_does_unfinished_items_go_first(job: Job, spider: str) -> None:
    check_that_they_go_first(job, spider=spider)


@pytest.mark.parametrize("settings", IN_THE_WAY.values(), ids=IN_THE_WAY)
def test_whatever_is_in_the_way_unfinished_items_go_first(
    job: Job, settings: dict[str, Any]
) -> None:
    middlewares = settings.get("SPIDER_MIDDLEWARES")
    if middlewares:
        stack = {"scrapy_deferkit.StackSpiderMiddleware": 50}
        settings = {"SPIDER_MIDDLEWARES": {**stack, **middlewares}}
    check_that_they_go_first(job, settings=settings)


def test_where_no_request_is_scheduled_unfinished_items_stay_and_the_crawl_ends(job: Job) -> None:
    settings = {"EXTENSIONS": {"__main__.LosesRequests": 1}}
    assert job.run(spider="StartsWithItems", settings=settings) == 0, job.log
    assert job.reason == "finished"
    assert {number for number, _ in job.unfinished()} == set(range(ITEMS))
    assert job.rows().keys() >= {100, 101}


@pytest.mark.parametrize("position", [1, 100])
def test_no_spider_middleware_sees_an_unfinished_item(job: Job, position: int) -> None:
    middlewares = {
        "scrapy_deferkit.StackSpiderMiddleware": 50,
        "__main__.FiltersOutput": position,
    }
    check_that_they_go_first(job, settings={"SPIDER_MIDDLEWARES": middlewares})
    assert job.folder.lines("filtered") == []
