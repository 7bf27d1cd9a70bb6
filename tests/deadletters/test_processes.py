"""Several processes replay from one table, and one of them may die."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scrapy_deferkit.deadletters import DeadLetters

from ..scale import tenth_of, with_the_latest
from .failures import failed
from .replay import SELECTION

pytestmark = [pytest.mark.crawl, with_the_latest]

ROWS = tenth_of(10_000)
GIVES_UP_AFTER = 60
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(url: str) -> Iterator[Start]:
    """What starts a process that is ready to take letters, and ends it with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(owner: str, keep: int = 0) -> subprocess.Popen[str]:
        program = str(Path(__file__).with_name("replay.py"))
        process = subprocess.Popen(
            [sys.executable, "-I", program, url, owner, str(keep)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def wait_until_it_took_some(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "took\n"


def test_two_processes_take_each_letter_once(letters: DeadLetters, start: Start) -> None:
    letters.put([failed(f"{number:05}", number) for number in range(ROWS)])
    processes = [start("run 1"), start("run 2")]
    for process in processes:
        go(process)
        wait_until_it_took_some(process)
    for process in processes:
        go(process)
    delivered = [
        process.communicate(timeout=GIVES_UP_AFTER)[0].splitlines() for process in processes
    ]
    assert [process.returncode for process in processes] == [0, 0]
    assert all(delivered)
    both = sorted(delivered[0] + delivered[1])
    assert both == [f"delivered {number:05}" for number in range(ROWS)]
    assert letters.count() == 0


def test_what_a_killed_process_held_comes_back_when_its_lease_ends(
    letters: DeadLetters, start: Start
) -> None:
    letters.put([failed(f"{number:04}", number) for number in range(1000)])
    process = start("run 1", keep=300)
    go(process)
    wait_until_it_took_some(process)
    go(process)
    said: dict[str, set[str]] = {"delivered": set(), "kept": set()}
    assert process.stdout is not None
    for line in iter(process.stdout.readline, "waiting\n"):
        what, letter = line.split()
        said[what].add(letter)
    process.kill()
    process.wait()
    assert (len(said["delivered"]), len(said["kept"])) == (300, 300)

    first = {letter.id for letter in letters.take(SELECTION, 1000, "run 2", 60)}
    assert len(first) == 400
    assert not first & (said["kept"] | said["delivered"])
    assert letters.take(SELECTION, 1000, "run 2", 60) == []
    letters.renew("run 1", list(said["kept"]), 0)  # it ends now, as it would a minute later
    back = {letter.id for letter in letters.take(SELECTION, 1000, "run 2", 60)}
    assert back == said["kept"]
    assert letters.delivered("run 2", first | back) == first | back
    assert letters.count() == 0
