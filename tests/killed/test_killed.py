"""A crawl that is killed and run again loses no page and no item."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest

from scrapy_deferkit._jobfile import look, retry
from scrapy_deferkit._outline import Outline
from scrapy_deferkit.deadletters import DeadLetters

from ..postgres import Postgres
from ..scale import IS_FULL
from . import tree
from .jobs import RUNTIMES, Job

pytestmark = pytest.mark.crawl

PAGES = 3000 if IS_FULL else 160

# The long ones: on the other runtimes if all is run.
on_one_runtime = pytest.mark.parametrize("of_each_runtime", RUNTIMES if IS_FULL else RUNTIMES[:1])


class TreeJob(Job):
    """The job of a tree of pages."""

    program = tree.__file__

    def __init__(self, path: Path, runtime: str, site: str, pages: int, **plan: Any) -> None:
        super().__init__(path, runtime, spider="Tree", site=site, pages=pages, **plan)
        self.pages = pages
        self.path = path

    @property
    def sunk(self) -> Counter[str]:
        return Counter(self.folder.lines("sunk"))

    def lettered(self) -> set[str]:
        store = DeadLetters(self.letters_url)
        try:
            items = [json.loads(letter.item) for letter in store.select()]
            return {item["id"] for item in items if "id" in item}
        finally:
            store.close()

    def run_until(self, lines: int, name: str = "sunk", **plan: Any) -> bool:
        """Run until so many more *lines* of *name* are there; return whether it still runs."""
        many = len(self.folder.lines(name)) + lines
        self.start(**plan)
        return self.wait_until(lambda: len(self.folder.lines(name)) >= many)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(60)

    def check(self, pages: set[int] | None = None) -> str:
        """Check that what is expected is there; return what was crawled again, in words."""
        wanted = tree.expected(self.pages)
        if pages is not None:
            wanted = {"start"}.union(*map(tree.items_of, pages))
        bad = set(filter(tree.is_to_fail, wanted))
        assert set(self.sunk) == wanted - bad
        assert self.lettered() == bad
        crawled = self.numbers("crawled")
        self._check_feeds(wanted - bad)
        return (
            f"{len(crawled)} pages, {sum(crawled.values()) - len(crawled)} crawled again, "
            f"{len(wanted)} items, 0 lost"
        )

    def _check_feeds(self, wanted: set[str]) -> None:
        lines = (self.path / "feed.jsonl").read_text().splitlines()
        assert {json.loads(line)["id"] for line in lines} == wanted
        with (self.path / "feed.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["id", "page"]
        assert {identifier for identifier, _ in rows} == wanted

    def set_aside(self) -> dict[str, int]:
        """Return the URLs of the requests set aside, with their deaths."""
        aside = look(self.path / "job").aside
        return {str(Outline.of(it.data).url): it.deaths for it in aside}


@pytest.fixture
def site() -> Iterator[str]:
    """Serve any page; some redirect, some fail at first, some are not there."""
    failed: set[str] = set()
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            page = int(self.path.rpartition("/")[2])
            status, headers = 200, {}
            if page % 10 == tree.IS_MISSING:
                status = 404
            elif page % 10 == 3 and not self.path.startswith("/moved"):
                status, headers = 302, {"Location": f"/moved/{page}"}
            elif page % 10 == 5:
                with lock:
                    status = 200 if self.path in failed else 503
                    failed.add(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def handle(self) -> None:
            with suppress(ConnectionError):  # whoever asked has been killed
                super().handle()

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def make(tmp_path: Path, site: str, of_each_runtime: str) -> Iterator[Callable[..., TreeJob]]:
    jobs: list[TreeJob] = []

    def make_one(pages: int = PAGES, **plan: Any) -> TreeJob:
        jobs.append(TreeJob(tmp_path / f"tree{len(jobs)}", of_each_runtime, site, pages, **plan))
        return jobs[-1]

    yield make_one
    for job in jobs:
        job.stop()


def test_killed_at_random_moments_it_loses_nothing(
    make: Callable[..., TreeJob], of_each_runtime: str, tell: Callable[[str], None]
) -> None:
    job, moments = make(), random.Random(of_each_runtime)
    kills = 34 if IS_FULL else 3
    many = len(tree.expected(PAGES)) // (kills + 1)
    killed = 0
    for _ in range(kills):
        if job.run_until(moments.randint(1, many)):
            job.kill()
            killed += 1
    assert killed > kills // 2
    job.finish()
    tell(f"{killed} kills: {job.check()}")
    assert job.set_aside() == {}


@on_one_runtime
def test_killed_with_its_dead_letters_in_postgresql_it_loses_nothing(
    make: Callable[..., TreeJob], postgres: Postgres, tell: Callable[[str], None]
) -> None:
    url = postgres.create_schema()
    job = make(80, settings={"DEFERKIT_DEAD_LETTERS_URL": url})
    job.letters_url = url
    for many in (20, 40, 10):
        assert job.run_until(many), job.log
        job.kill()
    job.finish()
    tell(job.check())


@on_one_runtime
@pytest.mark.parametrize("how", ["killer", "killer_when_given"])
def test_a_request_that_kills_its_process_is_set_aside_and_no_other(
    make: Callable[..., TreeJob], how: str, site: str, tell: Callable[[str], None]
) -> None:
    killer = 60  # a page without links, that neither moves nor fails by itself
    job = make(80, **{how: killer})
    runs = 1
    while job.run() != 0:
        runs += 1
        assert runs <= 12, job.log
    tell(f"{runs} runs; {job.check(set(range(80)) - {killer})}")
    assert {int(url.rpartition("/")[2]): deaths for url, deaths in job.set_aside().items()} == {
        killer: 4
    }
    assert job.run() == 0  # and no second letter
    store = DeadLetters(job.letters_url)
    (letter,) = (it for it in store.select() if it.stage == "request")
    store.close()
    assert letter.page_url == f"{site}/{killer}"
    assert f"scrapy deferkit job {job.path / 'job'} --retry" in letter.error
    assert letter.attempts == 1
    assert retry(job.path / "job") == 1
    job.plan[how] = None
    job.finish()
    job.check()
    assert job.set_aside() == {}


@on_one_runtime
def test_dying_at_any_statement_of_the_writing_thread_loses_nothing(
    make: Callable[..., TreeJob], tell: Callable[[str], None]
) -> None:
    deaths = 0
    for statement in range(1, 60, 1 if IS_FULL else 9):
        job = make(12)
        if job.run(faults={"die_at": statement}) != 0:
            deaths += 1
            job.finish()
        job.check()
    tell(f"{deaths} deaths")
    assert deaths >= 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_blames_nobody_and_goes_on(
    make: Callable[..., TreeJob], number: signal.Signals
) -> None:
    job = make(120)
    for _ in range(2):
        assert job.run_until(30), job.log
        job.kill(number)
        assert job.reason == "shutdown"
        assert look(job.path / "job").last_run == "closed"
    job.finish()
    job.check()


def test_stopped_by_force_it_goes_on_and_blames_nobody(make: Callable[..., TreeJob]) -> None:
    job = make(120)
    assert job.run_until(30), job.log
    assert job.process is not None
    job.process.send_signal(signal.SIGINT)
    job.wait_until(lambda: "shutting down gracefully" in job.whole_log)
    job.kill(signal.SIGINT)
    found = look(job.path / "job")
    assert found.in_work + found.waiting > 0
    job.finish()
    found = look(job.path / "job")
    assert found.in_work == found.waiting == 0
    assert set(job.sunk) | job.lettered() == tree.expected(120), job.log


def test_a_copy_of_the_job_goes_on_elsewhere(make: Callable[..., TreeJob]) -> None:
    job = make(120)
    assert job.run_until(40), job.log
    assert job.process is not None
    job.process.send_signal(signal.SIGSTOP)
    copy = make(120)
    shutil.rmtree(copy.path)
    shutil.copytree(job.path, copy.path)
    job.process.send_signal(signal.SIGCONT)
    job.kill()
    copy.finish()
    assert set(copy.sunk) | copy.lettered() == tree.expected(120), copy.log


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@on_one_runtime
def test_out_of_memory_it_goes_on_and_crawls_again_what_was_cut_short(
    make: Callable[..., TreeJob],
) -> None:
    job = make(80, hungry=20)
    job.run(faults={"limit_memory": 200})
    assert "MemoryError" in job.whole_log
    assert not look(job.path / "job").has_finished
    job.plan["hungry"] = None
    job.finish()
    job.check()
    assert job.set_aside() == {}
    assert look(job.path / "job").has_finished
