"""A crawl whose start fails lets go of its job and of its letters, for the next in the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scrapy import signals
from scrapy.exceptions import CloseSpider
from scrapy.statscollectors import MemoryStatsCollector

from scrapy_deferkit.deadletters import DeadLetters

from ..itemprocessor.crawling import Starting, crawl_with, numbered, page


class NotNow(Starting):
    """Closes as soon as it is open, for which Scrapy before 2.19 has no ear."""

    @classmethod
    def from_crawler(cls, crawler: Any, *args: Any, **kwargs: Any) -> Any:
        spider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.refuse, signals.spider_opened)
        return spider

    def refuse(self) -> None:
        raise CloseSpider("not now")


class NoStats(MemoryStatsCollector):
    def open_spider(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no stats today")


class NotOpening:
    def open_spider(self) -> None:
        raise ConnectionError("no database today")

    def process_item(self, item: Any) -> Any:
        return item


class Failing:
    def process_item(self, item: Any) -> Any:
        raise ValueError("no price")


def ours() -> list[threading.Thread]:
    names = ("deferkit-job", "deferkit-dead-letters")
    return [it for it in threading.enumerate() if it.name.startswith(names)]


def open_files(folder: Path) -> list[str]:
    paths = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [str(path) for path in paths if folder in path.parents]


@pytest.fixture
def free(tmp_path: Path) -> Callable[[], bool]:
    """Check that no file in the folder of the test is open, and no thread of ours is left."""
    before = set(ours())

    def is_free() -> bool:
        for thread in set(ours()) - before:
            thread.join(10)
        return set(ours()) <= before and not open_files(tmp_path)

    return is_free


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's list of open files")
@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ({"spider": NotNow}, None),
        ({"STATS_CLASS": NoStats}, ConnectionError),
        ({"ITEM_PIPELINES": {NotOpening: 1}}, ConnectionError),
        ({"DEFERKIT_DEAD_LETTERS_URL": "sqlite:////dev/null/dead.db"}, ValueError),
    ],
    ids=["spider", "stats", "pipeline", "letters"],
)
async def test_a_start_that_fails_leaves_no_file_locked_and_no_thread(
    trouble: dict[str, Any], error: type[Exception] | None, tmp_path: Path, free: Any
) -> None:
    url = f"sqlite:///{tmp_path}/dead.db"
    usual = {"JOBDIR": str(tmp_path / "job"), "DEFERKIT_DEAD_LETTERS_URL": url}
    if error is None:
        await crawl_with(**{**usual, **trouble})
    else:
        with pytest.raises(error):
            await crawl_with(**{**usual, **trouble})
    assert free()
    trace = await crawl_with(Failing, pages=[page(*numbered(1))], **usual)
    assert trace.reason == "finished"
    assert free()
    assert DeadLetters(url).count() == 1
