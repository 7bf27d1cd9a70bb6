"""``scrapy deferkit replay``: dead letters go through the pipelines, and nothing else does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from .project import ASYNCIO, EPOLL, NO_REACTOR, Project, book, failed

pytestmark = pytest.mark.crawl

FEEDS = """
FEEDS = {"out.json": {"format": "json", "overwrite": True}}
"""
SPIDER_FEEDS = (
    '    custom_settings = {"FEEDS": {"own.json": {"format": "json", "overwrite": True}}}\n'
)


def test_a_crawl_and_its_replay(project: Project) -> None:
    project.scrapy("crawl", "books")
    assert [letter["item"]["fields"]["title"] for letter in project.listed()] == [
        "Book 0",
        "Book 3",
    ]
    (project.folder / "start").unlink()
    (project.folder / "process_start").unlink()
    again = project.replay("books", code=1)
    assert "0 delivered, 0 dropped, 2 failed again\n" in again.stderr
    assert [letter.attempts for letter in project.kept()] == [2, 2]
    assert [letter.leased_by for letter in project.kept()] == [None, None]
    project.write("repaired", "")
    assert "2 delivered, 0 dropped, 0 failed again\n" in project.replay("books").stderr
    assert [item["title"] for item in project.sunk] == ["Book 0", "Book 1", "Book 3"]
    assert project.listed() == []
    assert not project.has("start")
    assert not project.has("process_start")
    nothing = project.replay("books")
    assert nothing.stderr.endswith("There are no dead letters of books to replay.\n")
    assert "Spider opened" not in project.replay("books", "-L", "INFO").stderr


@pytest.mark.parametrize(
    "runtime", [ASYNCIO, EPOLL, NO_REACTOR], ids=["asyncio", "epoll", "no reactor"]
)
def test_every_runtime_replays(project: Project, runtime: tuple[str, ...]) -> None:
    project.put(
        failed("a", book("A", "1.5")),
        failed("b", book("B", "gone")),
        failed("c", book("C", "ask us")),
        failed("d", {"title": "D", "price": "2"}),
        failed("e", '{"$item": "subprocess.Popen", "fields": {"args": "touch popen"}}'),
        failed("f", "{rotten"),
    )
    ended = project.replay("books", *runtime, code=1)
    assert "2 delivered, 1 dropped, 3 failed again\n" in ended.stderr
    assert [item["price"] for item in project.sunk] == [1.5, 2.0]
    assert {letter.id: letter.attempts for letter in project.kept()} == {"c": 2, "e": 2, "f": 2}
    assert {letter.leased_by for letter in project.kept()} == {None}
    assert not project.has("start")
    assert not project.has("process_start")
    assert not project.has("popen")


def test_the_filters_and_the_limit_say_which(project: Project) -> None:
    project.write("repaired", "")
    project.put(
        *(failed(f"{n}a", {"title": f"{n}"}, age=100 - n, step=f"step{n % 2}") for n in range(6))
    )
    project.run_sql("UPDATE deferkit_dead_letters SET item = replace(item, '}', ', \"price\": 1}')")
    project.replay("books", "--step", "step1", "--limit", "2")
    assert [item["title"] for item in project.sunk] == ["1", "3"]
    project.replay("books", "--id", "0")
    project.replay("books", "--older-than", "1s", "--error", "ask us", "--step", "step0")
    assert [item["title"] for item in project.sunk] == ["0", "1", "2", "3", "4"]
    assert [letter.id for letter in project.kept()] == ["5a"]


def test_feeds_stay_as_they_were_unless_asked_for(project: Project) -> None:
    project.add_settings(FEEDS)
    path = project.folder / "shop/spiders/books.py"
    project.write("repaired", "")
    feeds = ("out.json", "own.json", "new.jl")
    for name in feeds:
        project.write(name, "before")

    def replay(*options: str) -> list[str]:
        """Replay one letter; give the feeds that have changed."""
        project.put(failed("a"))
        project.replay("books", *options)
        texts = {name: (project.folder / name).read_text() for name in feeds}
        for name in feeds:
            project.write(name, "before")
        return [name for name, text in texts.items() if text != "before"]

    assert replay() == []
    assert replay("-o", "new.jl") == ["new.jl"]
    assert replay("-O", "new.jl") == ["new.jl"]
    assert replay("--feeds") == ["out.json"]
    path.write_text(
        path.read_text().replace("    async def start", SPIDER_FEEDS + "\n    async def start")
    )
    assert replay() == []
    assert replay("-o", "new.jl") == ["new.jl"]
    assert replay("--feeds") == ["own.json"]
    assert len(project.sunk) == 7


def test_the_job_of_the_crawl_is_left_alone(project: Project) -> None:
    project.add_settings('JOBDIR = "job"\nDEFERKIT_DEAD_LETTERS_MAX = 1')
    project.put(failed("a"), failed("b"))
    ended = project.replay("books", code=1)
    assert "0 delivered, 0 dropped, 2 failed again\n" in ended.stderr
    assert not project.has("job")


def test_the_arguments_of_the_spider_are_those_given(project: Project) -> None:
    project.write("repaired", "")
    project.put(failed("a", spider_args='{"site": "stored"}'))
    with (project.folder / "shop/pipelines.py").open("a") as file:
        file.write(
            "\n\nclass Site(Price):\n"
            "    def __init__(self, site): Path('site').write_text(site)\n"
            "    @classmethod\n"
            "    def from_crawler(cls, crawler): "
            "return cls(str(getattr(crawler.spider, 'site', None)))\n"
        )
    project.add_settings('ITEM_PIPELINES["shop.pipelines.Site"] = 0')
    assert project.listed()[0]["spider_args"] == {"site": "stored"}
    project.replay("books")
    assert (project.folder / "site").read_text() == "None"
    project.put(failed("a"))
    project.replay("books", "-a", "site=given")
    assert (project.folder / "site").read_text() == "given"


def test_a_spider_that_needs_an_argument_is_offered_the_letters_own(project: Project) -> None:
    path = project.folder / "shop/spiders/books.py"
    needing = 'name = "books"\n\n    def __init__(self, shop):\n        self.shop = shop\n'
    path.write_text(path.read_text().replace('name = "books"\n', needing))
    project.put(failed("a", spider_args='{"shop": "u k"}'), failed("b"))
    ended = project.replay("books", code=1)
    assert "scrapy deferkit replay books -a 'shop=u k'\n" in ended.stderr
    assert "the crawl did not start" in ended.stderr
    ended = project.replay("books", "-a", "shop=uk", "--step", "nowhere")
    assert ended.stderr.endswith("None match: there are 2 dead letters of books to replay.\n")
    assert "-a" not in project.replay("books", "-a", "shop=u k", code=1).stderr


def test_an_edited_row_is_replayed_as_edited(project: Project) -> None:
    project.scrapy("crawl", "books")
    editor = project.write("editor.sh", "sed -i 's/ask us/9.5/' \"$1\"\n")
    letter = project.kept()[0]
    project.letters("edit", letter.id, EDITOR=f"sh {editor}", VISUAL="")
    ended = project.replay("books", "--id", letter.id)
    assert "1 delivered, 0 dropped, 0 failed again\n" in ended.stderr
    assert {"title": "Book 0", "price": 9.5} in project.sunk
    assert [letter.item for letter in project.kept()] == [book("Book 3", "on request")]


def with_stack(project: Project, step: str) -> None:
    project.add_settings(
        f"""
