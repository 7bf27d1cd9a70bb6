"""A small project to run `scrapy` in, as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from scrapy_deferkit.deadletters import DeadLetter, DeadLetters, Failed

from .. import warm

FILES = {
    "scrapy.cfg": "[settings]\ndefault = shop.settings\n",
    "shop/__init__.py": "",
    "shop/spiders/__init__.py": "",
    "shop/settings.py": """
BOT_NAME = "shop"
SPIDER_MODULES = ["shop.spiders"]
ADDONS = {"scrapy_deferkit.Addon": 500}
ITEM_PIPELINES = {"shop.pipelines.Price": 1, "shop.pipelines.Sink": 2}
SPIDER_MIDDLEWARES = {"shop.middlewares.Marking": 500}
TELNETCONSOLE_ENABLED = False
LOG_LEVEL = "WARNING"
""",
    "shop/items.py": """
from dataclasses import dataclass


@dataclass
class Book:
    title: str
    price: object = None
""",
    "shop/middlewares.py": """
from pathlib import Path


class Marking:
    async def process_start(self, start):
        Path("process_start").touch()
        async for output in start:
            yield output
""",
    "shop/pipelines.py": """
import asyncio
import json
from pathlib import Path

from itemadapter import ItemAdapter
from scrapy.exceptions import DropItem


class Price:
    def process_item(self, item):
        fields = ItemAdapter(item)
        if fields["price"] == "gone":
            raise DropItem("gone")
        if not Path("repaired").exists():
            fields["price"] = float(fields["price"])
        return item


class Sink:
    def process_item(self, item):
        with Path("sink.jsonl").open("a") as file:
            file.write(json.dumps(ItemAdapter(item).asdict()) + "\\n")
        return item


class Never:
    async def process_item(self, item):
        from twisted.internet.defer import Deferred

        Path("waiting").touch()
        from scrapy_deferkit._runtime import sleep

        while not Path("go").exists():
            await sleep(0.05)
        return item
""",
    "shop/steps.py": """
from scrapy_deferkit import Chain


async def look(item, response):
    response.css("h1")
    return item


async def check(item, response):
    item.price = float(item.price)
    return item


looking = Chain(look)
checking = Chain(check)
""",
    "shop/spiders/books.py": """
from pathlib import Path

import scrapy

from shop.items import Book

PRICES = ["ask us", "1.5", "gone", "on request"]


class Books(scrapy.Spider):
    name = "books"

    async def start(self):
        Path("start").touch()
        yield scrapy.Request("data:text/plain,books")

    def parse(self, response):
        for number, price in enumerate(PRICES):
            yield Book(f"Book {number}", price)
""",
}

ASYNCIO = ()
EPOLL = ("-s", "TWISTED_REACTOR=twisted.internet.epollreactor.EPollReactor")
NO_REACTOR = ("-s", "TWISTED_REACTOR_ENABLED=False")


class Project:
    """A project in *folder*, whose dead letters are where they are by default."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def add_settings(self, text: str) -> None:
        with (self.folder / "shop/settings.py").open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    @property
    def files(self) -> dict[str, bytes]:
        """All that is in the project, but what Python has compiled."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else b""
            for path in sorted(self.folder.rglob("*"))
            if "__pycache__" not in path.parts
        }

    @property
    def databases(self) -> list[str]:
        return [name for name in self.files if ".sqlite" in name]

    @property
    def sunk(self) -> list[dict[str, Any]]:
        """What the sink has got, by title."""
        path = self.folder / "sink.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return sorted(map(json.loads, lines), key=lambda item: str(item["title"]))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "scrapy", *arguments]

    def environment(self, **variables: str) -> dict[str, str]:
        return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200", **variables}

    def scrapy(
        self, *arguments: str, code: int = 0, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a process of its own, which is to end with *code*."""
        ended = warm.run(
            *("-m", "scrapy", *arguments),
            cwd=cwd or self.folder,
            env=self.environment(**variables),
            measured=True,
        )
        assert ended.returncode == code, (ended.stdout, ended.stderr)
        return ended

    def letters(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.scrapy("deferkit", "dead-letters", *arguments, **options)

    def listed(self, *arguments: str) -> list[dict[str, Any]]:
        """Give what the list has, for programs."""
        lines = self.letters("list", "--json", *arguments).stdout.splitlines()
        return [json.loads(line) for line in lines]

    def replay(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.scrapy("deferkit", "replay", *arguments, **options)

    def url(self, spider: str = "books") -> str:
        path = self.folder / f".scrapy/deferkit/{spider}.sqlite"
        return sa.URL.create("sqlite", database=str(path)).render_as_string()

    def store(self, spider: str = "books") -> DeadLetters:
        return DeadLetters(self.url(spider))

    def kept(self, spider: str = "books") -> list[DeadLetter]:
        return list(self.store(spider).select())

    def put(self, *failures: Failed, spider: str = "books") -> None:
        self.store(spider).put(failures)

    def run_sql(self, statement: str, **values: Any) -> None:
        engine = sa.create_engine(self.url(), poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.execute(sa.text(statement), values)


def failed(letter_id: str, item: Any = None, age: float = 3600, **changes: Any) -> Failed:
    """Give an item that failed *age* seconds ago."""
    shown = {"title": letter_id, "price": "ask us"} if item is None else item
    values: dict[str, Any] = {
        "id": letter_id,
        "spider": "books",
        "spider_args": "{}",
        "stage": "pipelines",
        "item": shown if isinstance(shown, str) else json.dumps(shown),
        "item_type": "dict",
        "missing": None,
        "page_url": "https://example.com/1",
        "step": "Price",
        "error_type": "builtins.ValueError",
        "error": "could not convert string to float: 'ask us'",
        "traceback": 'Traceback\n  File "price.py", line 7, in parse\nValueError: ask us\n',
        "at": datetime.now(timezone.utc) - timedelta(seconds=age),
    }
    return Failed(**{**values, **changes})


def book(title: str, price: Any) -> str:
    """Give a stored book."""
    return json.dumps({"$item": "shop.items.Book", "fields": {"title": title, "price": price}})


def titles(letters: Iterable[dict[str, Any]]) -> list[str]:
    """Give the ids of listed letters."""
    return [letter["id"] for letter in letters]
