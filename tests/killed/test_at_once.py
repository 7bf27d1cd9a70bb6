"""A request of ``start()`` that kills its process at once, before anything could be written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scrapy_deferkit._jobfile import look
from scrapy_deferkit._outline import Outline

pytestmark = pytest.mark.crawl

CRAWL = """
import os
import signal
import sys
import scrapy
from scrapy.crawler import AsyncCrawlerProcess

class Spider(scrapy.Spider):
    name = "at_once"

    async def start(self):
        for number in range(3):
            yield scrapy.Request(f"data:,{number}", dont_filter=sys.argv[1] == "True")

    def parse(self, response):
        if response.text == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"number": int(response.text)}

process = AsyncCrawlerProcess({
    "ADDONS": {"scrapy_deferkit.Addon": 500},
    "DEFERKIT_DEAD_LETTERS": False,
    "JOBDIR": "job",
    "FEEDS": {"feed.jsonl": {"format": "jsonlines"}},
})
process.crawl(Spider)
process.start()
"""


def run(path: Path, is_unfiltered: bool) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CRAWL, str(is_unfiltered)],
        cwd=path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def check(path: Path) -> None:
    """Check that the killer is set aside, and that the rest has been crawled."""
    found = look(path / "job")
    assert [(Outline.of(it.data).url, it.deaths) for it in found.aside] == [("data:,1", 4)]
    assert found.has_finished
    lines = (path / "feed.jsonl").read_text().splitlines()
    assert {json.loads(line)["number"] for line in lines} == {0, 2}


@pytest.mark.parametrize("is_unfiltered", [False, True])
def test_a_request_that_kills_its_process_at_once_is_set_aside_too(
    tmp_path: Path, is_unfiltered: bool
) -> None:
    runs = 1
    while (ended := run(tmp_path, is_unfiltered)).returncode:
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        runs += 1
        assert runs <= 8, ended.stderr
    check(tmp_path)
