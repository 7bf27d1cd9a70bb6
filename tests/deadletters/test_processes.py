"""Several processes replay from one table, and one of them may die."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scrapy_deferkit.deadletters import DeadLetters

from .failures import failed
from .replay import SELECTION

pytestmark = pytest.mark.crawl

ROWS = 10_000
GIVES_UP_AFTER = 60
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(url: str) -> Iterator[Start]:
    """What starts a process that is ready to take letters, and ends it with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(owner: str, lease_seconds: float = 60, keep: int = 0) -> subprocess.Popen[str]:
        program = str(Path(__file__).with_name("replay.py"))
        process = subprocess.Popen(
            [sys.executable, "-I", program, url, owner, str(lease_seconds), str(keep)],
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


def test_two_processes_take_each_letter_once(letters: DeadLetters, start: Start) -> None:
    letters.put([failed(f"{number:05}", number) for number in range(ROWS)])
    processes = [start("run 1"), start("run 2")]
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
    lease_seconds = 3
    process = start("run 1", lease_seconds, keep=300)
    go(process)
    said: dict[str, set[str]] = {"delivered": set(), "kept": set()}
    assert process.stdout is not None
    for line in iter(process.stdout.readline, "waiting\n"):
        what, letter = line.split()
        said[what].add(letter)
    ends_at = time.monotonic() + lease_seconds
    process.kill()
    process.wait()
    assert (len(said["delivered"]), len(said["kept"])) == (300, 300)

    first = {letter.id for letter in letters.take(SELECTION, 1000, "run 2", 60)}
    assert time.monotonic() < ends_at, "too slow a machine to tell"
    assert len(first) == 400
    assert not first & (said["kept"] | said["delivered"])
    back: set[str] = set()
    while len(back) < 300 and time.monotonic() < ends_at + GIVES_UP_AFTER:
        back |= {letter.id for letter in letters.take(SELECTION, 1000, "run 2", 60)}
    assert back == said["kept"]
    assert letters.delivered("run 2", first | back) == first | back
    assert letters.count() == 0
