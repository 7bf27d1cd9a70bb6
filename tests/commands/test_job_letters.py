"""Each request that is set aside has one dead letter, which no replay takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scrapy.pqueues import _path_safe

from scrapy_deferkit._jobfile import Batch, JobFile, Queue

from .project import Project, failed
from .test_job import stored

pytestmark = pytest.mark.crawl

KILLER, GONE = "data:,killer", "data:,gone"


def begin(project: Project) -> Path:
    """Begin a job with a request that has killed four runs, and one whose callback is gone."""
    folder = project.folder / "job"
    for run in range(4):
        file = JobFile(folder)
        file.open(4)
        if run == 0:
            requests = [
                (1, 1, stored(KILLER, callback="parse")),
                (2, 1, stored(GONE, method="POST", callback="parse_old")),
            ]
            queue = Queue(1, f"/{_path_safe('')}/0", "")
            file.write(Batch(queues=[queue], requests=requests), [])
        file.note_given(1)
        file.close()
    return folder


def crawl(project: Project, *options: str) -> str:
    return project.scrapy("crawl", "books", "-s", "JOBDIR=job", *options).stderr


def requests_of(project: Project) -> dict[str, int | None]:
    return {it.page_url or "": it.attempts for it in project.kept() if it.stage == "request"}


def test_each_has_one_letter_that_says_where_it_is_put_back(project: Project) -> None:
    folder = begin(project)
    log = crawl(project)
    assert f"GET {KILLER} is set aside, since the process has died 4 times" in log
    assert f"POST {GONE} is set aside, since it cannot be read" in log
    killer, gone = sorted(
        (it for it in project.kept() if it.stage == "request"), key=lambda it: it.page_url == GONE
    )
    assert json.loads(killer.item) == {"url": KILLER, "method": "GET"}
    assert json.loads(gone.item) == {"url": GONE, "method": "POST"}
    assert (killer.page_url, killer.step, killer.spider) == (KILLER, "job", "books")
    assert killer.error.startswith("the process has died 4 times while it was in work; ")
    for letter in (killer, gone):
        assert letter.error.endswith(f"scrapy deferkit job {folder} --retry")
    crawl(project)
    assert requests_of(project) == {KILLER: 1, GONE: 1}

    project.letters("delete", "--step", "job")
    crawl(project)
    assert requests_of(project) == {}


def test_the_letter_of_what_is_put_back_goes_when_it_is_crawled_or_is_tried_again(
    project: Project,
) -> None:
    begin(project)
    crawl(project)
    project.scrapy("deferkit", "job", "job", "--retry")
    crawl(project)
    assert requests_of(project) == {GONE: 2}
    shown = json.loads(project.scrapy("deferkit", "job", "job", "--json").stdout)
    assert [it["url"] for it in shown["aside"]] == [GONE]


def test_without_dead_letters_the_log_tells_and_they_are_written_when_these_are_on(
    project: Project,
) -> None:
    begin(project)
    log = crawl(project, "-s", "DEFERKIT_DEAD_LETTERS=False")
    assert log.count("is set aside, since") == 2
    assert not project.databases or not requests_of(project)
    assert "is set aside, since" not in crawl(project)
    assert requests_of(project) == {KILLER: 1, GONE: 1}


def test_a_store_that_cannot_be_used_leaves_them_for_the_next_run(project: Project) -> None:
    begin(project)
    project.write(
        "shop/refusing.py",
        "from scrapy_deferkit.deadletters import DeadLetters\n"
        "from scrapy_deferkit.exceptions import DeadLettersError\n"
        "def put(self, failures):\n"
        "    raise DeadLettersError('refused')\n"
        "class Refusing:\n"
        "    def __init__(self):\n"
        "        DeadLetters.put = put\n",
    )
    log = crawl(project, "-s", 'EXTENSIONS={"shop.refusing.Refusing": 1}')
    assert log.count("has no dead letter yet, which the next run tries again: refused") == 2
    assert "Traceback" not in log.split("has no dead letter yet")[1].splitlines()[0]
    crawl(project)
    assert requests_of(project) == {KILLER: 1, GONE: 1}


def test_a_replay_leaves_them_and_says_where_they_are_put_back(project: Project) -> None:
    project.put(
        failed("item"),
        failed("request", {"url": KILLER, "method": "GET"}, age=7200, stage="request", step="job"),
    )
    project.write("repaired", "")
    ended = project.replay("books", "--limit", "1")
    assert "1 delivered" in ended.stderr
    assert "Dead letters of books that are of requests stay as they are: 1." in ended.stderr
    assert "scrapy deferkit job JOBDIR --retry" in ended.stderr
    (letter,) = project.kept()
    assert (letter.id, letter.attempts, letter.leased_by) == ("request", 1, None)
    ended = project.replay("books", "--id", "request")
    assert "There are no dead letters of books to replay." in ended.stderr
    assert project.kept() == [letter]
