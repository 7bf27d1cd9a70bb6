"""Items, and classes that are none, for the codec: of a module, and of another that it imports."""

from __future__ import annotations

import dataclasses
import enum
import functools
import os  # noqa: F401 - rows name it
from subprocess import Popen  # noqa: F401 - rows name it
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import attrs
import pydantic
import scrapy

from .items import Dataclass


class Format(enum.Enum):
    PAPER = "paper"
    EBOOK = ("e", "book")
    HARDBACK = "paper"  # noqa: PIE796 - an alias


class Language(str, enum.Enum):
    GERMAN = "de"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3
    SHARE = 8


class Weekday(enum.IntFlag):
    MONDAY = 1
    TUESDAY = 2


class Place(NamedTuple):
    city: Any
    shelf: Any = None


class Row(dict):
    """A dict of the project's own, which may have attributes."""


@dataclasses.dataclass
class Book(Dataclass):
    """What has parts that a constructor makes, and none of them may run again."""

    shelf: ClassVar[str] = "A"
    price: Any = 0
    key: Any = dataclasses.field(init=False)
    given: dataclasses.InitVar[Any] = None

    def __post_init__(self, given: Any) -> None:
        self.key = [self.title, given]
        self._note = given

    @functools.cached_property
    def shout(self) -> Any:
        return lambda: self.title


@dataclasses.dataclass(frozen=True, slots=True)
class Offer:
    seller: Any
    price: Any = None


@dataclasses.dataclass(slots=True)
class SlotsBook(Dataclass):
    """Slots of its own, and the ``__dict__`` of its base."""

    price: Any = 0


class DictBook(scrapy.Item):
    title = scrapy.Field()
    price = scrapy.Field()

    @dataclasses.dataclass
    class Cover:
        colour: Any = None


class Cover(scrapy.Item):
    colour = scrapy.Field()


@attrs.frozen(cache_hash=True)
class AttrsOffer:
    seller: Any
    _price: Any = None


@attrs.define(slots=False)
class AttrsBook:
    title: str = attrs.field(converter=str.strip)
    tags: Any = attrs.field(factory=list)
    key: Any = attrs.field(init=False, default=None)


class Model(pydantic.BaseModel, extra="allow"):
    title: Any = "untitled"
    price: Any = None
    _private: Any = None
    _note: Any


class Sparse(pydantic.BaseModel):
    title: Any = "untitled"


Reference = pydantic.create_model("Reference", __module__=__name__, **{"$ref": (Any, None)})


_T = TypeVar("_T")


class Page(pydantic.BaseModel, Generic[_T]):
    first: _T
    _private: Any = None


class Root(pydantic.RootModel[Any]):
    pass


class Explosive:
    """A class whose code must never run while a text is read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a constructor ran")

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a constructor ran")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError("__setattr__ ran")

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("__setstate__ ran")


@dataclasses.dataclass(init=False)
class ExplosiveBook(Explosive):
    title: Any

    def __post_init__(self) -> None:
        raise AssertionError("__post_init__ ran")


@attrs.define(init=False, slots=False)
class ExplosiveAttrs(Explosive):
    title: Any


class ExplosiveItem(scrapy.Item):
    title = scrapy.Field()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a constructor ran")

    def __setitem__(self, key: str, value: Any) -> None:
        raise AssertionError("__setitem__ ran")


class ExplosiveModel(pydantic.BaseModel):
    title: Any = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def explode(cls, values: Any) -> Any:
        raise AssertionError("a validator ran")

    def model_post_init(self, context: Any) -> None:
        raise AssertionError("model_post_init ran")


class City(NamedTuple):
    city: Any


class ExplosivePlace(City):
    """A NamedTuple with a constructor and attributes of its own."""

    def __new__(cls, *args: Any) -> Any:
        raise AssertionError("a constructor ran")


class ExplosiveRow(dict):
    def __init__(self, *args: Any) -> None:
        raise AssertionError("a constructor ran")

    def __setitem__(self, key: Any, value: Any) -> None:
        raise AssertionError("__setitem__ ran")


class ExplosiveFormat(enum.Enum):
    PAPER = 1

    @classmethod
    def _missing_(cls, value: Any) -> Any:
        raise AssertionError("an Enum was called")


class Plain:
    """No kind of item at all."""


def function() -> None:
    raise AssertionError("a function ran")
