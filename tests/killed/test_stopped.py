"""No item is lost when a crawl is asked to stop, or its database goes away for a while."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ..disks import fill
from .jobs import Job

pytestmark = pytest.mark.crawl

GRACEFULLY = "shutting down gracefully"


def begin(job: Job) -> None:
    """Start a crawl, and wait until it is in the middle of its work, where it is held."""
    job.start(hold_after=50)
    assert job.wait_until(lambda: len(job.folder.lines("entered")) > 60), job.log


def send(job: Job, number: signal.Signals) -> None:
    assert job.process is not None
    job.process.send_signal(number)


def has_logged(job: Job, words: str) -> Callable[[], bool]:
    return lambda: any(words in line for line in job.folder.lines("log"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_crawl_that_is_asked_to_stop_ends_its_items_and_goes_on_later(
    make_job: Callable[..., Job],
    of_each_runtime: str,
    number: signal.Signals,
    tell: Callable[[str], None],
) -> None:
    few_pages = {"SCRAPER_SLOT_MAX_ACTIVE_SIZE": 4000, "CONCURRENT_REQUESTS": 2}
    job = make_job(of_each_runtime, 300, has_stack=True, settings=few_pages)
    begin(job)
    send(job, number)
    assert job.wait_until(has_logged(job, GRACEFULLY))
    job.let_go()
    assert job.wait() == 0
    assert job.reason == "shutdown"
    assert len(job.entered) < 300
    job.finish()
    told = job.check()
    assert told.endswith(" 0 delivered twice")
    tell(f"{of_each_runtime}, {number.name}: {told}")


def test_ctrl_c_twice_ends_the_process_and_leaves_whole_rows_and_letters(
    make_job: Callable[..., Job], of_each_runtime: str, tell: Callable[[str], None]
) -> None:
    job = make_job(of_each_runtime, 200, has_stack=True)
    begin(job)
    send(job, signal.SIGINT)
    assert job.wait_until(has_logged(job, GRACEFULLY))
    send(job, signal.SIGINT)
    job.wait()
    told = job.check(all_entered=False, may_be_cancelled=True, may_be_lost=True)
    tell(f"{of_each_runtime}, SIGINT twice: {told}")


def test_postgresql_that_crashes_and_comes_back_gets_every_dead_letter(
    make_job: Callable[..., Job],
    of_each_runtime: str,
    postgres: object,
    tell: Callable[[str], None],
) -> None:
    job = make_job(of_each_runtime, 300)
    job.letters_url = postgres.create_schema()
    job.plan["settings"] = {
        "DEFERKIT_DEAD_LETTERS_URL": job.letters_url,
        "DEFERKIT_DEAD_LETTERS_MAX": 1000,
    }
    begin(job)
    postgres.stop()
    job.let_go()
    assert job.wait_until(has_logged(job, "Trying again")), job.log
    postgres.start()
    assert job.wait() == 0
    assert job.reason == "finished"
    told = job.check()
    tell(f"{of_each_runtime}, PostgreSQL away for a while: {told}")


def test_a_disk_that_is_full_for_a_while_costs_no_dead_letter(
    make_job: Callable[..., Job],
    of_each_runtime: str,
    small_disk: Path,
    tell: Callable[[str], None],
) -> None:
    job = make_job(of_each_runtime, 300)
    job.letters_url = f"sqlite:///{small_disk}/letters.sqlite"
    job.plan["settings"] = {"DEFERKIT_DEAD_LETTERS_URL": job.letters_url}
    begin(job)
    filler = fill(small_disk)
    job.let_go()
    assert job.wait_until(has_logged(job, "Trying again")), job.log
    filler.unlink()
    assert job.wait() == 0
    assert job.reason == "finished"
    told = job.check()
    tell(f"{of_each_runtime}, disk full: {told}")
