"""``scrapy deferkit job``: what a job holds is seen, also while a crawler has it, and put back."""

from __future__ import annotations

import json
import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scrapy.cmdline import execute
from scrapy.settings import Settings

from scrapy_deferkit import report
from scrapy_deferkit._jobfile import NAME, Batch, JobFile, Queue
from scrapy_deferkit._outline import Outline
from scrapy_deferkit.codec import Codec

pytestmark = pytest.mark.no_runtime


class Bookmark:
    """Something of a project, which the command does not import."""

    def __init__(self, page: int) -> None:
        self.page = page


def stored(url: str, **values: Any) -> bytes:
    return pickle.dumps({"url": url, "method": "GET", **values}, protocol=4)


class Job:
    """A job, and ``scrapy deferkit job`` in this process, outside any project."""

    def __init__(self, folder: Path, read: Callable[[], Any]) -> None:
        self.folder = folder
        self.file = JobFile(folder)
        self._read = read

    def begin(self, max_deaths: int = 3) -> Any:
        self.file = JobFile(self.folder)
        return self.file.open(max_deaths)

    def write(self, **values: Any) -> None:
        self.file.write(Batch(**values), [])

    def fill(self) -> None:
        """Begin a run; of its five requests, two are given."""
        self.begin()
        self.write(
            queues=[Queue(1, "deferkit/0", "shop.example"), Queue(2, "deferkit/0", "b.example")],
            requests=[(n, 1 + n // 5, stored(f"https://shop.example/{n}")) for n in range(1, 6)],
            seen=[(b"1",), (b"2",), (b"3",)],
        )
        for number in (1, 2):
            self.file.note_given(number)

    def die(self) -> None:
        """Let go of the file as a death does: no note says that the crawl was closing."""
        self.file.close()

    def __call__(self, *arguments: str, code: int = 0, folder: Path | None = None) -> Any:
        with pytest.raises(SystemExit) as ended:
            execute(
                ["scrapy", "deferkit", "job", str(folder or self.folder), *arguments], Settings()
            )
        output = self._read()
        assert (ended.value.code or 0) == code, output
        return output

    def shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self("--json").out)
        return shown


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Job:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCRAPY_SETTINGS_MODULE", raising=False)
    return Job(tmp_path / "job", capsys.readouterr)


def set_one_aside(job: Job) -> None:
    """Let the process die as often as may be with the request 1 in work."""
    job.fill()
    job.die()
    for _ in range(2):
        job.begin()
        job.file.note_given(1)
        job.die()
    job.begin()
    job.file.note_closing()
    job.file.close()


def test_what_a_crawl_has_is_seen_while_it_runs_and_after_its_death(job: Job) -> None:
    job.fill()
    seen = {
        "runs": 1,
        "last_run": "running",
        "reason": None,
        "waiting": 3,
        "in_work": 2,
        "seen": 3,
        "waiting_by_domain": {"shop.example": 2, "b.example": 1},
        "aside": [],
    }
    assert job.shown() == seen
    job.write(gone=[(2,)])
    assert job.shown() == {**seen, "in_work": 1}
    job.die()
    assert job.shown() == {**seen, "in_work": 1, "last_run": "died"}


def test_a_run_that_was_closed_did_not_die(job: Job) -> None:
    job.fill()
    job.file.note_closing()
    job.file.close()
    assert job.shown()["last_run"] == "closed"


def test_a_job_has_finished_when_its_last_run_has_and_nothing_is_left(job: Job) -> None:
    job.fill()
    job("--finished", code=1)
    job.write(reason="finished")
    job.file.note_closing()
    job.file.close()
    job("--finished", code=1)  # requests wait
    assert "run 1\tclosed, finished" in job().out.splitlines()
    job.begin()
    job.write(gone=[(number,) for number in range(1, 6)])
    job.file.close()
    job("--finished", code=1)  # this run has not
    job.begin()
    job.write(reason="shutdown")
    job.file.close()
    job("--finished", code=1)
    job.begin()
    job.write(reason="finished")
    job.file.note_closing()
    job.file.close()
    assert job("--finished").out == ""


def test_each_request_set_aside_is_shown_with_its_url_deaths_and_reason(job: Job) -> None:
    set_one_aside(job)
    reason = "the process has died 3 times while it was in work"
    shown = job.shown()
    url = "https://shop.example/1"
    described = {"id": 1, "method": "GET", "url": url, "deaths": 3, "reason": reason}
    assert shown["aside"] == [described]
    assert (shown["last_run"], shown["in_work"], shown["waiting"]) == ("closed", 1, 3)
    lines = job().out.splitlines()
    assert f"1\tGET\t{url}\t3\t{reason}" in lines
    assert "set aside\t1" in lines
    assert "shop.example\t2" in lines
    assert lines[-1].endswith(f"scrapy deferkit job {job.folder} --retry")


def test_a_terminal_gets_tables(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    set_one_aside(job)
    heads: list[tuple[str, ...]] = []

    def note(box: Any, columns: Any, rows: Any) -> Any:
        heads.append(tuple(columns))
        return report.table(box, columns, rows)

    monkeypatch.setattr("scrapy_deferkit._job_command.table", note)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert "https://shop.example/1" in job().out
    assert [head[0] for head in heads] == ["job", "domain", "id"]


def test_what_is_put_back_waits_in_its_queue_with_no_deaths(job: Job) -> None:
    set_one_aside(job)
    assert job("--retry").out == "1 request waits again.\n"
    shown = job.shown()
    assert (shown["aside"], shown["waiting"], shown["in_work"]) == ([], 4, 1)
    assert json.loads(job("--retry", "--json").out) == {"put_back": 0}
    found = job.begin()
    assert [*found.waiting[1]] == [1, 3, 4]
    assert found.in_work == [(2, 1)]
    job.file.close()


def test_nothing_is_put_back_while_a_crawler_has_the_job(job: Job) -> None:
    set_one_aside(job)
    job.begin()
    said = job("--retry", code=1).err
    assert f"Error: another crawler has the job in {job.folder}: put back" in said
    assert len(job.shown()["aside"]) == 1
    job.file.close()


def test_looking_leaves_the_folder_as_it_was(job: Job) -> None:
    set_one_aside(job)
    before = {path.name: path.read_bytes() for path in job.folder.iterdir()}
    job()
    assert {path.name: path.read_bytes() for path in job.folder.iterdir()} == before


def test_a_request_is_outlined_without_the_password_in_its_url() -> None:
    data = stored("https://me:s3cret@shop.example:8080/@me")
    assert Outline.of(data) == ("GET", "https://me:***@shop.example:8080/@me")


def test_a_request_is_outlined_without_what_its_project_has(job: Job) -> None:
    values = {"meta": {"at": Bookmark(3), Bookmark: [Bookmark(4)]}, "flags": Codec()}
    data = stored("https://shop.example/", **values).replace(b"test_job", b"no_where")
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(data)
    assert Outline.of(data) == ("GET", "https://shop.example/")
    assert Outline.of(data[:-20]) == (None, None)
    job.begin()
    job.write(requests=[(1, 1, b"no pickle")], aside=[("it cannot be read: \x1b[31m", 1)])
    job.file.close()
    assert job.shown()["aside"][0]["url"] is None
    assert "1\t?\t?\t0\tit cannot be read: \\x1b[31m" in job().out


def sql(job: Job, *statements: str) -> None:
    job.folder.mkdir(exist_ok=True)
    connection = sqlite3.connect(job.folder / NAME)
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("option", ["--json", "--retry"])
def test_what_is_no_job_is_refused_with_the_reason(job: Job, option: str) -> None:
    assert "there is no such folder" in job(option, code=1).err
    job.folder.touch()
    assert "it is a file" in job(option, code=1).err
    job.folder.unlink()
    job.folder.mkdir()
    assert f"there is no {NAME} in it" in job(option, code=1).err
    assert not [*job.folder.iterdir()]
    (job.folder / "requests.queue").mkdir()
    assert "was begun by Scrapy's own scheduler" in job(option, code=1).err
    (job.folder / NAME).write_text("no database " * 100)
    assert "restore it, or begin the job anew" in job(option, code=1).err
    (job.folder / NAME).unlink()
    sql(job, "CREATE TABLE books (id)", "PRAGMA user_version = 1")
    assert "a SQLite file with other tables" in job(option, code=1).err
    sql(job, "PRAGMA user_version = 99")
    assert "a newer scrapy-deferkit (version 99" in job(option, code=1).err


@pytest.mark.parametrize("arguments", [(), ("a", "b")])
def test_job_needs_one_folder(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], job: Job
) -> None:
    with pytest.raises(SystemExit) as ended:
        execute(["scrapy", "deferkit", "job", *arguments], Settings())
    assert ended.value.code == 2
    assert "job needs one JOBDIR" in capsys.readouterr().err
