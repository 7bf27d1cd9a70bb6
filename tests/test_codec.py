"""Items come back from their text equal and of their type, and a text builds nothing else."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import datetime as dt
import enum
import http
import importlib
import json
import math
import numbers
import pathlib
import socket
import sys
import types
import urllib.parse
import uuid
import zoneinfo
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any
from unittest import mock

import attrs
import bs4
import pydantic
import pytest
import scrapy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from parsel import Selector
from scrapy.settings import Settings

from scrapy_deferkit import StackConfigError, codec
from scrapy_deferkit.codec import Codec, CodecError, UnstorableValue

from . import codec_items as shop
from .items import KINDS, SlotsDataclass
from .scale import third_of

pytestmark = pytest.mark.no_runtime

HERE = shop.__name__
CODEC = Codec([HERE.split(".")[0]])


def back(value: Any) -> Any:
    """Write and read *value*, all of which has a form."""
    encoded = CODEC.encode(value)
    assert encoded.missing == ()
    assert encoded.text.isascii()
    assert "\x00" not in encoded.text
    return CODEC.decode(encoded.text)


def state_of(value: Any) -> dict[str, Any]:
    """Give all that an instance holds, by its class's slots and its ``__dict__``."""
    state = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            with contextlib.suppress(AttributeError):
                if not name.startswith("__") or name.startswith("__pydantic"):
                    state[name] = getattr(value, name)
    state.pop("_attrs_cached_hash", None)
    return state


WHOLE = (pathlib.PurePath, enum.Enum, uuid.UUID)
"""Types whose instances are compared as they are."""


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal and of one type all the way down, NaN included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (float, complex, Decimal)):
        return repr(one) == repr(other)
    if isinstance(one, (dt.datetime, dt.time)):
        return one == other and one.fold == other.fold and one.tzinfo == other.tzinfo
    if isinstance(one, (set, frozenset)):
        rest = list(other)
        for each in one:
            match = next((index for index, it in enumerate(rest) if same(each, it)), None)
            if match is None:
                return False
            del rest[match]
        return not rest
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=False)
        if len(one) != len(other) or not all(same(*pair) for pair in pairs):
            return False
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other) or not all(map(same, one, other)):
            return False
    elif not (hasattr(one, "__dict__") or hasattr(one, "__slots__")) or isinstance(one, WHOLE):
        return bool(one == other)
    ours, theirs = state_of(one), state_of(other)
    return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)


# Text with surrogates, whether or not they would come back as one character, and with tags.
texts = st.text(st.characters()) | st.sampled_from(
    ["\x00", "\ud83d\ude00", "\U0001f600", "\ude00\ud83d", "$date", "$item", "$"]
)
zones = (
    st.none()
    | st.timezones()
    | st.sampled_from(
        [dt.timezone.utc, dt.timezone(dt.timedelta(hours=5, minutes=45, seconds=1, microseconds=7))]
    )
)
members = st.sampled_from(
    [
        *shop.Format,
        *shop.Language,
        *shop.Rights,
        shop.Rights.READ | shop.Rights.SHARE,
        shop.Rights(0),
        *shop.Weekday,
        shop.Weekday.MONDAY | shop.Weekday.TUESDAY,
    ]
)
moments = st.builds(
    lambda moment, fold: moment.replace(fold=fold),
    st.datetimes(timezones=zones) | st.times(timezones=zones),
    st.sampled_from([0, 1]),
)
hashables = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=1, max_value=9).map(lambda power: -(10 ** (power * 700)))
    | st.floats()
    | st.complex_numbers()
    | st.decimals().filter(lambda number: not number.is_snan())
    | texts
    | st.binary()
    | moments
    | st.dates()
    | st.timedeltas()
    | st.uuids()
    | members
    | texts.map(pathlib.PurePosixPath)
    | texts.map(pathlib.PureWindowsPath)
    | texts.map(pathlib.Path),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.frozensets(inner, max_size=3)
        | st.builds(shop.Place, inner, inner)
        | st.builds(shop.Offer, inner, inner)
        | st.builds(shop.AttrsOffer, inner, inner)
    ),
    max_leaves=5,
)


def items(inner: Any) -> Any:
    """Give items of every kind, with *inner* in their fields."""
    dicts = st.dictionaries(texts | hashables, inner, max_size=3)

    def with_attribute(item: Any, value: Any) -> Any:
        item._seen = value
        return item

    def with_private(item: shop.Model, note: Any) -> shop.Model:
        item._note = note
        return item

    fields = st.fixed_dictionaries({}, optional={"title": inner, "price": inner})
    models = st.builds(
        lambda given, extra: shop.Model(**given, **extra),
        fields,
        st.dictionaries(st.sampled_from(["more", "other"]), inner),
    )
    return st.one_of(
        st.sampled_from(KINDS).flatmap(
            lambda kind: st.builds(
                lambda title, tags: kind(title=title, tags=tags),
                # Pydantic's own str takes no surrogates.
                st.text(),
                st.lists(inner, max_size=3),
            )
        ),
        dicts,
        dicts.map(collections.OrderedDict),
        st.builds(with_attribute, dicts.map(shop.Row), inner),
        st.builds(shop.Book, texts, inner, inner, inner),
        st.builds(shop.SlotsBook, texts, inner, inner),
        fields.map(shop.DictBook),
        st.builds(with_attribute, st.builds(shop.Cover, colour=inner), inner),
        st.builds(shop.DictBook.Cover, inner),
        st.builds(shop.AttrsBook, texts, inner),
        models,
        st.builds(with_private, models, inner),
        inner.map(shop.Root),
        st.builds(shop.Place, inner, inner),
    )


values = st.recursive(
    hashables | st.decimals() | st.binary().map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(hashables, max_size=3)
        | items(inner)
    ),
    max_leaves=8,
)


