"""No item is lost when a crawl is asked to stop, its disk is full, or its database goes away."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

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
    assert job.unfinished() == []
    assert len(job.entered) < 300
    job.finish()
    told = job.check()
    assert told.endswith(" 0 delivered twice")
    tell(f"{of_each_runtime}, {number.name}: {told}")


def test_ctrl_c_twice_loses_nothing(
    make_job: Callable[..., Job], of_each_runtime: str, tell: Callable[[str], None]
) -> None:
    job = make_job(of_each_runtime, 200, has_stack=True)
    begin(job)
    send(job, signal.SIGINT)
    assert job.wait_until(has_logged(job, GRACEFULLY))
    send(job, signal.SIGINT)
    job.wait()
    unfinished = {number for number, _ in job.unfinished()}
    assert unfinished
    job.finish()
    # Without a reactor, Scrapy then cancels what is in flight: that is kept, and is taken up too.
    doubled = unfinished if of_each_runtime == "none" else ()
    told = job.check(may_be_cancelled=True, may_be_doubled=doubled)
    tell(f"{of_each_runtime}, SIGINT twice, {len(unfinished)} were in flight: {told}")


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(path)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


@pytest.mark.parametrize("on_error", ["close", "continue"])
def test_a_disk_that_is_full_for_a_while_costs_no_item(
    make_job: Callable[..., Job],
    of_each_runtime: str,
    small_disk: Path,
    on_error: str,
    tell: Callable[[str], None],
) -> None:
    job = make_job(of_each_runtime, 300)
    job.letters_url = f"sqlite:///{small_disk}/letters.sqlite"
    job.journal_path = small_disk / "job" / "deferkit-journal.sqlite"
    job.plan["settings"] = {
        "JOBDIR": str(small_disk / "job"),
        "DEFERKIT_DEAD_LETTERS_URL": job.letters_url,
        "DEFERKIT_JOURNAL_ON_ERROR": on_error,
    }
    begin(job)
    filler = fill(small_disk)
    job.let_go()
    assert job.wait_until(has_logged(job, "make room on the disk")), job.log
    until = time.monotonic() + 1
    job.wait_until(lambda: time.monotonic() > until)
    filler.unlink()
    job.wait()
    reasons = {job.reason}
    # Scrapy's own queue of requests, on the same disk, may end the crawl before the journal does.
    assert reasons <= {"journal_error" if on_error == "close" else "finished", "shutdown"}, job.log
    job.finish()
    told = job.check()
    tell(f"{of_each_runtime}, disk full, {on_error!r}, closed with {reasons}: {told}")
