"""``scrapy deferkit crawl``: the exit code and the summary say how the items have fared."""

from __future__ import annotations

import io
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from scrapy import Spider, signals
from scrapy.cmdline import execute
from scrapy.settings import Settings

from scrapy_deferkit._crawl_command import CrawlCommand, Watch, _live
from scrapy_deferkit.testing import mock_crawler

from .project import ASYNCIO, EPOLL, NO_REACTOR, Project


class Books(Spider):
    name = "books"


SENT: dict[str, tuple[object, dict[str, Any]]] = {
    "opened": (signals.spider_opened, {}),
    "page": (signals.response_received, {"response": None, "request": None}),
    "scraped": (signals.item_scraped, {"item": {}}),
    "dropped": (signals.item_dropped, {"item": {}}),
    "failed": (signals.item_error, {"item": {}}),
    "broken": (signals.spider_error, {}),
}


async def watched(*events: str, reason: str | None = "finished", **stats: int) -> Watch:
    """Return what has watched a crawl in which the *events* happened."""
    crawler = mock_crawler(spider=Books())
    watch = Watch(crawler)
    for event in events:
        signal, arguments = SENT[event]
        crawler.signals.send_catch_log(signal, **arguments)
    for key, value in stats.items():
        crawler.stats.set_value(f"deferkit/{key.replace('__', '/')}", value)
    if reason is not None:
        crawler.signals.send_catch_log(signals.spider_closed, reason=reason)
    return watch


@pytest.mark.parametrize(
    ("events", "reason", "stats", "code"),
    [
        ("opened", "finished", {}, 0),
        ("opened scraped dropped", "finished", {}, 0),
        ("opened scraped", "closespider_itemcount", {}, 0),
        ("opened scraped", "closespider_timeout", {}, 0),
        ("opened scraped failed", "finished", {}, 1),
        ("opened scraped failed", "closespider_itemcount", {}, 1),
        ("opened scraped", "finished", {"job__set_aside": 1}, 1),
        ("opened scraped", "finished", {"items__errors": 1}, 1),
        ("opened failed", "item_failures", {}, 2),
        ("opened failed", "dead_letters_full", {}, 2),
        ("opened failed", "dead_letters_unavailable", {}, 2),
        ("opened scraped", "job_failed", {}, 2),
        ("opened", "stack_not_opened", {}, 2),
        ("opened scraped", "memusage_exceeded", {}, 2),
        ("opened scraped", "closespider_errorcount", {}, 2),
        ("opened scraped", "shutdown", {}, 2),
        ("opened scraped", "disk full", {}, 2),
        ("opened scraped", None, {}, 2),
        ("", None, {}, 3),
        ("", "finished", {}, 3),
    ],
)
async def test_the_exit_code_says_how_the_items_fared(
    events: str, reason: str | None, stats: dict[str, int], code: int
) -> None:
    watch = await watched(*events.split(), reason=reason, **stats)
    assert watch.exit_code == code
    outcomes = ("delivered", "some_failed", "closed", "did_not_start")
    assert watch.summary()["outcome"] == outcomes[code]


async def test_the_last_line_tells_what_to_do() -> None:
    watch = await watched("opened", "scraped", "failed", "failed", items__dead_lettered=2)
    assert watch.text() == (
        "books: 1 delivered, 0 dropped, 2 failed; 2 kept: scrapy deferkit dead-letters"
    )
    watch = await watched(
        *("opened", "failed", "broken"),
        reason="item_failures",
        items__not_dead_lettered=1,
        job__set_aside=3,
        items__errors=4,
    )
    assert watch.text() == (
        "books: 0 delivered, 0 dropped, 1 failed; 1 not kept: they are in the log; "
        "3 set aside: scrapy deferkit job JOBDIR; errors in callbacks, whose items are missing: 1; "
        "errors outside the pipelines: 4; closed early (item_failures)"
    )
    watch = await watched("opened", reason=None)
    assert watch.text().endswith("closed early (by force)")
    assert (await watched(reason=None)).text() == "books did not start: the log says why"


async def test_a_terminal_has_a_line_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = await watched("opened", "page", "page", "scraped", "failed", reason=None)
    assert watch.line().plain == "books: 2 responses, 1 scraped, 0 dropped, 1 failed, 0:00"

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    long_line = "/".join(["https://shop.example", *map(str, range(100))])
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", pipe)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    with _live(watch):
        print("what the spider prints")
        sys.stderr.write(f"{long_line}\n")
    assert "books: 2 responses" in terminal.getvalue()
    assert long_line in terminal.getvalue()
    assert pipe.getvalue() == "what the spider prints\n"


