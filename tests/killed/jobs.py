"""Jobs whose crawls run in processes of their own, and what has become of their items."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scrapy_deferkit.deadletters import DeadLetters

from .. import warm
from . import crawl

RUNTIMES = ("asyncio", "twisted", "none")
ENDS_WITHIN = 120
"""Seconds after which a crawl will not end any more."""


class Job:
    """A JOBDIR with its crawls, one after the other."""

    program = crawl.__file__

    def __init__(self, path: Path, runtime: str, items: int = 200, **plan: Any) -> None:
        path.mkdir(exist_ok=True)
        self.folder = crawl.Folder(path)
        self.items = items
        self.letters_url = f"sqlite:///{path}/letters.sqlite"
        self.process: warm.Program | None = None
        self.plan = {
            "runtime": runtime,
            "items": items,
            "spider": "Killed",
            "has_stack": False,
            "sink_seconds": [0.01, 0.03],
            "settings": {},
            "faults": {},
            "per_page": 25,
            "hold_after": None,
            **plan,
        }

    def write_plan(self, **plan: Any) -> Path:
        """Write what the next crawl is to do."""
        settings = self.plan["settings"] | plan.pop("settings", {})
        whole = {**self.plan, **plan, "settings": settings}
        path = self.folder.path / "plan.json"
        path.write_text(json.dumps(whole))
        return path

    def start(self, **plan: Any) -> None:
        """Start a crawl; it opens its spider some time later.

        With ``hold_after=N`` its sink takes N items and holds the others until :meth:`let_go`: such
        a crawl does not end by itself, however fast or slow the machine is.
        """
        self._go.unlink(missing_ok=True)
        self._opened_before = len(self.folder.lines("opened"))
        output = self.folder.path / "output"
        self.process = warm.start(
            self.program,
            str(self.write_plan(**plan)),
            stdout=output,
            stderr=output,
        )

    @property
    def _go(self) -> Path:
        return self.folder.path / "go"

    def let_go(self) -> None:
        """Have the sink hold no item any more."""
        self._go.touch()

    def wait_until(self, condition: Callable[[], object]) -> bool:
        """Wait until *condition* holds; tell whether the crawl still runs then."""
        assert self.process is not None
        until = time.monotonic() + ENDS_WITHIN
        while not condition() and self.process.poll() is None:
            assert time.monotonic() < until, self.log
            time.sleep(0.02)
        return self.process.poll() is None

    def wait_until_open(self) -> bool:
        """Wait until the spider is open."""
        return self.wait_until(lambda: len(self.folder.lines("opened")) > self._opened_before)

    def wait(self) -> int:
        """Wait until the crawl ends; give its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the crawl does not end:\n{self.log}") from None

    def run(self, **plan: Any) -> int:
        """Run a crawl to its end; give its exit code."""
        self.start(**plan)
        return self.wait()

    def finish(self) -> None:
        """Run the crawl until it has nothing to do any more."""
        assert self.run(hold_after=None) == 0, self.log
        assert self.reason == "finished", self.log

    def stop(self) -> None:
        """Leave no process behind."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def kill_after(self, seconds: float, hold_after: int) -> None:
        """Start a crawl that does not end by itself, and kill it when it is open for so long."""
        self.start(hold_after=hold_after)
        assert self.wait_until_open(), self.log
        assert self.process is not None
        time.sleep(seconds)  # the moment is random
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL, self.log

    # ---------------------------------------------------------------------- what has become of it

    @property
    def log(self) -> str:
        return "\n".join(self.folder.lines("log")[-60:] + self.folder.lines("output")[-40:])

    @property
    def whole_log(self) -> str:
        return "\n".join(self.folder.lines("log"))

    @property
    def closed(self) -> dict[str, Any]:
        """How the last crawl that closed did so: its reason and its stats."""
        return json.loads(self.folder.lines("closed")[-1])

    @property
    def reason(self) -> str:
        return self.closed["reason"]

    def stat(self, name: str) -> str | None:
        return self.closed["stats"].get(name)

    def numbers(self, name: str) -> Counter[int]:
        return Counter(int(line) for line in self.folder.lines(name))

    @property
    def entered(self) -> set[int]:
        return set(self.numbers("entered"))

    def rows(self) -> dict[int, tuple[int, int]]:
        """Give what the sink's table has: price and times in the stack, by item."""
        path = self.folder.path / "sink.sqlite"
        if not path.exists():
            return {}
        table = sqlite3.connect(path)
        rows = {n: (price, stacked) for n, price, stacked in table.execute("SELECT * FROM items")}
        table.close()
        return rows

    def dead(self) -> Counter[int]:
        """Give the items that are dead letters, each with how often it is."""
        store = DeadLetters(self.letters_url)
        try:
            return Counter(json.loads(letter.item)["n"] for letter in store.select())
        finally:
            store.close()

    def check(
        self,
        *,
        all_entered: bool = True,
        may_be_cancelled: bool = False,
        may_be_lost: bool = False,
    ) -> str:
        """Check that each item ended as it has to; return what was measured in words."""
        entered, rows, dead = self.entered, self.rows(), self.dead()
        dropped = set(self.numbers("dropped"))
        if all_entered:
            assert entered == set(range(self.items)), self.log
        lost = entered - set(rows) - set(dead) - dropped
        assert may_be_lost or not lost, f"lost: {sorted(lost)}\n{self.log}"
        assert max(dead.values(), default=1) == 1, f"doubled: {dead.most_common(5)}"
        # One that is cancelled behind its sink is in both, and is replayed into the same row.
        assert may_be_cancelled or not set(rows) & set(dead)
        assert not dropped & (set(rows) | set(dead))
        has_stack = self.plan["has_stack"]
        for number, (price, stacked) in rows.items():
            in_stack = has_stack and self.page_of(number) > 0
            assert price == 2 * crawl.price_of(number)
            assert stacked == in_stack, f"{number} was in the stack {stacked} times"
        for number in entered - lost:
            if number not in dead or not may_be_cancelled:
                assert (number in dead) == self.is_to_fail(number), number
        for line in self.folder.lines("scraped"):
            number, url = line.split(" ", 1)
            page = self.page_of(int(number))
            assert url == (f"data:,{page}" if page else "None")
        delivered = self.numbers("delivered")
        twice = sum(delivered.values()) - len(delivered)
        return (
            f"{len(entered)} items entered, {len(rows)} in the sink, {len(dead)} dead letters, "
            f"{len(dropped)} dropped, {len(lost)} lost, {twice} delivered twice"
        )

    def page_of(self, number: int) -> int:
        """Give the page of an item; 0 for those of start(), which has the ones beyond the plan."""
        return number // self.plan["per_page"] if number < self.items else 0

    def is_to_fail(self, number: int) -> bool:
        kind, in_stack = number % 50, self.plan["has_stack"] and self.page_of(number) > 0
        return kind in crawl.FAIL or (in_stack and kind == crawl.FAILS_IN_STACK)


def random_moments(seed: int, number: int, longest: float) -> list[float]:
    """Give *number* random times up to *longest* seconds."""
    source = random.Random(seed)
    return [source.uniform(0, longest) for _ in range(number)]
