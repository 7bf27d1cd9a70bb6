"""What is heavy is imported when it is first needed, in a thread."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scrapy_deferkit import _imports
from scrapy_deferkit._imports import import_in_thread
from scrapy_deferkit._runtime import call_soon, to_awaitable, to_deferred, turn

HEAVY = "deferkit_test_heavy"


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Write the code of a module that nobody has imported yet."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> None:
        (tmp_path / f"{HEAVY}.py").write_text(f"import threading\n{code}")

    yield write
    sys.modules.pop(HEAVY, None)


class Gate:
    """What the module tells of its import, and waits for before it is imported."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.allowed = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(threading, "gate", gate, raising=False)
    return gate


WAITS = "threading.gate.begun.set()\nassert threading.gate.allowed.wait(30)\n"


async def test_a_module_is_imported_while_the_loop_goes_on(
    heavy: Callable[[str], None], gate: Gate
) -> None:
    heavy(WAITS + "thread = threading.current_thread()")
    call_soon(gate.allowed.set)
    await import_in_thread(HEAVY)
    assert sys.modules[HEAVY].thread is not threading.current_thread()


async def test_whoever_comes_during_an_import_waits_for_its_end(
    heavy: Callable[[str], None], gate: Gate
) -> None:
    heavy(WAITS + "is_whole = True")
    first = to_deferred(import_in_thread(HEAVY))
    while not gate.begun.is_set():
        await turn()
    assert HEAVY in sys.modules
    second = to_deferred(import_in_thread(HEAVY))
    for _ in range(5):
        await turn()
    assert not second.called
    gate.allowed.set()
    await to_awaitable(second)
    assert sys.modules[HEAVY].is_whole
    await to_awaitable(first)


async def test_what_an_import_raises_is_raised_here(heavy: Callable[[str], None]) -> None:
    heavy("raise ZeroDivisionError")
    with pytest.raises(ZeroDivisionError):
        await import_in_thread(HEAVY)


@pytest.mark.no_runtime
def test_what_is_imported_already_takes_no_thread_and_no_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_imports, "WorkerThread", None)
    with pytest.raises(StopIteration):
        import_in_thread("json", "sys").send(None)


# -------------------------------------------------------------------------- in a whole crawl

CRAWL = """
import json, sys, threading
import scrapy
from scrapy.crawler import AsyncCrawlerProcess, CrawlerProcess

runtime, fails = json.loads(sys.argv[1])
threads = {}

class Finder:
    def find_spec(name, *_):
        if name in ("sqlalchemy", "tenacity", "rich"):
            threads[name] = threading.current_thread() is not threading.main_thread()

sys.meta_path.insert(0, Finder)

from scrapy_deferkit import Retry, StackPipeline

class NoPrice(Exception):
    retry_after = 0

def check(item):
    if fails:
        raise NoPrice
    return item

class Pipeline(StackPipeline):
    stack = Retry(check, on=NoPrice)

class Shop(scrapy.Spider):
    name = "shop"
    start_urls = ["data:,a"]

    def parse(self, response):
        yield {"title": response.text}

settings = {
    "ADDONS": {"scrapy_deferkit.Addon": 500},
    "ITEM_PIPELINES": {Pipeline: 1},
    "TELNETCONSOLE_ENABLED": False,
}
if runtime == "twisted":
    settings["TWISTED_REACTOR"] = "twisted.internet.selectreactor.SelectReactor"
if runtime == "none":
    settings["TWISTED_REACTOR_ENABLED"] = False
process = (AsyncCrawlerProcess if runtime == "none" else CrawlerProcess)(settings)
crawler = process.create_crawler(Shop)
process.crawl(crawler)
process.start()
names = ("finish_reason", "item_scraped_count", "deferkit/items/dead_lettered")
print(json.dumps([threads, *map(crawler.stats.get_value, names)]))
"""


def crawl(folder: Path, runtime: str, *, fails: bool) -> list[Any]:
    """Crawl in an interpreter of its own, which has imported nothing beforehand.

    Return which heavy modules it has imported, and whether in a thread; how it ended; and how many
    items were scraped and kept as dead letters.
    """
    script = folder / "crawl.py"
    script.write_text(CRAWL)
    arguments = [sys.executable, script, json.dumps([runtime, fails])]
    ended = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    told: list[Any] = json.loads(ended.stdout)
    return told


@pytest.mark.crawl
@pytest.mark.parametrize("runtime", ["asyncio", "twisted", "none"])
def test_a_crawl_in_which_nothing_fails_imports_what_draws_the_report_and_makes_no_file(
    tmp_path: Path, runtime: str
) -> None:
    assert crawl(tmp_path, runtime, fails=False) == [{"rich": True}, "finished", 1, None]
    assert [path.name for path in tmp_path.iterdir()] == ["crawl.py"]


@pytest.mark.crawl
@pytest.mark.parametrize("runtime", ["asyncio", "twisted", "none"])
def test_all_that_a_failure_needs_is_imported_in_a_thread(tmp_path: Path, runtime: str) -> None:
    imported, *ended = crawl(tmp_path, runtime, fails=True)
    assert imported == {"tenacity": True, "sqlalchemy": True, "rich": True}
    assert ended == ["finished", None, 1]
    assert (tmp_path / ".scrapy/deferkit/shop.sqlite").is_file()
