"""Items of every kind that Scrapy knows, with a title and tags."""

from __future__ import annotations

import dataclasses
from typing import Any

import attrs
import pydantic
import scrapy


class ScrapyItem(scrapy.Item):
    title = scrapy.Field()
    tags = scrapy.Field()


@dataclasses.dataclass
class Dataclass:
    title: str
    tags: list[Any]


@dataclasses.dataclass(slots=True)
class SlotsDataclass:
    title: str
    tags: list[Any]


@dataclasses.dataclass(frozen=True)
class FrozenDataclass:
    title: str
    tags: list[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotsDataclass:
    title: str
    tags: list[Any]


@attrs.define
class Attrs:
    title: str
    tags: list[Any]


@attrs.frozen
class FrozenAttrs:
    title: str
    tags: list[Any]


class Pydantic(pydantic.BaseModel):
    title: str
    tags: list[Any]


class FrozenPydantic(pydantic.BaseModel, frozen=True):
    title: str
    tags: list[Any]


class ExtraPydantic(pydantic.BaseModel, extra="allow"):
    title: str


KINDS = [
    dict,
    ScrapyItem,
    Dataclass,
    SlotsDataclass,
    FrozenDataclass,
    FrozenSlotsDataclass,
    Attrs,
    FrozenAttrs,
    Pydantic,
    FrozenPydantic,
    ExtraPydantic,
]