@settings(max_examples=third_of(300))
@given(items(values))
@example(shop.DictBook(title=Decimal("sNaN123"), price=Decimal("-0")))
@example({"\ud83d": {"\ud83d\ude00": 1}, "price": "$12"})
@example({"$date": "2020-12-31"})
@example({"long": 10**5000})
@example({"price": math.nan})
@example({"title": "\ud83d\ude00", "tags": ["\U0001f600"]})
@example(shop.Reference(**{"$ref": 1}))
def test_whatever_goes_in_comes_out_equal_and_of_its_type(item: Any) -> None:
    assert same(back(item), item)


@given(items(values))
def test_writing_changes_nothing(item: Any) -> None:
    before = copy.deepcopy(item)
    CODEC.encode(item)
    assert same(item, before)


def test_a_plain_item_stands_as_json() -> None:
    item = {"title": "Émile", "price": 9.5, "stock": None, "tags": ["a", {"b": True}]}
    encoded = CODEC.encode(item)
    assert json.loads(encoded.text) == item
    assert encoded.item_type == "dict"
    encoded = CODEC.encode(shop.DictBook(title="A"))
    assert encoded.text == f'{{"$item": "{HERE}.DictBook", "fields": {{"title": "A"}}}}'
    assert encoded.item_type == f"{HERE}.DictBook"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (dt.date(2020, 12, 31), '{"$date": "2020-12-31"}'),
        (
            dt.datetime(2020, 12, 31, 23, 59, 59, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
            '{"$datetime": "2020-12-31T23:59:59", "zone": "Europe/Berlin"}',
        ),
        (Decimal("9.99"), '{"$decimal": "9.99"}'),
        ({1: "one", "$key": "two"}, '{"$dict": [[1, "one"], ["$key", "two"]]}'),
        (b"hi", '{"$bytes": "aGk="}'),
        (-math.inf, '{"$float": "-inf"}'),
        ("\ud83d\ude00", r'{"$str": ["\ud83d", "\ude00"]}'),
        (shop.Format.PAPER, f'{{"$enum": "{HERE}.Format", "name": "PAPER"}}'),
        (
            shop.Rights.READ | shop.Rights.SHARE,
            f'{{"$enum": "{HERE}.Rights", "name": ["READ", "SHARE"]}}',
        ),
    ],
)
def test_the_form_is_the_documented_one(value: Any, text: str) -> None:
    assert CODEC.encode(value).text == text
    assert same(CODEC.decode(text), value)


def test_both_hours_that_a_clock_shows_twice_are_kept() -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    hours = [dt.datetime(2020, 10, 25, 2, 30, tzinfo=berlin, fold=fold) for fold in (0, 1)]
    assert [hour.utcoffset() for hour in back(hours)] == [hour.utcoffset() for hour in hours]


def test_a_foreign_time_zone_is_stored_as_its_offset() -> None:
    class Foreign(dt.tzinfo):
        def utcoffset(self, moment: Any) -> dt.timedelta | None:
            return dt.timedelta(hours=2) if moment else None

    moment = dt.datetime(2020, 6, 1, 12, tzinfo=Foreign())
    assert back(moment) == moment
    assert CODEC.encode(dt.time(12, tzinfo=Foreign())).missing, "it has no offset on its own"


def test_a_field_that_is_not_set_stays_so() -> None:
    book = shop.Book("A", [])
    del book.price, book.key
    book.__dict__.pop("tags")
    assert vars(back(book)) == {"title": "A", "_note": None}
    for cls, field in [(shop.SlotsBook, "price"), (SlotsDataclass, "title")]:
        item = cls("A", [])
        delattr(item, field)
        assert hasattr(back(item), "tags")
        assert not hasattr(back(item), field)
    assert dict(back(shop.DictBook(price=1))) == {"price": 1}


def test_a_model_remembers_which_fields_were_given() -> None:
    model = back(shop.Model(price=None))
    assert model.model_dump(exclude_unset=True) == {"price": None}
    assert back(shop.Model()).model_fields_set == set()
    assert back(shop.Sparse()).model_fields_set == set()
    assert back(shop.Sparse(title="A")).model_fields_set == {"title"}
    assert back(shop.Model(title="A", more=1)).model_extra == {"more": 1}


def test_what_was_read_works_as_an_item_does() -> None:
    book = back(shop.Book("A", ["x"], given="g"))
    assert (book.shout(), book.key, book._note) == ("A", ["A", "g"], "g")
    offer = back(shop.AttrsOffer("s", 1))
    assert hash(offer) == hash(shop.AttrsOffer("s", 1))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        offer.seller = "t"
    item = back(shop.DictBook(title="A"))
    item["price"] = 2
    with pytest.raises(KeyError):
        item["unknown"] = 3
    model = back(shop.Model(title="A"))
    model.price = 3
    assert model.model_copy() == shop.Model(title="A", price=3)
    frozen = back(KINDS[-2](title="A", tags=[]))
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        frozen.title = "B"


def test_a_cached_property_is_worked_out_again() -> None:
    book = shop.Book("A", [])
    assert book.shout() == "A"
    assert "shout" not in vars(back(book))


def test_a_cached_hash_does_not_go_into_the_text() -> None:
    offer = shop.AttrsOffer("s", 1)
    assert str(hash(offer)) not in CODEC.encode(offer).text


@pytest.mark.parametrize(
    "name",
    [
        "ExplosiveBook",
        "ExplosiveAttrs",
        "ExplosiveItem",
        "ExplosiveModel",
        "ExplosivePlace",
        "ExplosiveRow",
    ],
)
def test_no_code_of_the_class_runs_while_an_item_is_built(name: str) -> None:
    fields = {"city": 1} if name == "ExplosivePlace" else {"title": 1}
    item = CODEC.decode(json.dumps({"$item": f"{HERE}.{name}", "fields": fields}))
    assert type(item) is getattr(shop, name)
    assert back(item) == item


