"""Scrapy's own commands, and crawls in processes of their own, under the item processor."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .. import warm
from ..crawls.local_site import Site, page
from ..scale import tenth_of

pytestmark = pytest.mark.crawl

PROJECT = """
import json

import scrapy

class Pipeline:
    async def process_item(self, item):
        item["processed"] = True
        return item

class Shop(scrapy.Spider):
    name = "shop"
    custom_settings = {
        "ADDONS": {"scrapy_deferkit.Addon": 500},
        "ITEM_PIPELINES": {Pipeline: 1},
        "TELNETCONSOLE_ENABLED": False,
    }

    def parse(self, response):
        yield from json.loads(response.text)
"""


def run(directory: Path, *command: str) -> str:
    done = warm.run(*command, cwd=directory)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_scrapy_parse_shows_the_items_as_the_pipelines_made_them(
    site: Site, tmp_path: Path
) -> None:
    (tmp_path / "scrapy.cfg").write_text("[settings]\ndefault = shop.settings\n")
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "settings.py").write_text('SPIDER_MODULES = ["shop.spiders"]\n')
    (package / "spiders.py").write_text(PROJECT)
    site["/"] = page({"number": 1}, {"number": 2})
    parse = ["-m", "scrapy", "parse", "--pipelines", "--spider=shop", "--nocolour", "-c", "parse"]
    text = run(tmp_path, *parse, site.url("/"))
    assert "{'number': 1, 'processed': True}" in text
    assert "{'number': 2, 'processed': True}" in text
    assert "Traceback" not in text


MEMORY = """
import asyncio, resource, sys

import scrapy
from scrapy.crawler import CrawlerProcess

class SlowSink:
    async def process_item(self, item):
        await asyncio.sleep(0.002)
        return item

class Shop(scrapy.Spider):
    name = "shop"

    async def start(self):
        yield scrapy.Request("data:,page")

    def parse(self, response):
        for number in range(int(sys.argv[1])):
            yield {"number": number, "text": "x" * 2000 + str(number)}

process = CrawlerProcess({
    "ADDONS": {"scrapy_deferkit.Addon": 500},
    "ITEM_PIPELINES": {SlowSink: 1},
    "LOG_LEVEL": "WARNING",
    "TELNETCONSOLE_ENABLED": False,
    "TWISTED_REACTOR": "twisted.internet.asyncioreactor.AsyncioSelectorReactor",
})
process.crawl(Shop)
process.start()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="does not tell the peak")
def test_ten_times_the_items_of_a_callback_and_a_slow_sink_need_no_more_memory(
    tmp_path: Path,
) -> None:
    script = tmp_path / "memory_crawl.py"
    script.write_text(MEMORY)

    def peak(items: int) -> int:
        command = [sys.executable, str(script), str(items)]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    with ThreadPoolExecutor(2) as pool:
        few, many = pool.map(peak, (tenth_of(20_000), tenth_of(200_000)))
    assert many < few * 1.1