DEFERKIT_SPIDER_STACK = "shop.steps.{step}"
SPIDER_MIDDLEWARES["scrapy_deferkit.StackSpiderMiddleware"] = 600
ITEM_PIPELINES = {{"shop.pipelines.Sink": 2}}
"""
    )


def test_items_of_the_spiders_stack_go_through_it_again(project: Project) -> None:
    with_stack(project, "checking")
    project.scrapy("crawl", "books")
    assert [letter.stage for letter in project.kept()] == ["spider stack"] * 3
    project.run_sql("UPDATE deferkit_dead_letters SET item = replace(item, 'ask us', '9.5')")
    ended = project.replay("books", code=1)
    assert "1 delivered, 0 dropped, 2 failed again\n" in ended.stderr
    assert [item["price"] for item in project.sunk] == [9.5, 1.5]
    assert [letter.attempts for letter in project.kept()] == [2, 2]


def test_a_processor_that_needs_the_page_fails_since_it_is_gone(project: Project) -> None:
    with_stack(project, "looking")
    project.put(failed("a", book("A", "1"), stage="spider stack"))
    project.replay("books", code=1)
    (letter,) = project.kept()
    assert (letter.attempts, letter.stage) == (2, "spider stack")
    assert letter.error_type == "scrapy.exceptions.NotSupported"
    assert letter.item == book("A", "1")


def test_a_class_that_is_gone_stops_no_other(project: Project) -> None:
    project.write("repaired", "")
    project.put(
        failed("a", book("A", "1").replace("Book", "Gone"), age=90),
        failed("b", book("B", "1"), age=80),
        failed("c", '{"$item": "outside.Thing", "fields": {}}', age=70),
        failed("d", book("D", "1"), age=60),
    )
    project.write("outside.py", "open('imported', 'w')\n\nclass Thing(dict): pass\n")
    marks = {letter["id"]: letter["unreadable"] for letter in project.listed()}
    assert "is no item class" in marks["a"]
    assert "may not be built" in marks["c"]
    assert (marks["b"], marks["d"]) == (None, None)
    project.replay("books", code=1)
    assert [item["title"] for item in project.sunk] == ["B", "D"]
    assert [letter.id for letter in project.kept()] == ["a", "c"]
    assert not project.has("imported")
    project.replay("books", "-s", "DEFERKIT_ITEM_CLASSES=outside.Thing", code=1)
    assert project.has("imported")


def test_a_row_of_an_unknown_stage_fails_again_and_is_not_delivered(project: Project) -> None:
    project.write("repaired", "")
    project.put(failed("a", book("A", "1"), age=90), failed("b", book("B", "1"), age=80))
    project.run_sql("UPDATE deferkit_dead_letters SET stage = 'pipeline' WHERE id = 'a'")
    project.replay("books", code=1)
    assert [item["title"] for item in project.sunk] == ["B"]
    (left,) = project.kept()
    assert (left.id, left.attempts) == ("a", 2)
    assert "its stage is 'pipeline'" in left.error


def test_letters_of_requests_stay_for_their_job(project: Project) -> None:
    project.write("repaired", "")
    outline = {"method": "GET", "url": "https://example.com/1"}
    project.put(failed("r", outline, stage="request"), failed("b", {"title": "B", "price": "2"}))
    ended = project.replay("books")
    assert "scrapy deferkit job JOBDIR --retry" in ended.stderr
    assert "1 delivered, 0 dropped, 0 failed again" in ended.stderr
    assert [(letter.id, letter.attempts) for letter in project.kept()] == [("r", 1)]


def test_a_scheduler_with_a_queue_of_its_own_is_left_alone(project: Project) -> None:
    project.write("repaired", "")
    project.write(
        "shop/queue.py",
        """
