"""A later letter of the same key replaces the earlier, so that crawls do not pile them up."""

from __future__ import annotations

import collections
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import scrapy

from scrapy_deferkit import StackConfigError
from scrapy_deferkit._config import Config
from scrapy_deferkit.codec import Codec
from scrapy_deferkit.deadletters import DeadLetters
from scrapy_deferkit.delivery import Delivery
from scrapy_deferkit.testing import mock_crawler

from .itemprocessor.crawling import crawl_with


@dataclass
class Book:
    sku: Any
    shop: str = "uk"


class Item(scrapy.Item):
    sku = scrapy.Field()
    shop = scrapy.Field()


class Text(str):
    __slots__ = ()


class Failing:
    def process_item(self, item: Any) -> Any:
        item["sku"] = None  # a key is of the item as it entered
        raise ValueError("no price")


async def test_a_product_that_fails_in_each_crawl_has_one_letter(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/dead.db"
    for run in range(3):
        items = [{"sku": 1, "run": run}, {"sku": 2, "run": run}, {"run": run}]
        trace = await crawl_with(
            Failing,
            items=items,
            DEFERKIT_DEAD_LETTERS_URL=url,
            DEFERKIT_DEAD_LETTERS_KEY="sku",
        )
        assert len(trace.failed) == 3
    kept = [(json.loads(letter.item), letter.attempts) for letter in DeadLetters(url).select()]
    keyed = [({"sku": sku, "run": 2}, 3) for sku in (1, 2)]
    assert sorted(kept, key=str) == sorted(
        [*keyed, *(({"run": run}, 1) for run in range(3))], key=str
    )


def id_of(item: Any, key: Any = "sku", spider: str = "shop") -> str | None:
    crawler = mock_crawler(
        {"DEFERKIT_DEAD_LETTERS_KEY": key}, type("Shop", (scrapy.Spider,), {"name": spider})
    )
    delivery = Delivery(crawler, Config.from_settings(crawler.settings))
    return delivery._keyed_id(Codec().encode(item))


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    "make",
    [
        dict,
        Item,
        Book,
        collections.OrderedDict,
        lambda **fields: {**fields, 5: "a key that is no text"},
        lambda **fields: collections.defaultdict(list, fields),
    ],
)
def test_any_kind_of_item_has_a_key(make: Any) -> None:
    first = id_of(make(sku=1, shop="uk"))
    assert first is not None
    assert first == id_of(make(sku=1, shop="de"))
    assert first != id_of(make(sku=2, shop="uk"))
    assert first != id_of(make(sku="1", shop="uk"))


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    "item", [{"shop": "uk"}, {"sku": None}, {"sku": object()}, ["sku"], "sku", None, object()]
)
def test_what_lacks_the_field_has_no_key(item: Any) -> None:
    assert id_of(item) is None


@pytest.mark.no_runtime
def test_items_have_one_key_if_all_its_fields_are_the_same_and_their_kind() -> None:
    item = {"sku": 1, "shop": "uk"}
    assert id_of(item, None) is id_of(item, []) is None
    assert (
        id_of(item, ["sku", "shop"]) == id_of(item, "sku, shop") == id_of(item, '["sku", "shop"]')
    )
    others = [
        id_of({"sku": 1, "shop": "de"}, "sku,shop"),
        id_of(item),
        id_of(item, "shop"),
        id_of(item, "sku,shop", spider="other"),
        id_of(Book(1, "uk"), "sku,shop"),
    ]
    assert len({id_of(item, "sku,shop"), *others}) == 6
    assert id_of({"sku": 1}, "sku,shop") is None
    assert id_of({"sku": Text("a")}) == id_of({"sku": Text("a")}) is not None


@pytest.mark.no_runtime
@pytest.mark.parametrize("key", [5, [5], {"sku": 1}, "sku,", [""]])
def test_a_key_that_is_no_field_is_refused(key: Any) -> None:
    with pytest.raises(StackConfigError, match="^DEFERKIT_DEAD_LETTERS_KEY = "):
        id_of({}, key)
