"""A journal that cannot be used closes the crawl, or lets it go on, and says so."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from .. import warm
from .jobs import Job

pytestmark = pytest.mark.crawl


def begin(job: Job) -> None:
    """Start a crawl, and wait until it is in the middle of its work, where it is held."""
    job.start(hold_after=50)
    assert job.wait_until(lambda: len(job.folder.lines("delivered")) > 30), job.log


def files_of(journal: Path) -> dict[str, bytes]:
    """Give what the journal's files have, and the seen requests: Scrapy writes others."""
    folder = journal.parent
    paths = [*folder.glob(f"{journal.name}*"), folder / "requests.seen"]
    return {path.name: path.read_bytes() for path in paths}


def take_away(journal: Path) -> None:
    for path in journal.parent.glob(f"{journal.name}*"):
        path.unlink()


def test_a_journal_that_is_taken_away_closes_the_crawl(
    make_job: Callable[..., Job], of_each_runtime: str
) -> None:
    job = make_job(of_each_runtime, 400)
    begin(job)
    take_away(job.journal_path)
    job.let_go()
    assert job.wait() == 0
    assert job.reason == "journal_error", job.log
    assert "start the crawl again, and let its JOBDIR be while it runs" in job.whole_log
    job.check(all_entered=False)
    job.finish()
    job.check()


def test_with_continue_the_crawl_goes_on_without_its_journal(
    make_job: Callable[..., Job], of_each_runtime: str
) -> None:
    # Rows are written when the spider has yielded the items, so it is not to yield all at once.
    few_pages = {"SCRAPER_SLOT_MAX_ACTIVE_SIZE": 4000, "CONCURRENT_REQUESTS": 2}
    settings = {"DEFERKIT_JOURNAL_ON_ERROR": "continue", **few_pages}
    job = make_job(of_each_runtime, 300, settings=settings)
    begin(job)
    take_away(job.journal_path)
    job.let_go()
    assert job.wait() == 0
    assert job.reason == "finished"
    assert int(job.stat("deferkit/journal/untracked")) > 0
    assert job.stat("deferkit/journal/errors") == "1"
    job.check()


@pytest.mark.parametrize("on_error", ["close", "continue"])
def test_a_second_process_is_refused_and_writes_nothing(
    make_job: Callable[..., Job], of_each_runtime: str, on_error: str
) -> None:
    first = make_job(of_each_runtime)
    begin(first)
    assert first.process is not None
    first.process.send_signal(signal.SIGSTOP)
    try:
        before = files_of(first.journal_path)
        jobdir = str(first.folder.path / "job")
        second = make_job(of_each_runtime, settings={"JOBDIR": jobdir})
        second.plan["settings"]["DEFERKIT_JOURNAL_ON_ERROR"] = on_error
        code = second.run()
        after = files_of(first.journal_path)
    finally:
        first.process.send_signal(signal.SIGCONT)
    first.let_go()
    said = f"The crawl does not begin: the journal {first.journal_path} is in use by process"
    assert f"{said} {first.process.pid}" in second.whole_log
    assert second.entered == set()
    assert after == before
    assert code != 0
    assert first.wait() == 0
    first.check()


def test_the_command_that_is_refused_exits_with_an_error(make_job: Callable[..., Job]) -> None:
    job = make_job("asyncio")
    jobdir = job.journal_path.parent
    jobdir.mkdir()
    holder = sqlite3.connect(job.journal_path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    spider = job.folder.path / "spider.py"
    spider.write_text(
        "import scrapy\n"
        "class S(scrapy.Spider):\n"
        "    name = 's'\n"
        "    async def start(self):\n"
        "        yield {'n': 1}\n"
    )
    addons = json.dumps({"scrapy_deferkit.Addon": 1})
    settings = ["-s", f"JOBDIR={jobdir}", "-s", f"ADDONS={addons}"]
    ended = warm.run("-m", "scrapy", "runspider", str(spider), *settings, cwd=job.folder.path)
    holder.close()
    assert "is in use by" in ended.stderr
    assert ended.returncode != 0


def test_a_journal_of_a_newer_version_is_refused_and_left_as_it_is(
    make_job: Callable[..., Job], of_each_runtime: str
) -> None:
    job = make_job(of_each_runtime)
    job.journal_path.parent.mkdir()
    newer = sqlite3.connect(job.journal_path)
    newer.execute("CREATE TABLE items (n, item, stage, position)")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    before = job.journal_path.read_bytes()
    code = job.run()
    assert "is of version 99" in job.whole_log
    assert "upgrade scrapy-deferkit" in job.whole_log
    assert job.entered == set()
    assert job.journal_path.read_bytes() == before
    assert code != 0


def test_a_garbled_row_is_told_of_and_closes_nothing(
    make_job: Callable[..., Job], of_each_runtime: str
) -> None:
    job = make_job(of_each_runtime, 100)
    begin(job)
    job.stop()
    left = job.unfinished()
    assert len(left) > 1
    journal = sqlite3.connect(job.journal_path)
    journal.execute(
        "UPDATE items SET stage = NULL WHERE position = (SELECT min(position) FROM items)"
    )
    journal.commit()
    journal.close()
    assert job.run() == 0
    assert job.reason == "finished"
    assert len(job.unfinished()) == 1
    assert "stage of the row at position" in job.whole_log
    assert "The row stays; the others are taken up" in job.whole_log


def test_an_item_that_neither_store_has_is_in_the_log(
    make_job: Callable[..., Job], of_each_runtime: str
) -> None:
    settings = {
        "DEFERKIT_JOURNAL_ON_ERROR": "continue",
        "DEFERKIT_DEAD_LETTERS_URL": "sqlite:////dev/null/letters.sqlite",
        "DEFERKIT_CONCURRENT_ITEMS": 4,
    }
    job = make_job(of_each_runtime, 400, settings=settings, faults={"fail_to_write": None})
    job.run()
    assert job.reason == "dead_letters_unavailable", job.log
    assert job.unfinished() == []
    lost = job.entered - set(job.rows()) - set(job.numbers("dropped"))
    assert lost
    told = [line for line in job.folder.lines("log") if "all that is left of the item" in line]
    for number in lost:
        assert any(f'{{\\"n\\": {number}, ' in line for line in told)
