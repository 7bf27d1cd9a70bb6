"""A process that dies between the journal and the dead letters loses nothing and doubles nothing.

It dies in the place of each statement that the two stores execute, one after the other: of a whole
crawl, and of a crawl that recovers what another has left. At a tenth of them unless all is run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from ..scale import IS_FULL
from . import crawl
from .jobs import Job

pytestmark = pytest.mark.crawl

SMALL = {"items": 20, "per_page": 4, "has_stack": True, "sink_seconds": [0.001, 0.004]}


@pytest.fixture(params=["sqlite", "postgres"])
def make(request: pytest.FixtureRequest, make_job: Callable[..., Job]) -> Callable[..., Job]:
    """Make a small job whose dead letters are in SQLite, or in PostgreSQL."""

    def make(name: str) -> Job:
        job = make_job("none", name=name, **SMALL)
        if request.param == "postgres":
            job.letters_url = request.getfixturevalue("postgres").create_schema()
            job.plan["settings"] = {"DEFERKIT_DEAD_LETTERS_URL": job.letters_url}
        return job

    return make


def statements_of(job: Job) -> list[str]:
    return job.folder.lines("statements")


def numbers_to_die_at() -> range:
    return range(1, 1000) if IS_FULL else range(5, 1000, 10)


def test_dying_at_each_statement_of_a_crawl(
    make: Callable[..., Job], tell: Callable[[str], None]
) -> None:
    died = 0
    for number in numbers_to_die_at():
        job = make(f"at{number}")
        code = job.run(faults={"die_at_statement": number})
        if code == 0 and number > len(statements_of(job)):
            break
        assert code == crawl.DIED, job.log
        job.finish()
        job.check()
        shutil.rmtree(job.folder.path)
        died += 1
    tell(f"{died} deaths in a crawl: nothing lost")
    assert died >= 2


def test_dying_at_each_statement_of_a_recovery(
    make: Callable[..., Job], tell: Callable[[str], None]
) -> None:
    died = 0
    for number in numbers_to_die_at():
        job = make(f"at{number}")
        assert job.run(faults={"die_after_a_letter": None}) == crawl.DIED
        assert set(job.dead()) & {item for item, _ in job.unfinished()}, "in both stores"
        code = job.run(faults={"die_at_statement": number})
        if code == 0 and number > len(statements_of(job)):
            break
        assert code == crawl.DIED, job.log
        job.finish()
        job.check()
        shutil.rmtree(job.folder.path)
        died += 1
    tell(f"{died} deaths in a recovery: nothing lost")
    assert died >= 2
