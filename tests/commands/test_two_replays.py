"""Several ``scrapy deferkit replay`` at once share the letters, and one of them may die."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone

import pytest

from scrapy_deferkit.deadletters import DeadLetters

from .. import warm
from ..scale import tenth_of, with_the_latest
from .project import Project, failed

pytestmark = [pytest.mark.crawl, with_the_latest]

GIVES_UP_AFTER = 120
"""Seconds for all that one test waits for."""

SINK = """
import asyncio
import os
from pathlib import Path


class Keys:
    \"\"\"Appends the key of each item to the file of its replay, up to as many as it may.\"\"\"

    def __init__(self, run):
        self._hold, self._waits = Path(f"{run}.hold"), Path(f"{run}.waits")
        # Each key is one write, so what is in the file was delivered, whatever came after it.
        self._keys = os.open(f"{run}.keys", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._delivered = 0

    @classmethod
    def from_crawler(cls, crawler):
        return cls(crawler.settings["RUN"])

    async def process_item(self, item):
        while self._is_held():
            self._waits.touch()
            await asyncio.sleep(0.05)
        self._delivered += 1
        os.write(self._keys, f"{item['title']}\\n".encode())
        return item

    def _is_held(self):
        try:
            return self._delivered >= int(self._hold.read_text() or 0)
        except FileNotFoundError:
            return False
"""

SUMMARY = re.compile(
    r"(\d+) delivered, 0 dropped, 0 failed again"
    r"(?:, (\d+) not replayed, or held by another replay)?\n"
)


class Run:
    """A replay in a process of its own, which can be held before it delivers more."""

    def __init__(
        self, project: Project, url: str, name: str, options: tuple[str, ...], waits_until: float
    ) -> None:
        ends = ("hold", "waits", "keys", "log")
        self._files = {end: project.folder / f"{name}.{end}" for end in ends}
        self._waits_until = waits_until
        self._files["log"].touch()
        self.hold()
        command = ["deferkit", "replay", "books", "--url", url, "-s", f"RUN={name}", *options]
        self.process = warm.start(
            *["-m", "scrapy", *command],
            cwd=project.folder,
            env=project.environment(),
            stderr=self._files["log"],
        )

    def hold(self, after: int = 0) -> None:
        """Have it wait before the next letter, or when it has delivered *after* in all."""
        self._files["hold"].write_text(f"{after}")

    def go_on(self) -> None:
        self._files["hold"].unlink()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds, which is to come before the end of the process."""
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < self._waits_until, f"{self.delivers} delivered\n{self.log}"
            time.sleep(0.01)

    def wait_until_held(self) -> None:
        """Wait until the process has letters, and waits before it delivers them."""
        self._files["waits"].unlink(missing_ok=True)
        self.wait_for(self._files["waits"].exists)

    @property
    def delivers(self) -> int:
        """How many it has delivered until now."""
        path = self._files["keys"]
        return path.read_bytes().count(b"\n") if path.exists() else 0

    @property
    def keys(self) -> list[str]:
        """What it has delivered, in order."""
        return self._files["keys"].read_text().splitlines()

    @property
    def log(self) -> str:
        return self._files["log"].read_text(encoding="utf-8")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.returncode == -signal.SIGKILL

    def end(self) -> tuple[int, int]:
        """Wait for its end; give how many it says it delivered, and how many it left."""
        self.process.wait(max(1, self._waits_until - time.monotonic()))
        summary = SUMMARY.fullmatch(self.log)  # and nothing else was logged
        assert summary is not None, self.log
        left = int(summary[2] or 0)
        assert self.process.returncode == (1 if left else 0), self.log
        return int(summary[1]), left


Start = Callable[..., Run]


@pytest.fixture
def url(project: Project, rows: tuple[str, int], request: pytest.FixtureRequest) -> str:
    """Where the letters are: where a project has them by default, or in a PostgreSQL."""
    if rows[0] == "sqlite":
        return project.url()
    schema: str = request.getfixturevalue("postgres").create_schema()
    return schema


@pytest.fixture
def store(url: str) -> Iterator[DeadLetters]:
    letters = DeadLetters(url)
    yield letters
    letters.close()


@pytest.fixture
def keys(store: DeadLetters, rows: tuple[str, int]) -> list[str]:
    """The keys of the letters that are there at first."""
    keys = [f"{number:05}" for number in range(rows[1])]
    store.put(failed(key, age=100_000 - number) for number, key in enumerate(keys))
    return keys


@pytest.fixture
def start(project: Project, url: str) -> Iterator[Start]:
    """What starts a replay that waits before it delivers its first letter."""
    project.write("shop/keys.py", SINK)
    project.add_settings('ITEM_PIPELINES = {"shop.keys.Keys": 1}')
    waits_until = time.monotonic() + GIVES_UP_AFTER
    runs: list[Run] = []

    def start(name: str, *options: str) -> Run:
        runs.append(Run(project, url, name, options, waits_until))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()


def end_lease(store: DeadLetters, owner: str) -> None:
    """Let the lease of *owner* end now, as it would minutes later."""
    held = [letter.id for letter in store.select() if letter.leased_by == owner]
    assert store.renew(owner, held, 0) == set(held)


on_both_with_few = pytest.mark.parametrize(
    "rows", [("postgresql", 300), ("sqlite", 300)], ids=["postgresql", "sqlite"]
)
on_both = pytest.mark.parametrize(
    "rows",
    [("postgresql", tenth_of(10_000)), ("sqlite", tenth_of(10_000))],
    ids=["postgresql", "sqlite"],
)


@on_both
def test_two_replays_deliver_each_letter_once(
    start: Start, store: DeadLetters, keys: list[str]
) -> None:
    runs = [start("one"), start("two")]
    for run in runs:
        run.wait_until_held()
    for run in runs:
        run.go_on()
    said = [run.end() for run in runs]
    assert [len(run.keys) for run in runs] == [delivered for delivered, _ in said]
    assert sorted(runs[0].keys + runs[1].keys) == keys
    assert all(run.keys for run in runs)
    assert store.count() == 0
    # The one that ends first may tell of what the other has in work; that one leaves nothing.
    assert 0 in [left for _, left in said]


@on_both
def test_a_running_replay_gets_what_a_killed_one_held_when_the_lease_ends(
    start: Start, store: DeadLetters, keys: list[str]
) -> None:
    killed = start("killed")
    killed.wait_until_held()
    (owner,) = {letter.leased_by for letter in store.select()} - {None}
    other = start("other")
    other.wait_until_held()
    # Neither gets so far that nothing is left for the other; one dies within a page.
    dies_after = len(keys) // 400 * 100 + 50
    other.hold(after=len(keys) // 2)
    killed.hold(after=dies_after)
    killed.wait_for(lambda: killed.delivers == dies_after)
    other.hold()
    killed.kill()
    in_flight = {letter.id for letter in store.select() if letter.leased_by == owner}

    other.wait_until_held()
    end_lease(store, owner)
    other.go_on()
    assert other.end() == (len(other.keys), 0)
    assert store.count() == 0
    times = Counter(killed.keys + other.keys)
    assert sorted(times) == keys
    assert max(times.values()) <= 2
    assert {key for key, number in times.items() if number == 2} <= in_flight
    assert in_flight & set(other.keys) - set(killed.keys)
    assert len(in_flight) <= 500  # a few pages of 100, and not all that was left


@on_both_with_few
def test_a_replay_renews_the_lease_of_what_it_holds(
    start: Start, store: DeadLetters, keys: list[str]
) -> None:
    def lease_ends() -> datetime:
        (end,) = {letter.leased_until for letter in store.select()} - {None}
        return end

    run = start("one", "--lease", "1")
    run.wait_until_held()
    first = lease_ends()
    assert first < datetime.now(timezone.utc) + timedelta(seconds=60)
    run.wait_for(lambda: lease_ends() > first)
    run.go_on()
    assert run.end() == (len(keys), 0)


@on_both_with_few
def test_no_replay_gets_what_a_killed_one_held_before_the_lease_ends(
    start: Start, store: DeadLetters, keys: list[str]
) -> None:
    killed = start("killed")
    killed.wait_until_held()
    (owner,) = {letter.leased_by for letter in store.select()} - {None}
    held = [letter.id for letter in store.select() if letter.leased_by == owner]
    second = start("second")
    second.wait_until_held()
    killed.kill()
    second.go_on()
    assert second.end() == (len(keys) - len(held), len(held))
    assert sorted(second.keys + held) == keys
    assert [letter.id for letter in store.select()] == held

    end_lease(store, owner)
    later = start("later")
    later.go_on()
    assert later.end() == (len(held), 0)
    assert later.keys == held
    assert store.count() == 0
