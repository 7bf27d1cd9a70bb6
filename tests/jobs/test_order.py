"""The order of requests, what is filtered and what is counted are those of Scrapy's scheduler."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from scrapy.http import Request

from scrapy_deferkit import scheduler
from scrapy_deferkit._jobfile import JobFile

from ..scale import third_of
from .running import FIFO, OURS, PLAIN, SCRAPYS, Opened, opened, rows, until

pytestmark = [
    pytest.mark.crawl,  # no runtime has a part in the order, but a loop is needed
    # Scrapy 2.15 leaves files of its queues open.
    pytest.mark.filterwarnings("ignore:unclosed file .*requests.queue:ResourceWarning"),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "one queue": {"SCHEDULER_PRIORITY_QUEUE": PLAIN},
    "breadth first": {**FIFO, "DEPTH_PRIORITY": 1},
    "breadth first, one queue": {**FIFO, "SCHEDULER_PRIORITY_QUEUE": PLAIN},
    "start requests like others": {
        "SCHEDULER_START_DISK_QUEUE": None,
        "SCHEDULER_START_MEMORY_QUEUE": None,
    },
}


def pushes(*, domains: int = 3, storable: st.SearchStrategy[bool]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda number, domain, priority, start, dont_filter, is_storable: (
            "push",
            {
                "url": f"https://{domain}.example/{number}",
                "priority": priority,
                "meta": {"is_start_request": True} if start else {},
                "dont_filter": dont_filter,
                **({} if is_storable else {"callback": lambda response: None}),
            },
        ),
        st.integers(0, 8),
        st.integers(1, domains),
        st.integers(-2, 2),
        st.booleans(),
        st.booleans(),
        storable,
    )


POPS = st.sampled_from([("pop", None), ("end", None)])
ALL_STORABLE = st.lists(pushes(storable=st.just(True)) | POPS, max_size=40)
REOPENED = st.lists(pushes(storable=st.just(True)) | POPS | st.just(("reopen", None)), max_size=40)
# With several domains, Scrapy's turns between them count one whose request was not stored.
SOME_STORABLE = st.lists(pushes(domains=1, storable=st.booleans()) | POPS, max_size=40)


class Player:
    """Plays steps on one scheduler, and notes what it gives."""

    def __init__(self, scheduler: str, folder: Path | None, settings: dict[str, Any]) -> None:
        self._open = lambda: opened(folder, **{"SCHEDULER": scheduler, **settings})
        self._stack = AsyncExitStack()
        self.job: Opened
        self.taken: list[str] = []
        self.stats: list[dict[str, Any]] = []
        self._in_work: list[Request] = []

    async def open(self) -> None:
        self.job = await self._stack.enter_async_context(self._open())

    async def close(self) -> None:
        counted = ("scheduler/", "dupefilter/")
        self.stats.append({k: v for k, v in self.job.stats.items() if k.startswith(counted)})
        self._in_work.clear()
        await self._stack.aclose()

    def pop(self) -> bool:
        while self.job.scheduler.has_pending_requests():  # Scrapy's may give nothing once
            if (request := self.job.pop()) is not None:
                self.taken.append(request.url)
                self._in_work.append(request)
                self.job.engine.downloader._get_slot(request)[1].active.add(request)
                return True
        return False

    async def play(self, what: str, arguments: Any) -> None:
        if what == "push":
            self.job.scheduler.enqueue_request(Request(**arguments))
        elif what == "pop":
            self.pop()
        elif what == "reopen":
            await self.close()
            await self.open()
        elif self._in_work:
            request = self._in_work.pop(0)
            self.job.engine.downloader._get_slot(request)[1].active.remove(request)
            self.job.end(request)


async def both(steps: list[Any], settings: dict[str, Any], *, with_job: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        players = [
            Player(scheduler, Path(name, folder) if with_job else None, settings)
            for scheduler, folder in ((OURS, "ours"), (SCRAPYS, "scrapys"))
        ]
        for player in players:
            await player.open()
            for step in steps:
                await player.play(*step)
            while player.pop():
                pass
            await player.close()
        ours, scrapys = players
        assert ours.taken == scrapys.taken
        assert ours.stats == scrapys.stats


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@limits(max_examples=third_of(30))
@given(steps=ALL_STORABLE)
async def test_in_memory_all_is_as_with_scrapys_scheduler(
    settings: dict[str, Any], steps: list[Any]
) -> None:
    await both(steps, settings, with_job=False)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@limits(max_examples=third_of(30))
@given(steps=REOPENED)
async def test_with_a_job_closed_and_opened_again_all_is_as_with_scrapys(
    settings: dict[str, Any], steps: list[Any]
) -> None:
    await both(steps, settings, with_job=True)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@limits(max_examples=third_of(30))
@given(steps=SOME_STORABLE)
async def test_what_cannot_be_stored_waits_in_memory_as_with_scrapys(
    settings: dict[str, Any], steps: list[Any]
) -> None:
    await both(steps, settings, with_job=True)


async def test_what_another_request_has_replaced_leaves_the_file_at_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as job:
        job.push("https://1.example/")
        await job.written()
    async with opened(tmp_path) as job:
        job.end(job.pop())  # nothing else happens, so nothing has been written
    assert rows(tmp_path) == []


async def test_what_is_given_alone_and_stays_gets_the_pages_that_it_may_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as job:
        job.push("data:,a", "data:,b")
    with closing(sqlite3.connect(tmp_path / "deferkit.sqlite")) as connection, connection:
        connection.execute("UPDATE requests SET deaths = 2")
        connection.execute("INSERT INTO in_work SELECT id FROM requests")
    async with opened(tmp_path) as job:
        job.push("data:,c")
        await job.written()
        alone = job.pop()
        assert alone is not None
        assert alone.url == "data:,a"
        monkeypatch.setattr(scheduler, "_PATIENCE", 0)
        assert job.pop() is None  # it is being downloaded
        job.scheduler._scraping.add(alone)
        monkeypatch.setattr(scheduler, "_PATIENCE", 3600)
        assert job.pop() is None
        monkeypatch.setattr(scheduler, "_PATIENCE", 0)
        other = job.pop()
        assert other is not None
        assert other.url == "data:,c"
        assert job.pop() is None  # the other suspect is given alone, too
        job.scheduler._scraping.clear()
        job.end(alone)
        assert job.pop() is None
        job.end(other)
        other = job.pop()
        assert other is not None
        assert other.url == "data:,b"
        job.end(other)


def die(folder: Path) -> None:
    """Have a run die which has given a request that it had not yet written."""
    file = JobFile(folder)
    file.open(4)
    file.note_given(1)
    file.close()


async def test_after_a_death_each_request_is_in_the_file_before_it_is_given(tmp_path: Path) -> None:
    die(tmp_path)
    async with opened(tmp_path) as job:
        job.push("https://1.example/")
        assert job.pop() is None
        assert len(job.scheduler) == 1
        await job.written()
        assert rows(tmp_path) == [1]
        request = job.pop()
        assert request is not None
        assert request.url == "https://1.example/"


async def test_after_a_death_requests_are_given_while_others_come_without_end(
    tmp_path: Path,
) -> None:
    die(tmp_path)
    come: list[str] = []
    given: list[Request] = []

    def ask_as_one_comes() -> bool:
        come.append(f"https://{len(come)}.example/")
        job.push(come[-1])
        if (request := job.pop()) is not None:
            given.append(request)
        return len(given) == 3 or len(come) == 100

    async with opened(tmp_path) as job:
        await until(ask_as_one_comes)
        await job.written()
        assert len(given) == 3
        assert len(job.scheduler) == len(come) - 3
        assert len({request.url for request in given}) == 3


async def test_a_job_goes_on_when_its_process_changes_to_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    async with opened(Path("job")) as job:
        monkeypatch.chdir("other")
        job.push("https://1.example/")
        await job.written()
        assert rows(tmp_path / "job") == [1]


async def test_a_priority_that_scrapy_refuses_later_hurts_its_request_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as job:
        for priority in (0.5, 0, -0.5):
            request = Request(f"https://1.example/{priority}")
            request.priority = priority  # type: ignore[assignment]
            job.scheduler.enqueue_request(request)
    async with opened(tmp_path) as job:
        assert [request.url for request in iter(job.pop, None)] == ["https://1.example/0"]
    asides = rows(tmp_path, "SELECT aside FROM requests WHERE aside IS NOT NULL ORDER BY id")
    assert asides == [
        f"it cannot be read: Request priority not an integer: {it}" for it in (0.5, -0.5)
    ]
