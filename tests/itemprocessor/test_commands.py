"""Scrapy's own commands, and crawls in processes of their own, under the item processor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..crawls.local_site import Site, page

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
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=directory,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
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
    parse = ["scrapy", "parse", "--pipelines", "--spider=shop", "--nocolour", "-c", "parse"]
    text = run(tmp_path, *parse, site.url("/"))
    assert "{'number': 1, 'processed': True}" in text
    assert "{'number': 2, 'processed': True}" in text
    assert "Traceback" not in text


MEMORY = """
import asyncio, json, sys, tracemalloc

import scrapy
from scrapy.crawler import CrawlerProcess

class Sink:
    async def process_item(self, item):
        await asyncio.sleep(0)
        return item

class Shop(scrapy.Spider):
    name = "shop"

    async def start(self):
        yield scrapy.Request("data:,page")

    def parse(self, response):
        for number in range(int(sys.argv[1])):
            if number == 2000:
                tracemalloc.start()
            yield {"number": number, "text": "x" * 100 + str(number)}
        print(json.dumps(tracemalloc.get_traced_memory()[1]))

process = CrawlerProcess({
    "ADDONS": {"scrapy_deferkit.Addon": 500},
    "ITEM_PIPELINES": {Sink: 1},
    "LOG_LEVEL": "WARNING",
    "TELNETCONSOLE_ENABLED": False,
    "TWISTED_REACTOR": "twisted.internet.asyncioreactor.AsyncioSelectorReactor",
})
process.crawl(Shop)
process.start()
"""


def test_memory_does_not_grow_with_the_number_of_items(tmp_path: Path) -> None:
    script = tmp_path / "memory_crawl.py"
    script.write_text(MEMORY)

    def peak(items: int) -> int:
        out = subprocess.run(
            [sys.executable, script, str(items)],
            cwd=tmp_path,
            check=True,
            stdout=subprocess.PIPE,
            timeout=120,
        ).stdout
        return int(json.loads(out))

    assert peak(50_000) - peak(5_000) < 45_000 * 5  # bytes an item