from pathlib import Path

from scrapy import Request
from scrapy.core.scheduler import Scheduler


class Persistent(Scheduler):
    def open(self, spider):
        opened = super().open(spider)
        Path("queue").unlink()
        self.enqueue_request(Request("data:,more"))
        return opened
""",
    )
    project.write("queue", "")
    project.add_settings('SCHEDULER = "shop.queue.Persistent"')
    project.put(failed("a", book("A", "1")))
    project.replay("books")
    assert [item["title"] for item in project.sunk] == ["A"]
    assert project.has("queue")


def test_an_error_outside_the_pipelines_stops_no_other_letter(project: Project) -> None:
    project.write(
        "shop/log.py",
        """
from scrapy.logformatter import LogFormatter


class Failing(LogFormatter):
    def item_error(self, *arguments):
        raise ZeroDivisionError
""",
    )
    project.put(*(failed(f"{number:03}", age=1000 - number) for number in range(150)))
    options = ("-s", "LOG_FORMATTER=shop.log.Failing", "-s", "DEFERKIT_CONCURRENT_ITEMS=10")
    project.replay("books", *options, code=1)
    assert [letter.attempts for letter in project.kept()] == [2] * 150


@pytest.mark.parametrize("key", ["", "title"])
def test_what_a_replay_has_kept_itself_is_left_to_the_next_one(project: Project, key: str) -> None:
    project.write(
        "shop/splitting.py",
        """
class Split:
    @classmethod
    def from_crawler(cls, crawler):
        pipeline = cls()
        pipeline.crawler = crawler
        return pipeline

    async def process_item(self, item):
        if "part" not in item:
            part = {"title": item["title"], "part": 1}
            await self.crawler.engine.scraper.start_itemproc_async(part, response=None)
            return item
        raise ValueError("a part")
""",
    )
    project.add_settings('ITEM_PIPELINES = {"shop.splitting.Split": 1}')
    project.put(*(failed(f"{number}") for number in range(3)))
    ended = project.replay("books", "-s", f"DEFERKIT_DEAD_LETTERS_KEY={key}", code=1)
    assert "3 delivered, 0 dropped, 0 failed again, 3 new letters of items" in ended.stderr
    kept = project.kept()
    assert [it.id.endswith("-0") for it in kept] == [bool(key)] * 3
    assert [json.loads(letter.item)["part"] for letter in kept] == [1, 1, 1]
    assert [letter.attempts for letter in kept] == [1, 1, 1]
    assert [letter.leased_by for letter in kept] == [None, None, None]


def test_a_letter_stays_where_an_item_processor_of_ones_own_fails(project: Project) -> None:
    project.write(
        "shop/processor.py",
        """
from scrapy_deferkit import DeferKitItemProcessor


class Checking(DeferKitItemProcessor):
    async def process_item_async(self, item):
        item = await super().process_item_async(dict(item))
        if item["title"] == "a":
            raise ValueError("not one of ours")
        return item