def test_an_item_is_written_as_it_is_whatever_its_class_shows_of_it() -> None:
    names = ("__getitem__", "__iter__", "__len__", "keys", "items", "copy")
    for kind in (shop.DictBook, shop.Row):
        odd: Any = type("Odd", (kind,), dict.fromkeys(names, refuse))
        encoded = Codec(item_classes=[odd]).encode(odd(title="A"))
        assert (encoded.missing, encoded.changed) == ((), ())
        assert json.loads(encoded.text)["fields"] == {"title": "A"}


def test_a_member_is_looked_up_by_its_name_alone() -> None:
    row = {"$enum": f"{HERE}.ExplosiveFormat", "name": "PAPER"}
    assert CODEC.decode(json.dumps(row)) is shop.ExplosiveFormat.PAPER
    for name in [1, "_missing_", "paper", None, ["PAPER"]]:
        with pytest.raises(CodecError, match="no member .*its members are PAPER"):
            CODEC.decode(json.dumps(row | {"name": name}))


# ------------------------------------------------------------------------- values without a form


def test_all_but_the_value_without_a_form_is_stored() -> None:
    with socket.socket() as connection:
        item = {"price": {"raw": connection, "n": 1}, "offers": [shop.Offer("s", len)]}
        encoded = CODEC.encode(item)
        shown = repr(connection)
    assert encoded.missing == (
        "price.raw: a socket.socket has no stored form",
        "offers[0].price: a builtin_function_or_method has no stored form",
    )
    row = json.loads(encoded.text)
    assert row["price"]["n"] == 1
    assert row["price"]["raw"]["$unstorable"] == "socket.socket"
    assert row["price"]["raw"]["repr"][:20] == shown[:20]
    with pytest.raises(UnstorableValue, match=r"price\.raw: a socket\.socket .* in its place"):
        CODEC.decode(encoded.text)
    row["price"]["raw"] = None
    row["offers"][0]["fields"]["price"] = {"$decimal": "1"}
    corrected = CODEC.decode(json.dumps(row))
    assert corrected == {"price": {"raw": None, "n": 1}, "offers": [shop.Offer("s", Decimal(1))]}


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("a class may do anything")


READ = ("__str__", "__iter__", "__repr__", "__len__", "__eq__", "__hash__", "__getitem__", "items")
READ += ("__int__", "__index__", "__float__", "__pos__", "copy", "isoformat", "replace", "__bool__")
READ += ("__fspath__", "keys", "hex", "__format__", "__bytes__", "__complex__")


def derived(base: Any, *args: Any) -> Any:
    """Return a value of a class that derives from *base* and refuses all that could be asked."""
    # Made before it refuses: its constructor may ask, too.
    cls = type(f"Odd{base.__name__}", (base,), {})
    value = cls(*args)
    for name in READ:
        if name in vars(base):
            setattr(cls, name, refuse)
    return value


