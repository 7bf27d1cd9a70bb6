"""With ``DEFERKIT_JOB_FSYNC``, what a page brought is on the disk before its request goes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.crawl

CRAWL = """
import scrapy
from scrapy.crawler import AsyncCrawlerProcess

class Spider(scrapy.Spider):
    name = "synced"

    async def start(self):
        yield scrapy.Request("data:,0", cb_kwargs={"number": 0})

    def parse(self, response, number):
        yield {"number": number}
        if number < 20:
            yield scrapy.Request(f"data:,{number + 1}", cb_kwargs={"number": number + 1})

class Pipeline:
    def process_item(self, item):
        if item["number"] % 5 == 3:
            raise ValueError("bad")
        return item

process = AsyncCrawlerProcess({
    "ADDONS": {"scrapy_deferkit.Addon": 500},
    "JOBDIR": "job",
    "ITEM_PIPELINES": {Pipeline: 1},
    "FEEDS": {"feed.jsonl": {"format": "jsonlines"}},
    "DEFERKIT_DEAD_LETTERS_URL": "sqlite:///letters.sqlite",
    "DEFERKIT_JOB_FSYNC": True,
    "CONCURRENT_REQUESTS": 1,
    "TELNETCONSOLE_ENABLED": False,
})
process.crawl(Spider)
process.start()
"""
EVENT = re.compile(r" (pwrite64|write|fsync|fdatasync)\(\d+<[^>]*/([\w.-]+)>")


def test_feeds_and_letters_are_synced_before_a_request_leaves_the_file(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    (tmp_path / "crawl.py").write_text(CRAWL)
    traced = ["strace", "-f", "-y", "-e", "trace=write,pwrite64,fsync,fdatasync", "-o", "trace"]
    ended = subprocess.run(
        [*traced, sys.executable, "crawl.py"], cwd=tmp_path, capture_output=True, check=False
    )
    if b"ptrace" in ended.stderr and not (tmp_path / "trace").exists():
        pytest.skip("nothing can be traced here")
    assert ended.returncode == 0, ended.stderr.decode()
    unsynced: set[str] = set()
    job, written = "deferkit.sqlite-wal", set()
    for call, file in EVENT.findall((tmp_path / "trace").read_text()):
        if call in ("fsync", "fdatasync"):
            unsynced.discard(file)
            continue
        if file == job:
            assert not unsynced & {"feed.jsonl", "letters.sqlite-wal"}
        written.add(file)
        unsynced.add(file)
    assert written >= {job, "feed.jsonl", "letters.sqlite-wal"}
    assert job not in unsynced