async def test_what_is_no_terminal_gets_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with _live(await watched("opened")):
        assert isinstance(sys.stderr, io.StringIO)
    assert sys.stderr.getvalue() == ""


# -------------------------------------------------------------------------- what does not start


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["books", "--summary"], "--summary: expected one argument"),
        ([], "one SPIDER is expected"),
        ([""], "one SPIDER is expected"),
        (["books", "more"], "got 'books more'"),
        (["books", "--sumary=x"], "there is no option --sumary=x here"),
        (["books"], "there is no project here"),
        (["books", "--summary", "no/such/folder.json"], "cannot be written"),
    ],
)
def test_what_makes_no_sense_exits_with_3(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCRAPY_SETTINGS_MODULE", raising=False)
    with pytest.raises(SystemExit) as ended:
        execute(["scrapy", "deferkit", "crawl", *arguments], Settings())
    assert ended.value.code == 3
    assert told in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.no_runtime
def test_the_summary_is_of_this_crawl_from_its_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrawlCommand, "_process_options", lambda *_: None)
    path = tmp_path / "out.json"
    path.write_text('{"outcome": "delivered"}')
    CrawlCommand(Settings()).process_options(["books"], Namespace(summary=path))
    assert json.loads(path.read_text()) == {"outcome": "running", "exit_code": None}
    assert [*tmp_path.iterdir()] == [path]


def summary(project: Project) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((project.folder / "out.json").read_text())
    return read


@pytest.mark.crawl
def test_a_spider_that_cannot_be_loaded_exits_with_3(project: Project) -> None:
    project.write("out.json", '{"outcome": "delivered"}')
    said = project.scrapy("deferkit", "crawl", "boks", "--summary", "out.json", code=3).stderr
    assert "there is no spider 'boks' in this project; there are: books" in said
    assert summary(project)["outcome"] == "did_not_start"
    project.write("shop/spiders/broken.py", "raise ZeroDivisionError('of mine')")
    said = project.scrapy("deferkit", "crawl", "books", "--summary", "out.json", code=3).stderr
    assert "ZeroDivisionError: of mine" in said
    assert summary(project)["error"] == ("the spider cannot be loaded: ZeroDivisionError: of mine")


# ------------------------------------------------------------------------------- whole crawls


@pytest.mark.crawl
@pytest.mark.parametrize("runtime", [ASYNCIO, EPOLL, NO_REACTOR], ids=["asyncio", "epoll", "none"])
def test_a_crawl_tells_a_program_how_it_has_ended(
    project: Project, runtime: tuple[str, ...]
) -> None:
    options = ("deferkit", "crawl", "books", "--summary", "out.json", *runtime)
    ended = project.scrapy(*options, "-o", "out.jsonl", code=1)
    told = summary(project)
    assert told.pop("seconds") > 0
    assert told == {
        "spider": "books",
        "outcome": "some_failed",
        "exit_code": 1,
        "reason": "finished",
        "responses": 1,
        "scraped": 1,
        "dropped": 1,
        "failed": 2,
        "callback_errors": 0,
        "kept": 2,
        "not_kept": 0,
        "set_aside": 0,
        "item_errors": 0,
    }
    assert ended.stderr.endswith(
        "books: 1 delivered, 1 dropped, 2 failed; 2 kept: scrapy deferkit dead-letters\n"
    )
    assert len((project.folder / "out.jsonl").read_text().splitlines()) == 1


@pytest.mark.crawl
def test_the_settings_and_the_pipelines_make_the_exit_code(project: Project) -> None:
    (project.folder / "repaired").touch()
    project.scrapy("deferkit", "crawl", "books", "-s", "DEFERKIT_MAX_FAILED_ITEMS=1", code=0)
    (project.folder / "repaired").unlink()
    project.scrapy("deferkit", "crawl", "books", "-s", "DEFERKIT_MAX_FAILED_ITEMS=1", code=2)
    said = project.scrapy("deferkit", "crawl", "books", "-s", "ADDONS={}", code=1).stderr
    assert said.endswith("books: 1 delivered, 1 dropped, 2 failed\n")
    bad = ("-s", "DEFERKIT_MAX_FAILED_ITEMS=many", "--summary", "out.json")
    said = project.scrapy("deferkit", "crawl", "books", *bad, code=3).stderr
    assert said.splitlines()[-1].startswith(
        "books did not start: DEFERKIT_MAX_FAILED_ITEMS = 'many': a number of items is expected"
    )
    assert "never retrieved" not in said
    assert summary(project)["exit_code"] == 3
    assert summary(project)["error"].startswith("DEFERKIT_MAX_FAILED_ITEMS = 'many'")
    assert summary(project)["reason"] is None
