"""Two replays of one database, each a process of its own, deliver each letter once."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from scrapy_deferkit.deadletters import DeadLetters

from .project import Project, failed

pytestmark = pytest.mark.crawl

ROWS = 10_000
ENDS_WITHIN = 120
Start = Callable[..., "subprocess.Popen[str]"]

# Each delivery is one line, in one call, so that what a killed process delivered is there.
SINK = """
import os
from pathlib import Path

from scrapy_deferkit._runtime import sleep


class Sink:
    @classmethod
    def from_crawler(cls, crawler):
        sink = cls()
        sink.name = crawler.settings["SINK"]
        sink.seconds = crawler.settings.getfloat("SINK_SECONDS")
        return sink

    async def process_item(self, item):
        if self.seconds:
            await sleep(self.seconds)
        file = os.open(self.name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{item['title']}\\n".encode())
        os.close(file)
        return item
"""


@pytest.fixture(params=["postgres", "sqlite"])
def url(request: pytest.FixtureRequest, project: Project) -> str:
    project.write("shop/sink.py", SINK)
    project.add_settings('ITEM_PIPELINES = {"shop.sink.Sink": 1}')
    if request.param == "sqlite":
        return f"sqlite:///{project.folder / 'letters.sqlite'}"
    schema: str = request.getfixturevalue("postgres").create_schema()
    return schema


@pytest.fixture
def start(project: Project, url: str) -> Iterator[Start]:
    """What starts a replay, and leaves none behind."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, *options: str) -> subprocess.Popen[str]:
        where = ("--url", url, "-s", f"SINK={name}")
        process = subprocess.Popen(
            project.command("deferkit", "replay", "books", *where, *options),
            cwd=project.folder,
            env=project.environment(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


def put(url: str, number: int) -> DeadLetters:
    letters = DeadLetters(url)
    letters.put(failed(f"{each:05}", age=number - each) for each in range(number))
    return letters


def delivered(project: Project, name: str) -> list[str]:
    path = project.folder / name
    return path.read_text().splitlines() if path.exists() else []


def test_each_letter_is_delivered_once(project: Project, url: str, start: Start) -> None:
    letters = put(url, ROWS)
    replays = {name: start(name) for name in ("one", "two")}
    said = {name: each.communicate(timeout=ENDS_WITHIN)[1] for name, each in replays.items()}
    by_each = {name: delivered(project, name) for name in replays}
    assert all(by_each.values()), "one of them came too late"
    assert sorted(by_each["one"] + by_each["two"]) == [f"{each:05}" for each in range(ROWS)]
    for name, lines in by_each.items():
        assert f"{len(lines)} delivered, 0 dropped, 0 failed again" in said[name]
        assert replays[name].returncode == 0, said
    assert letters.count() == 0
    letters.close()


def test_what_a_killed_replay_held_comes_back_when_its_lease_ends(
    project: Project, url: str, start: Start
) -> None:
    letters = put(url, 2000)
    lease = 6  # more than the other one takes
    killed = start("killed", "--lease", str(lease), "-s", "SINK_SECONDS=0.01")
    other = start("other", "--lease", str(lease), "-s", "SINK_SECONDS=0.01")
    until = time.monotonic() + ENDS_WITHIN
    while len(delivered(project, "killed")) < 300:
        assert time.monotonic() < until
        assert killed.poll() is None, "it has ended before it was killed"
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    other.communicate(timeout=ENDS_WITHIN)
    left = [letter.item for letter in letters.select()]
    assert left, "it held nothing when it was killed"
    assert not {json.loads(item)["title"] for item in left} & set(delivered(project, "other"))
    # What it held is nobody's until the lease ends; a replay that is started then takes it.
    while letters.count() and time.monotonic() < until:
        start("next").communicate(timeout=ENDS_WITHIN)
    assert letters.count() == 0
    lines = {name: delivered(project, name) for name in ("killed", "other", "next")}
    assert len(lines["next"]) == len(left)
    assert set().union(*lines.values()) == {f"{each:05}" for each in range(2000)}
    # Twice is only what was delivered and not yet removed when the process died.
    twice = set(lines["killed"]) & set(lines["next"])
    assert len(lines["other"]) + len(lines["next"]) + len(set(lines["killed"]) - twice) == 2000
    letters.close()
