"""The file of a job: what is written together, and how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scrapy_deferkit import _jobfile
from scrapy_deferkit._jobfile import Batch, JobFile, Queue, look

from .running import rows

pytestmark = pytest.mark.no_runtime


@pytest.fixture
def file(tmp_path: Path) -> Iterator[JobFile]:
    file = JobFile(tmp_path)
    file.open(4)
    yield file
    file.close()


@pytest.mark.parametrize("number", [1, 333, 334, 999, 1000, 5000])
def test_many_rows_are_written_and_deleted_as_few_are(file: JobFile, number: int) -> None:
    queues = [Queue(1, "/0", "a.example")]
    requests = [(n, 1, b"%d" % n) for n in range(1, number + 1)]
    file.write(Batch(queues=queues, requests=requests, seen=[(b"%d" % n,) for n in range(5)]), [])
    assert rows(file.folder, "SELECT id, queue, data FROM requests ORDER BY id") == requests
    seen = [(b"%d" % n,) for n in range(number)]
    file.write(Batch(seen=seen, gone=[(n,) for n in range(2, number + 1)]), [])
    assert rows(file.folder) == [1]
    assert rows(file.folder, "SELECT count(*) FROM seen") == [max(number, 5)]


def test_a_thread_that_writes_needs_the_interpreter_lock_a_few_times_only(file: JobFile) -> None:
    executed: list[str] = []
    assert file._writer is not None
    file._writer.set_trace_callback(executed.append)
    file.write(
        Batch(
            queues=[Queue(1, "/0", "a.example")],
            requests=[(n, 1, b"") for n in range(1, 10_001)],
            seen=[(b"%d" % n,) for n in range(10_000)],
            gone=[(n,) for n in range(1, 5_001)],
        ),
        [],
    )
    assert len(executed) < 60


def test_the_notes_of_what_is_in_work_do_not_grow_for_ever(
    file: JobFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_jobfile, "_MOST_NOTED", 1000)
    notes = file.folder / "deferkit.work"
    requests = [(n, 1, b"") for n in range(1, 2001)]
    file.write(Batch(queues=[Queue(1, "/0", "a.example")], requests=requests), [])
    for number in range(1, 1001):
        file.note_given(number)
        assert notes.stat().st_size < 1020
        if number > 3:
            file.note_left(number)
    file.note_given(1001)
    assert look(file.folder).in_work == 4  # as the process dies now
    assert not notes.with_suffix(".new").exists()
    file.note_closing()
    for number in range(1002, 1102):
        file.note_given(number)
        file.note_left(number)
    file.close()
    assert look(file.folder).last_run == "closed"


def test_the_notes_are_seldom_begun_anew_while_much_is_in_work(
    file: JobFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    note_anew = JobFile._note_anew

    def note(self: JobFile) -> None:
        begun.append(len(self._in_work))
        note_anew(self)

    monkeypatch.setattr(JobFile, "_note_anew", note)
    monkeypatch.setattr(_jobfile, "_MOST_NOTED", 1000)
    for number in range(1, 2001):
        file.note_given(number)
    assert begun
    assert len(begun) <= 5