""",
    )
    project.add_settings('ITEM_PROCESSOR = "shop.processor.Checking"')
    project.write("repaired", "")
    project.put(failed("a"), failed("b"))
    project.replay("books", code=1)
    (letter,) = project.kept()
    assert (letter.id, letter.step, letter.attempts) == ("a", "Checking", 2)
    assert letter.leased_by is None


def test_a_spider_that_always_finds_more_to_do_ends_with_its_letters(project: Project) -> None:
    project.write("repaired", "")
    path = project.folder / "shop/spiders/books.py"
    path.write_text(
        path.read_text()
        + """
    @classmethod
    def from_crawler(cls, crawler, *args, **kwargs):
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.find_more, scrapy.signals.spider_idle)
        return spider

    def find_more(self):
        Path("found").touch()
        self.crawler.engine.crawl(scrapy.Request("data:,more", dont_filter=True))
        raise scrapy.exceptions.DontCloseSpider
"""
    )
    project.put(failed("a"))
    assert "1 delivered" in project.replay("books").stderr
    assert not project.has("found")


def test_a_crawl_that_is_closed_early_ends_with_1_and_says_so(project: Project) -> None:
    project.put(*(failed(f"{n}") for n in range(5)))
    ended = project.replay(
        "books", "-s", "DEFERKIT_MAX_FAILED_ITEMS=2", "-s", "DEFERKIT_CONCURRENT_ITEMS=1", code=1
    )
    assert "the crawl was closed early (item_failures)" in ended.stderr
    assert len(project.kept()) == 5
    assert {letter.leased_by for letter in project.kept()} == {None}
    assert 1 in {letter.attempts for letter in project.kept()}


def test_letters_that_another_replay_holds_are_told_of(project: Project) -> None:
    from scrapy_deferkit.deadletters import Selection

    project.write("repaired", "")
    project.put(failed("a", age=90), failed("b", age=80))
    project.store().take(Selection(), 1, "another", 300)
    ended = project.replay("books", code=1)
    assert "1 delivered, 0 dropped, 0 failed again, 1 not replayed, or held" in ended.stderr
    assert [letter.leased_by for letter in project.kept()] == ["another"]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    "runtime", [ASYNCIO, EPOLL, NO_REACTOR], ids=["asyncio", "epoll", "no reactor"]
)
def test_ctrl_c_gives_the_leases_back(project: Project, runtime: tuple[str, ...]) -> None:
    project.add_settings('ITEM_PIPELINES = {"shop.pipelines.Never": 1, "shop.pipelines.Sink": 2}')
    project.put(*(failed(f"{n:03}", age=1000 - n) for n in range(150)))
    process = subprocess.Popen(
        project.command(
            "deferkit",
            "replay",
            "books",
            "-s",
            "DEFERKIT_CONCURRENT_ITEMS=3",
            "-L",
            "INFO",
            *runtime,
        ),
        cwd=project.folder,
        env=project.environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: project.has("waiting"), process)
        assert sum(letter.leased_by is not None for letter in project.kept()) == 100
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        log = ""
        while "Closing spider (shutdown)" not in log:
            line = process.stderr.readline()
            assert line, log
            log += line
        project.write("go", "")
        log += process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 1, log
    assert "the crawl was closed early (shutdown)" in log
    left = project.kept()
    assert 0 < len(project.sunk) <= 6
    assert len(left) == 150 - len(project.sunk)
    assert {(letter.leased_by, letter.attempts) for letter in left} == {(None, 1)}


def on_a_terminal(project: Project, *arguments: str) -> tuple[int, str]:
    """Run a command whose output is a terminal; give its exit code and what it has shown."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        project.command(*arguments),
        cwd=project.folder,
        env=project.environment(TERM="xterm-256color", COLUMNS="120", NO_COLOR=""),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while some := os.read(ours, 65536):
            shown += some
    except OSError:  # the terminal is closed
        pass
    os.close(ours)
    return process.wait(30), shown.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="has no pty")
def test_a_terminal_gets_a_table_and_a_bar(project: Project) -> None:
    project.write("repaired", "")
    project.put(failed("3fa0c1" + "0" * 26 + "-7", error="[red]markup[/red] \x1b[31m"))
    code, shown = on_a_terminal(project, "deferkit", "dead-letters")
    assert code == 0
    assert " 3fa0c1-7 " in shown
    assert "[red]markup" in shown
    assert "\x1b[31m" not in shown
    assert "─" in shown
    code, shown = on_a_terminal(project, "deferkit", "replay", "books", "-L", "INFO")
    assert code == 0, shown
    assert "1/1" in shown
    assert "Spider opened" in shown
    assert "1 delivered, 0 dropped, 0 failed again" in shown


def test_a_store_that_is_not_to_be_reached_ends_with_1(project: Project, tmp_path: Path) -> None:
    project.write("no.sqlite", "no database " * 100)
    url = f"sqlite:///{tmp_path}/no.sqlite"
    ended = project.replay("books", "--url", url, code=1)
    assert "Error: The dead letters at sqlite:///" in ended.stderr
    assert not project.has("process_start")
