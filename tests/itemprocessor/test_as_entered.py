"""A dead letter has the item as it entered, whatever pipelines have made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import scrapy

from scrapy_deferkit._config import Config
from scrapy_deferkit._crawl import crawl_of
from scrapy_deferkit.codec import CodecError, UnstorableValue
from scrapy_deferkit.deadletters import DeadLetters
from scrapy_deferkit.delivery import PIPELINES, Delivery, Visit
from scrapy_deferkit.testing import mock_crawler

from ..steps import Broken
from .crawling import crawl_with


class Pair(NamedTuple):
    first: list[Any]
    second: dict[str, Any]


@dataclass
class Book:
    tags: list[Any] = field(default_factory=list)


def make_items() -> list[Any]:
    book = Book(["a"])
    book.note = ["a"]  # type: ignore[attr-defined]
    return [
        {"tags": ["a", {"b": ["a"]}]},
        {"tags": (["a"], {"b": "a"})},
        {"tags": Pair(["a"], {"b": ["a"]})},
        {"tags": bytearray(b"a")},
        {"tags": {"a"}},
        {"tags": Book(["a"])},
        Book(["a", ["a"]]),
        book,
    ]


def spoil(value: Any) -> None:
    """Change whatever can be changed in *value*."""
    if isinstance(value, dict):
        spoil(list(value.values()))
        value["spoilt"] = "spoilt"
    elif isinstance(value, (list, tuple)):
        for each in value:
            spoil(each)
        if isinstance(value, list):
            value.append("spoilt")
    elif isinstance(value, set):
        value.add("spoilt")
    elif isinstance(value, bytearray):
        value += b"spoilt"
    elif hasattr(value, "__dict__"):
        spoil(list(vars(value).values()))


class Spoiling:
    def process_item(self, item: Any) -> Any:
        spoil(item)
        raise Broken


async def test_nothing_that_a_pipeline_did_is_in_the_letter(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/letters.sqlite"
    items = make_items()
    trace = await crawl_with(Spoiling, items=items, DEFERKIT_DEAD_LETTERS_URL=url)
    assert len(trace.failed) == len(items)
    letters = DeadLetters(url)
    texts = [letter.item for letter in letters.select()]
    letters.close()
    assert len(texts) == len(items)
    assert not [text for text in texts if "spoilt" in text or "c3BvaWx0" in text]
    assert '{"$bytearray": "YQ=="}' in " ".join(texts)


class Unreadable(dict[str, Any]):
    def __getattribute__(self, name: str) -> Any:
        raise GeneratorExit("not to be read")

    __iter__ = keys = __reduce_ex__ = __getattribute__  # type: ignore[assignment]


async def test_a_gap_is_told_once_and_when_the_item_becomes_a_letter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crawler = mock_crawler({"DEFERKIT_DEAD_LETTERS_URL": f"sqlite:///{tmp_path}/letters.sqlite"})
    crawl = crawl_of(crawler)
    crawl.delivery = delivery = Delivery(crawler, Config.from_settings(crawler.settings))
    items = [{"when": object()}, {"when": object()}, Unreadable()]
    for item in items:
        Visit(crawl, PIPELINES, item, None).done()
    assert not caplog.messages, "an item that succeeds has no row"
    for item in items:
        await Visit(crawl, PIPELINES, item, None).failed(Broken())
    gaps = [message.partition(" has a gap: ")[2][:40] for message in caplog.messages]
    assert gaps == [
        "when: a object has no stored form. Put a",
        "the item cannot be read: not to be read.",
    ]
    await delivery.close()
    store = DeadLetters(f"sqlite:///{tmp_path}/letters.sqlite")
    for letter in store.select():
        assert letter.missing
        with pytest.raises(UnstorableValue):
            delivery.codec.decode(letter.item)


class Books(scrapy.Spider):
    name = "books"


@pytest.mark.no_runtime
def test_a_crawl_reads_classes_of_the_module_of_its_spider() -> None:
    codecs = []
    for spider in (Books, None):
        crawler = mock_crawler(spider=spider)
        codecs.append(Delivery(crawler, Config.from_settings(crawler.settings)).codec)
    own, other = codecs
    text = other.encode(Book(["a"])).text
    assert own.decode(text) == Book(["a"])
    with pytest.raises(CodecError, match="may not be built"):
        other.decode(text)


class Title(str):
    __slots__ = ()


async def test_a_class_that_is_read_back_as_its_base_is_told_once_and_in_the_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path}/letters.sqlite"
    crawler = mock_crawler({"DEFERKIT_DEAD_LETTERS_URL": url})
    crawl = crawl_of(crawler)
    crawl.delivery = delivery = Delivery(crawler, Config.from_settings(crawler.settings))
    for _ in range(2):
        await Visit(crawl, PIPELINES, {"title": Title("A")}, None).failed(Broken())
    await delivery.close()
    told = f"{__name__}.Title is read back as str"
    assert caplog.messages == [f"In failed items, {told}."]
    rows = [(letter.item, letter.missing) for letter in DeadLetters(url).select()]
    assert rows == [('{"title": "A"}', told)] * 2