BASES: list[tuple[Any, Any]] = [
    (derived(str, "long " * 100), "long " * 100),
    (derived(str, "\ud83d\ude00"), "\ud83d\ude00"),
    (derived(int, 5), 5),
    (derived(int, 10**700), 10**700),
    (derived(float, 1.5), 1.5),
    (derived(float, "nan"), math.nan),
    (derived(complex, 1, 2), 1 + 2j),
    (derived(Decimal, "9.90"), Decimal("9.90")),
    (derived(bytes, b"hi"), b"hi"),
    (derived(bytearray, b"hi"), bytearray(b"hi")),
    (derived(dt.date, 2020, 12, 31), dt.date(2020, 12, 31)),
    (
        derived(dt.datetime, 2020, 12, 31, 1, 2, 3, 4, dt.timezone.utc),
        dt.datetime(2020, 12, 31, 1, 2, 3, 4, dt.timezone.utc),
    ),
    (derived(dt.time, 1, 2, 3, 4), dt.time(1, 2, 3, 4)),
    (derived(dt.timedelta, 1), dt.timedelta(1)),
    (derived(uuid.UUID, "1" * 32), uuid.UUID("1" * 32)),
    (derived(pathlib.PurePosixPath, "a/b"), pathlib.PurePosixPath("a/b")),
    (derived(list, [1, derived(str, "a")]), [1, "a"]),
    (derived(tuple, [1, derived(str, "a")]), (1, "a")),
    (derived(dict, {"a": [1]}), {"a": [1]}),
    (derived(set, {1}), {1}),
    (derived(frozenset, {1}), frozenset({1})),
    (derived(collections.OrderedDict, {"b": 1, "a": 2}), collections.OrderedDict(b=1, a=2)),
    (collections.defaultdict(list, a=[1]), {"a": [1]}),
    (derived(collections.defaultdict, None, {"a": [1]}), {"a": [1]}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (urllib.parse.urlsplit("data:,a"), ("data", "", ",a", "", "")),
    (http.HTTPStatus.OK, 200),
    (derived(type(pathlib.Path()), "a/b"), pathlib.Path("a/b")),
    (bs4.BeautifulSoup("<h1>Emma</h1>", "html.parser").h1.string, "Emma"),  # type: ignore[union-attr]
    (Selector("<p>Emma</p>").root.xpath("//p/text()")[0], "Emma"),
]


@pytest.mark.parametrize(("value", "base"), BASES, ids=lambda value: type(value).__name__)
def test_a_value_of_a_class_with_no_form_is_read_back_as_its_base(value: Any, base: Any) -> None:
    for item, expected in ((value, base), ({"a": [value, value]}, {"a": [base, base]})):
        encoded = CODEC.encode(item)
        assert encoded.missing == ()
        assert same(CODEC.decode(encoded.text), expected)
        name = codec._name_of(type(value))
        assert f"{name} is read back as {type(base).__name__}" in encoded.changed
        assert len(encoded.changed) == len(set(encoded.changed)) <= 2


class Scalar:
    """A number that derives from none, as numpy's do."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __index__(self) -> Any:
        return self.value

    def __float__(self) -> float:
        return float(self.value)

    def __eq__(self, other: object) -> bool:
        return self.value == other

    __hash__ = None  # type: ignore[assignment]


@numbers.Integral.register
class Int64(Scalar): ...


@numbers.Real.register
class Float32(Scalar): ...


def test_a_number_of_another_kind_is_read_back_as_a_number_that_is_equal() -> None:
    given = [Int64(5), Float32(0.5), Float32(math.nan)]
    assert same(CODEC.decode(CODEC.encode(given).text), [5, 0.5, math.nan])
    assert same(CODEC.decode(CODEC.encode(Fraction(1, 2)).text), 0.5)
    assert CODEC.encode(Fraction(1, 3)).missing, "no float is equal"


def test_values_in_what_is_read_back_as_its_base_are_looked_at_like_any_other() -> None:
    held: Any = derived(list, [1])
    held.append(collections.defaultdict(list, again=held))
    encoded = CODEC.encode({"held": held, "p": Selector("<p>a</p>").css("p")})
    name = f"{__name__}.Oddlist"
    assert encoded.missing == (
        f"held[1].again: a {name} that holds itself {FORM}",
        f"p[0]: a parsel.selector.Selector {FORM}",
    )


def test_an_item_that_could_be_built_where_it_is_listed_keeps_its_class() -> None:
    bare = Codec()
    for item in (shop.Row(a=1), shop.Place("a")):
        encoded = bare.encode(item)
        assert encoded.missing == encoded.changed == ()
        assert json.loads(encoded.text)["$item"] == codec._name_of(type(item))
    encoded = bare.encode({"row": shop.Row(a=1), "language": shop.Language.GERMAN})
    assert bare.decode(encoded.text) == {"row": {"a": 1}, "language": "de"}
    assert len(encoded.changed) == 2
    assert same(back({"row": shop.Row(a=1)}), {"row": shop.Row(a=1)})


@pytest.mark.parametrize("cls", [shop.Page, shop.Page[int], shop.Page[list[shop.Page[int]]]])
def test_a_generic_model_is_read_back_as_its_origin(cls: Any) -> None:
    page = cls.model_construct(first=1)
    for item in (page, {"page": page}):
        encoded = CODEC.encode(item)
        assert encoded.missing == ()
        read = CODEC.decode(encoded.text)
        assert read == item
        assert type(read if item is page else read["page"]) is shop.Page
        assert len(encoded.changed) == (cls is not shop.Page)
    assert Codec(item_classes=[cls]).decode(encoded.text) == {"page": page}


class Unreadable:
    """What raises at every touch."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __hash__ = __eq__ = __bool__ = __repr__  # type: ignore[assignment]


class _UnhashableMeta(type):
    __hash__ = None  # type: ignore[assignment]


class Unsorted(metaclass=_UnhashableMeta):
    """A class that is in no set and no dict."""


class Shown:
    """What is shown as it says."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class _Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)


class Unnameable(metaclass=_Meta):
    """A class that raises at every touch."""


@dataclasses.dataclass
class Local:
    """What is replaced below, so that its name leads elsewhere."""

    title: str


ReplacedLocal = Local
Local = None  # type: ignore[assignment,misc]


def holder_of_itself() -> list[Any]:
    held: list[Any] = [1]
    held.append({"again": held, "twice": held})
    return held


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else shop.Offer((value,))
    return value


class BrokenZone(dt.tzinfo):
    """A time zone that raises."""

    def utcoffset(self, moment: Any) -> dt.timedelta:
        raise LookupError


class OddItem(scrapy.Item):
    """An item whose constructor made none of it."""

    def __init__(self) -> None:
        pass


FORMLESS = {
    "unreadable": Unreadable,
    "unnameable": lambda: type.__call__(Unnameable),
    "unsorted": Unsorted,
    "class": lambda: Unreadable,
    "unmade item": OddItem,
    "cycle": holder_of_itself,
    "deep": lambda: nested(500),
    "very deep": lambda: nested(100_000),
    "function": lambda: len,
    "ellipsis": lambda: Ellipsis,
    "range": lambda: range(3),
    "unknown bits": lambda: shop.Weekday(64),
    "generator": lambda: (each for each in ()),
    "selector": lambda: Selector("<p>a</p>"),
    "module": lambda: sys,
    "mock": mock.MagicMock,
    "mock of a str": lambda: mock.MagicMock(spec=str),
    "request": lambda: scrapy.Request("data:,"),
    "broken zone": lambda: dt.datetime(2020, 1, 1, tzinfo=BrokenZone()),
}


@pytest.mark.parametrize("name", FORMLESS)
def test_no_value_stops_an_item_from_being_stored(name: str) -> None:
    value = FORMLESS[name]()
    for item in [value, {"a": [1, value], "b": 2}, shop.Book("A", [value])]:
        encoded = CODEC.encode(item)
        assert encoded.missing
        with pytest.raises(UnstorableValue):
            CODEC.decode(encoded.text)
    row = json.loads(CODEC.encode({"a": [1, value], "b": 2}).text)
    assert row["a"][0] == 1
    assert row["b"] == 2


def test_what_holds_itself_is_left_out_where_it_comes_again() -> None:
    encoded = CODEC.encode({"held": holder_of_itself()})
    assert encoded.missing == (
        "held[1].again: a list that holds itself has no stored form",
        "held[1].twice: a list that holds itself has no stored form",
    )


def test_what_changes_while_it_is_written_is_left_out_as_a_whole() -> None:
    holder: dict[str, Any] = {}

    class Restless:
        def __repr__(self) -> str:
            holder["more"] = 1
            return "restless"

    holder["value"] = Restless()
    encoded = CODEC.encode({"holder": holder, "n": 1})
    assert encoded.missing == (
        "holder: a dict that cannot be read (RuntimeError) has no stored form",
    )
    assert json.loads(encoded.text)["n"] == 1


@dataclasses.dataclass
class Node:
    """An item that knows others, and shows them all."""

    name: Any
    others: list[Any] = dataclasses.field(default_factory=list)


def tree_of_dicts() -> Any:
    root: dict[str, Any] = {"children": []}
    root["children"] = [{"parent": root, "ways": [[root]] * 3} for _ in range(2_000)]
    return root


def ring_of_defaultdicts() -> Any:
    nodes: list[Any] = [collections.defaultdict(list, n=n) for n in range(12)]
    for node in nodes:
        node["others"] = [other for other in nodes if other is not node]
    return nodes


def nodes_that_know_each_other() -> Any:
    nodes = [Node(n) for n in range(30)]
    for node in nodes:
        node.others = [other for other in nodes if other is not node]
    return nodes[0]


def doubled() -> Any:
    value: Any = [1]
    for _ in range(60):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "make", [tree_of_dicts, ring_of_defaultdicts, nodes_that_know_each_other, doubled]
)
def test_values_that_lead_to_each_other_in_many_ways_are_stored_in_bounds(make: Any) -> None:
    encoded = CODEC.encode({"nodes": make(), "n": 1})
    assert len(encoded.text) < 5_000_000
    assert "holds itself" in encoded.missing[0] or "too often" in "".join(encoded.missing)
    assert json.loads(encoded.text)["n"] == 1


def test_a_value_that_is_there_thousands_of_times_is_stored_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codec, "_MOST_REPEATS", 10_000)
    seller, day = shop.Offer("s", [Decimal(1)]), dt.date(2020, 12, 31)
    item = {"offers": [shop.Offer(seller, n) for n in range(2_000)], "days": [day] * 12_000}
    assert back(item) == item
    lists = [collections.UserList(), *(collections.defaultdict(int) for _ in range(11_000))]
    assert "too often" not in CODEC.encode({"lists": lists}).missing[-1]


def test_one_value_that_cannot_be_looked_at_does_not_take_the_others_along() -> None:
    encoded = CODEC.encode({"a": Unsorted(), "b": [1]})
    assert encoded.missing == (f"a: a {__name__}.Unsorted that cannot be read (TypeError) {FORM}",)
    assert json.loads(encoded.text)["b"] == [1]


FORM = "has no stored form"


def test_what_is_told_of_a_value_can_be_written_to_any_database() -> None:
    nameless = type("Nameless", (), {})
    nameless.__qualname__ = "Name\ud83d\x00"
    encoded = CODEC.encode({Shown("\ud83d\x00"): nameless()})
    assert len(encoded.missing) == 2
    for text in (*encoded.missing, CODEC.encode(nameless()).item_type):
        assert "\x00" not in text
        assert text.encode()
    assert r"\ud83d\x00" in encoded.missing[0]


def test_names_that_a_model_does_not_have_are_not_among_those_it_was_given() -> None:
    for names in ({"title", "other"}, {b"title"}):
        item = shop.Sparse.model_construct(names, title="A")
        assert back({"book": item})["book"].title == "A"
    item = shop.Model(title="A", more=1)
    del item.more
    assert back(item) == item


strange_keys = (
    st.text()
    | st.sampled_from(["$", "$item", "\ud83d", "\ude00", "\x00"])
    | st.integers()
    | st.floats()
    | st.none()
    | st.tuples(st.floats(), st.text())
    | st.builds(Shown, st.sampled_from(["", "\ud83d", "\x00", "long " * 100]))
    | st.builds(object)
)
strange_values = (
    strange_keys
    | st.sampled_from([FORMLESS[name] for name in FORMLESS if name != "very deep"]).map(
        lambda make: make()
    )
    | st.sampled_from([700, 5_000]).map(lambda digits: -(10**digits))
    | st.sampled_from([math.nan, math.inf, "\ud83d\ude00", "\ude00\ud83d"])
    | st.decimals()
    | st.datetimes(timezones=st.timezones() | st.just(BrokenZone()))
)


@st.composite
def strange_items(draw: st.DrawFn) -> Any:
    """Return anything, which may hold itself and be nested deep."""
    inner: Any = draw(
        st.recursive(
            strange_values,
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.lists(inner, max_size=3).map(tuple)
                | st.dictionaries(strange_keys, inner, max_size=3)
                | st.dictionaries(strange_keys, inner, max_size=2).map(shop.Row)
                | st.dictionaries(strange_keys, inner, max_size=2).map(collections.OrderedDict)
                | st.lists(inner, max_size=2).map(collections.UserList)
                | st.lists(inner, max_size=2).map(partial(derived, list))
                | st.lists(inner, max_size=2).map(lambda held: collections.defaultdict(int, a=held))
                | st.builds(shop.Page[int].model_construct, first=inner)
                | st.builds(shop.Book, inner, inner)
                | st.builds(shop.Offer, inner, inner)
                | st.builds(shop.Place, inner, inner)
                | st.builds(shop.DictBook, title=inner)
                | st.builds(shop.AttrsOffer, inner, inner)
                | st.builds(shop.Model, title=inner, more=inner)
                | st.builds(Node, inner)
            ),
            max_leaves=6,
        )
    )
    wrap = draw(st.sampled_from([shop.Offer, lambda value: [value], lambda value: {"a": value}]))
    for _ in range(draw(st.integers(0, 4) | st.integers(20, 150))):
        inner = wrap(inner)
    holder = [inner, shop.Book("A", [inner])]
    if draw(st.booleans()):
        holder[1].tags.append(holder)
        holder[1].price = holder[1]
    return [inner, holder, holder[1]][draw(st.integers(0, 2))]


@settings(max_examples=third_of(300))
@given(strange_items())
def test_anything_is_stored_or_told_of_and_nothing_is_raised(item: Any) -> None:
    encoded = CODEC.encode(item)
    json.loads(encoded.text)
    assert encoded.text.isascii()
    for text in (encoded.item_type, *encoded.missing):
        assert "\x00" not in text.encode().decode()
    if encoded.missing:
        with pytest.raises(CodecError):
            CODEC.decode(encoded.text)
    else:
        CODEC.decode(encoded.text)


def test_a_value_that_is_there_twice_does_not_hold_itself() -> None:
    shared = [Decimal(1)]
    assert back({"a": shared, "b": [shared]}) == {"a": shared, "b": [shared]}


def test_the_deepest_item_that_is_stored_can_be_read() -> None:
    assert back(nested(66)) == nested(66)
    assert CODEC.encode(nested(67)).missing


def test_an_item_is_stored_from_deep_down_the_stack() -> None:
    def call(levels: int) -> Any:
        return call(levels - 1) if levels else CODEC.encode({"a": nested(50)})

    for levels in range(sys.getrecursionlimit() - 300, sys.getrecursionlimit() - 100, 5):
        with contextlib.suppress(RecursionError):
            assert json.loads(call(levels).text)


def test_an_item_whose_class_no_name_leads_to_is_stored_and_told_of() -> None:
    @dataclasses.dataclass
    class Inner:
        title: str

    for item in [Inner("A"), ReplacedLocal("A")]:
        encoded = CODEC.encode({"book": item})
        assert json.loads(encoded.text)["book"]["fields"] == {"title": "A"}
        assert "top level of a module" in encoded.missing[0]
        with pytest.raises(CodecError):
            CODEC.decode(encoded.text)
        listed = Codec(item_classes=[type(item)])
        assert listed.encode(item).missing == listed.encode({"book": item}).missing == ()
        assert listed.decode(encoded.text) == {"book": item}


# ------------------------------------------------------------------------------- foreign classes


@contextlib.contextmanager
def importing_nothing() -> Iterator[None]:
    """Fail if anything but time zones is imported in the block."""
    before = set(sys.modules)
    original = importlib.import_module

    def import_module(name: str, package: str | None = None) -> Any:
        assert name.split(".", maxsplit=1)[0] == "tzdata", name
        return original(name, package)

    with mock.patch.object(importlib, "import_module", import_module):
        yield
    new = {name.split(".")[0] for name in set(sys.modules) - before}
    assert not new - {"tzdata", "encodings"}


@pytest.mark.parametrize("tag", ["$item", "$enum"])
@pytest.mark.parametrize(
    "name",
    [
        "subprocess.Popen",
        "os.system",
        "builtins.eval",
        "eval",
        "antigravity.fly",
        "scrapy.item.Item",
        "",
        ".",
        "..os.system",
        "testsuite.Book",
        "tests",
        "tests.",
        "tests..items.Book",
        f"{HERE}",
        f"{HERE}.Plain",
        f"{HERE}.function",
        f"{HERE}.Popen",
        f"{HERE}.os.system",
        f"{HERE}.Dataclass",
        f"{HERE}.dataclasses.Field",
        f"{HERE}.Book.__class__",
        f"{HERE}.Book.__init__.__globals__",
        f"{HERE}.Missing",
        "tests.missing.Book",
        f"{HERE}.Book\n",
        5,
        None,
        ["tests.items"],
        {"a": 1},
    ],
)
def test_no_other_class_is_built_and_nothing_is_imported(name: Any, tag: str) -> None:
    row = {tag: name, "fields" if tag == "$item" else "name": {}}
    with importing_nothing(), pytest.raises(CodecError, match=r"offers\[1\]: .*DEFERKIT_ITEM"):
        CODEC.decode(json.dumps({"offers": [1, row]}))


def test_the_two_tags_of_classes_are_not_taken_for_each_other() -> None:
    with pytest.raises(CodecError, match=r'its tag is "\$enum"'):
        CODEC.decode(json.dumps({"$item": f"{HERE}.Format", "fields": {}}))
    with pytest.raises(CodecError, match=r'its tag is "\$item"'):
        CODEC.decode(json.dumps({"$enum": f"{HERE}.Book", "name": "A"}))


@pytest.fixture
def codecshop(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that is not imported; its ``__main__`` must never be."""
    package = tmp_path / "codecshop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("raise SystemExit('it was run')")
    (package / "broken.py").write_text("import codecshop_has_no_such_module")
    (package / "items.py").write_text("class Book(dict):\n    class Page(dict): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.startswith("codecshop")]:
        del sys.modules[name]


@pytest.mark.usefixtures("codecshop")
@pytest.mark.parametrize("name", ["items.Book", "__main__.X", "broken.Book", "Book"])
@pytest.mark.parametrize("tag", ["$item", "$enum"])
def test_nothing_of_the_project_is_imported_for_a_row(name: str, tag: str) -> None:
    row = {tag: f"codecshop.{name}", "fields" if tag == "$item" else "name": {}}
    with importing_nothing(), pytest.raises(CodecError, match="a module that has been imported"):
        Codec(["codecshop"]).decode(json.dumps(row))
    assert "codecshop" not in sys.modules


@pytest.mark.usefixtures("codecshop")
def test_a_class_of_the_project_is_read_once_its_module_is_imported() -> None:
    codec = Codec(["codecshop"])
    items = importlib.import_module("codecshop.items")
    text = '{"$item": "codecshop.items.Book.Page", "fields": {"a": 1}}'
    assert same(codec.decode(text), items.Book.Page(a=1))
    assert codec.encode(codec.decode(text)).text == text


@pytest.mark.usefixtures("codecshop")
def test_a_listed_class_is_imported_at_the_start() -> None:
    text = '{"$item": "codecshop.items.Book.Page", "fields": {}}'
    assert Codec(item_classes=["codecshop.items.Book.Page"]).decode(text) == {}
    with pytest.raises(StackConfigError, match=r"codecshop\.broken\.Book.* cannot be imported"):
        Codec(item_classes=["codecshop.broken.Book"])
    for missing in ("codecshop.missing.Book", "codecshop.items.Missing", "codecshop.items.Book.x"):
        with pytest.raises(StackConfigError, match=f"^there is no class '{missing}': expected"):
            Codec(item_classes=[missing])
    with pytest.raises(StackConfigError, match=r"^'pathlib\.Path' is not an item class: expected"):
        Codec(item_classes=["pathlib.Path"])


class OwnItem(scrapy.Item):
    title = scrapy.Field()


class OwnSpider(scrapy.Spider):
    name = "own"


@pytest.mark.parametrize("module", ["codecscript", "__main__"])
def test_the_items_of_a_script_are_read_back(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script: Any = types.ModuleType(module)
    monkeypatch.setitem(sys.modules, module, script)
    script.Book = type("Book", (scrapy.Item,), {"__module__": module, "title": scrapy.Field()})
    script.Books = type("Books", (scrapy.Spider,), {"__module__": module})
    item = script.Book(title="A")
    encoded = Codec().encode(item)
    assert encoded.missing == ()
    assert encoded.item_type == f"{module}.Book"
    assert same(Codec.from_settings(Settings(), script.Books).decode(encoded.text), item)
    with pytest.raises(CodecError):
        Codec.from_settings(Settings(), OwnSpider).decode(encoded.text)


@pytest.mark.parametrize(
    ("settings", "spidercls"), [({}, OwnSpider), ({"SPIDER_MODULES": [__name__]}, None)]
)
def test_what_a_script_has_left_is_read_where_that_is_a_module(
    settings: Any, spidercls: Any
) -> None:
    codec = Codec.from_settings(Settings(settings), spidercls)
    text = '{"$item": "__main__.OwnItem", "fields": {"title": "A"}}'
    assert same(codec.decode(text), OwnItem(title="A"))
    with pytest.raises(CodecError, match=r"'__main__\.sys\.path' is no item class"):
        codec.decode(text.replace("OwnItem", "sys.path"))


def test_a_class_from_outside_is_read_once_it_is_listed() -> None:
    codec = Codec(item_classes=["collections.Counter", shop.Format])
    item = {"by": collections.Counter("aab"), "day": shop.Format.PAPER}
    encoded = codec.encode(item)
    with pytest.raises(CodecError, match=r"by: .*'collections\.Counter'.* DEFERKIT_ITEM_CLASSES"):
        Codec().decode(encoded.text)
    assert encoded.changed == ()
    assert same(codec.decode(encoded.text), item)


def test_a_class_is_listed_by_any_name_that_leads_to_it() -> None:
    codec = Codec(item_classes=[f"{HERE}.Dataclass", f"{HERE}.DictBook.Cover"])
    item = shop.Dataclass("A", [shop.DictBook.Cover(colour="red")])
    text = codec.encode(item).text
    assert codec.decode(text) == item
    assert codec.decode(text.replace("tests.items", HERE)) == item


@pytest.mark.parametrize(
    "entry",
    [f"{HERE}.Plain", f"{HERE}.os.system", "dict", "no_such_package.Book", "", 5, dict, int, len],
)
def test_a_wrong_entry_is_refused_at_start_up(entry: Any) -> None:
    with pytest.raises(StackConfigError, match="DEFERKIT_ITEM_CLASSES: .*"):
        Codec.from_settings(Settings({"DEFERKIT_ITEM_CLASSES": [entry]}))


def test_the_setting_must_be_a_list() -> None:
    with pytest.raises(StackConfigError, match="DEFERKIT_ITEM_CLASSES = 5"):
        Codec.from_settings(Settings({"DEFERKIT_ITEM_CLASSES": 5}))


@pytest.mark.parametrize("modules", [["tests.spiders", "tests.more"], "other.spiders, tests.more"])
@pytest.mark.parametrize(
    "listed", [["collections.Counter", shop.Book], "collections.Counter, tests.codec_items.Book"]
)
def test_the_settings_say_what_may_be_built(modules: Any, listed: Any) -> None:
    given = {"SPIDER_MODULES": modules, "DEFERKIT_ITEM_CLASSES": listed}
    codec = Codec.from_settings(Settings(given))
    for item in [shop.Offer("s"), collections.Counter("a")]:
        assert codec.decode(codec.encode(item).text) == item
    bare = Codec.from_settings(Settings())
    assert bare.decode(bare.encode({"a": 1}).text) == {"a": 1}
    with pytest.raises(CodecError, match=r"\(none\)"):
        bare.decode(bare.encode(shop.Offer("s")).text)


# ---------------------------------------------------------------------------- rows edited by hand


def book_with(price: Any, **more: Any) -> str:
    offer = {"$item": f"{HERE}.Offer", "fields": {"price": price}, **more}
    return json.dumps({"offers": [1, 2, offer]})


@pytest.mark.parametrize(
    "price",
    [
        {"$date": "2020-13-45"},
        {"$date": 5},
        {"$date": "2020-12-31", "more": 1},
        {"$datetime": "today"},
        {"$datetime": "2020-12-31T00:00:00", "zone": "Europe/Nowhere"},
        {"$datetime": "2020-12-31T00:00:00", "zone": "../../etc/passwd"},
        {"$datetime": "2020-12-31T00:00:00", "zone": 5},
        {"$datetime": "2020-12-31T00:00:00+01:00", "zone": "Europe/Berlin"},
        {"$datetime": "2020-12-31T00:00:00", "fold": 2},
        {"$time": "25:00:00"},
        {"$timedelta": [1]},
        {"$timedelta": ["1", 2, 3]},
        {"$timedelta": [10**20, 0, 0]},
        {"$decimal": "nine"},
        {"$decimal": 9.99},
        {"$float": "much"},
        {"$int": "much"},
        {"$complex": ["1"]},
        {"$bytes": "aGk"},
        {"$bytearray": "é"},
        {"$uuid": "1"},
        {"$path": 1},
        {"$tuple": "ab"},
        {"$set": [[1]]},
        {"$frozenset": 1},
        {"$dict": [[[], 1]]},
        {"$dict": [["a"]]},
        {"$dict": ["ab"]},
        {"$dict": {"ab": 1}},
        {"$ordereddict": 1},
        {"$str": [1]},
        {"$unknown": 1},
        {"$date": "2020-12-31", "$decimal": "1"},
        {"$item": f"{HERE}.Row"},
        {"$item": f"{HERE}.Row", "fields": []},
        {"$item": f"{HERE}.Place", "fields": {"city": 1}},
        {"$item": f"{HERE}.Place", "fields": {"city": 1, "shelf": 1, "more": 1}},
        {"$item": f"{HERE}.Book", "fields": {"titel": 1}},
        {"$item": f"{HERE}.Book", "fields": {}, "extra": {}},
        {"$item": f"{HERE}.Book", "fields": {"shelf": "a ClassVar"}},
        {"$item": f"{HERE}.DictBook", "fields": {"titel": 1}},
        {"$item": f"{HERE}.AttrsOffer", "fields": {}, "attributes": {"more": 1}},
        {"$item": f"{HERE}.Model", "fields": {"more": 1}},
        {"$item": f"{HERE}.Model", "fields": {}, "private": {"_more": 1}},
        {"$item": f"{HERE}.Model", "fields": {}, "set": ["more"]},
        {"$item": f"{HERE}.Model", "fields": {}, "set": [["title"]]},
        {"$item": f"{HERE}.Model", "fields": {}, "set": {}},
        {"$item": "tests.items.Pydantic", "fields": {}, "extra": {"more": 1}},
        {"$enum": f"{HERE}.Format"},
        {"$enum": f"{HERE}.Rights", "name": ["READ", "FLY"]},
        {"$enum": f"{HERE}.Rights", "name": [[]]},
    ],
    ids=json.dumps,
)
def test_a_wrong_edit_is_named_with_its_place(price: Any) -> None:
    with importing_nothing(), pytest.raises(CodecError, match=r"^offers\[2\]\.price\b"):
        CODEC.decode(book_with(price))


def test_a_field_that_an_item_does_not_have_is_named_with_those_it_has() -> None:
    with pytest.raises(CodecError) as raised:
        CODEC.decode(json.dumps({"$item": f"{HERE}.Offer", "fields": {"prise": 1}}))
    assert str(raised.value) == (
        f"the item: a {HERE}.Offer has no fields ['prise']; it may have seller, price"
    )


def test_the_fields_of_an_item_do_not_come_in_by_its_attributes() -> None:
    row = {"$item": f"{HERE}.DictBook", "fields": {}, "attributes": {"_values": {"titel": 1}}}
    assert CODEC.decode(json.dumps(row)) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nan",
        "NaN",
        '{"a": Infinity}',
        "[" * 100000,
        '{"a":' * 100000,
        "9" * 5000 + ",",
        '"unfinished',
        '{"$tuple": [' * 5000 + "]}" * 5000,
        "\ufeff{}",
    ],
    ids=lambda text: text[:10],
)
def test_a_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(CodecError, match="the text is"):
        CODEC.decode(text)


def parts_of(row: Any) -> Iterator[tuple[Any, Any]]:
    """Give each place in a JSON value, as what holds it and the key there."""
    for key, value in row.items() if isinstance(row, dict) else enumerate(row):
        yield row, key
        if isinstance(value, (dict, list)):
            yield from parts_of(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
TAGS = ["$item", "$enum", "$date", "$datetime", "$time", "$timedelta", "$decimal", "$float"]
TAGS += ["$int", "$complex", "$bytes", "$uuid", "$path", "$posixpath", "$tuple", "$set", "$dict"]
TAGS += ["$frozenset", "$ordereddict", "$str", "$unstorable", "$", "fields", "attributes"]
TAGS += ["name", "zone", "fold", "extra", "private", "set"]
NAMES = ["os.system", "subprocess.Popen", "Europe/Rome", "NaN", "2020-01-01"]
NAMES += [f"{HERE}.{name}" for name in vars(shop) if not name.startswith("_")]
strange = json_values | st.sampled_from(TAGS + NAMES)


def read_or_refuse(text: str) -> None:
    """Read *text*: whatever it is, there is a value or one kind of error, and no import."""
    with importing_nothing(), contextlib.suppress(CodecError):
        CODEC.decode(text)


@settings(max_examples=third_of(300))
@given(items(values), st.data())
def test_any_value_in_a_text_may_be_replaced_by_any_other(item: Any, data: st.DataObject) -> None:
    row = json.loads(CODEC.encode([item]).text)
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(list(parts_of(row))))
        if isinstance(holder, dict) and data.draw(st.booleans()):
            holder[data.draw(st.sampled_from(TAGS) | st.text(max_size=3))] = holder.pop(key)
        else:
            holder[key] = data.draw(strange | st.just(holder[key]).map(lambda value: [value]))
    read_or_refuse(json.dumps(row))


@settings(max_examples=third_of(200))
@given(items(values), st.integers(0), st.integers(0, 5), st.text(max_size=3))
def test_any_part_of_a_text_may_be_replaced_by_any_other(
    item: Any, start: int, length: int, replacement: str
) -> None:
    text = CODEC.encode(item).text
    start %= len(text)
    read_or_refuse(text[:start] + replacement + text[start + length :])
