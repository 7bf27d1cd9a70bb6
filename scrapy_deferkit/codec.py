r"""Items as JSON text that can be read and corrected, and back, equal and of their type.

What JSON has stands as it is; what it lacks stands in an object with one key that begins with
``$``, its tag:

==============================  ==================================================================
value                           in the text
==============================  ==================================================================
dict                            ``{"title": "A"}``
dict with keys that are not     ``{"$dict": [[1, "one"], ["$key", "two"]]}``
str, or begin with ``$``
OrderedDict                     ``{"$ordereddict": [["title", "A"]]}``
tuple, set, frozenset           ``{"$tuple": [1, 2]}``, ``{"$set": [1]}``, ``{"$frozenset": [1]}``
date                            ``{"$date": "2020-12-31"}``
datetime                        ``{"$datetime": "2020-12-31T23:59:59.5+01:00"}``; in a ZoneInfo
                                ``{"$datetime": "2020-12-31T23:59:59", "zone": "Europe/Berlin"}``;
                                of an hour that comes twice, the second: ``"fold": 1`` beside it
time                            ``{"$time": "23:59:59"}``, with the same additions
timedelta                       ``{"$timedelta": [1, 3600, 0]}``: days, seconds, microseconds
Decimal                         ``{"$decimal": "9.99"}``
float that is no number         ``{"$float": "nan"}``, ``"inf"``, ``"-inf"``
int of hundreds of digits       ``{"$int": "0xff"}``
complex                         ``{"$complex": ["1.0", "-0.5"]}``
bytes, bytearray                ``{"$bytes": "aGk="}``, ``{"$bytearray": "aGk="}``: Base64
UUID                            ``{"$uuid": "12345678-1234-5678-1234-567812345678"}``
Path of this system             ``{"$path": "books/1.html"}``
PurePosixPath, PureWindowsPath  ``{"$posixpath": "books/1.html"}``, ``{"$windowspath": "books"}``
str that JSON would change      ``{"$str": ["\ud83d", "\ude00"]}``: two surrogates, not one emoji
Enum                            ``{"$enum": "project.items.Format", "name": "PAPER"}``;
                                of a Flag ``"name": ["READ", "WRITE"]``
item, NamedTuple,               ``{"$item": "bookshop.items.Book", "fields": {"title": "A"}}``
dict of a class of your own
==============================  ==================================================================

An item has, beside its fields, where there is such a thing: ``attributes`` (set on it and no
fields), and of a pydantic model ``extra``, ``private``, and ``set`` (the names that were given, if
they are not all). A field that is left out is one that was never set.

A tzinfo that is neither a ``timezone`` nor a ``ZoneInfo`` is stored as the offset it had then.

A value of a class that derives from one of these, or is a number, and may not be built itself
(bs4's ``NavigableString``, ``numpy.float64``, ``defaultdict``) stands as its base has it, and is
read back as that. So does a pydantic model such as ``Page[int]``: as a ``Page``.

A value with no form stands as ``{"$unstorable": "socket.socket", "repr": "<socket ...>"}``. Such a
text is read again once something else has been put in its place.
"""

from __future__ import annotations

import base64
import datetime as dt
import importlib
import json
import math
import numbers
import operator
import re
import reprlib
import sys
from collections import OrderedDict
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from decimal import Decimal
from enum import Enum, Flag
from functools import cached_property, lru_cache, partial, reduce
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from scrapy.item import Item

from ._config import blaming, list_of
from .exceptions import DeferKitError, StackConfigError
from .merge import adds_no_layout, slots_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from scrapy.settings import BaseSettings

_DEEPEST = 100
"""Values in values: what is nested deeper has no form, so that each text can be read again."""

_MOST_REPEATS = 100_000
"""How often lists, dicts and items that are in an item already are written once more.

Without a bound, a list that holds one list twice, which holds one twice, and so on, has no end.
Each one that is left out, because it holds itself, say, counts as ten.
"""

_PLAIN_LEVELS = 10
"""What is nested deeper is written by :class:`_Writer`, which counts what comes again."""

_SHORTEST_LONG_INT = 2048
"""Bits: Python may be set to refuse decimal ints of more than 640 digits, which are 2126."""

_SCALARS = frozenset({str, int, float, bool, type(None)})
_STRINGS = frozenset({str})
_BETWEEN_SURROGATES = re.compile("(?<=[\ud800-\udbff])(?=[\udc00-\udfff])")

# What is dumped has been looked through for cycles before.
_dumps = json.JSONEncoder(check_circular=False, allow_nan=False).encode

_Where = tuple[Any, Any] | None
"""Where in the item: where the holder is, and the key in it; ``None`` for the item itself."""


class CodecError(DeferKitError):
    """A text is no stored item, or names a class that may not be built."""


class UnstorableValue(CodecError):
    """A text lacks a value that had no form when its item was stored."""


class Encoded(NamedTuple):
    """A stored item: its text, its class, and what of it had no form."""

    text: str
    item_type: str
    """Such as ``bookshop.items.Book``, or ``dict``."""
    missing: tuple[str, ...]
    """An entry for each value that cannot be read again, with its place in the item and why."""
    changed: tuple[str, ...] = ()
    """An entry for each class whose values are read back as those of its base."""


class Codec:
    """Writes items of any kind, and reads those whose classes are allowed.

    Allowed are the item classes, NamedTuples and Enums that are defined in *packages*, and
    *item_classes*, by import path or as they are, which may be defined anywhere. No other class
    is built, and nothing is imported, whatever a text says: a class of *packages* is found once
    its module has been imported. What a script has written, as ``__main__.Book``, is looked for in
    *modules* where that script has been imported under its name.

    Raises :exc:`~scrapy_deferkit.exceptions.StackConfigError` where one of *item_classes* is no
    such class.

    >>> codec = Codec()
    >>> codec.encode({"price": Decimal("9.99")}).text
    '{"price": {"$decimal": "9.99"}}'
    >>> codec.decode('{"price": {"$decimal": "9.99"}}')
    {'price': Decimal('9.99')}
    """

    def __init__(
        self,
        packages: Iterable[str] = (),
        item_classes: Iterable[str | type] = (),
        modules: Iterable[str] = (),
    ) -> None:
        self._packages = tuple(packages)
        self._prefixes = tuple(f"{package}." for package in self._packages)
        self._modules = tuple(modules)
        self._classes: dict[str, type] = {}
        for entry in item_classes:
            cls = _defined(_item_class(entry))
            self._classes[_name_of(cls)] = cls
            if isinstance(entry, str):
                self._classes[entry] = cls

    @classmethod
    def from_settings(cls, settings: BaseSettings, spidercls: type | None = None) -> Codec:
        """Allow what the top packages of ``SPIDER_MODULES`` define, and ``DEFERKIT_ITEM_CLASSES``.

        The module of *spidercls* may be of no package: a script, or what ``scrapy runspider`` runs.
        Raises :exc:`~scrapy_deferkit.exceptions.StackConfigError` if the setting is wrong.
        """
        modules = [path.strip() for path in settings.getlist("SPIDER_MODULES")]
        packages = [path.split(".")[0] for path in modules]
        if spidercls is not None:
            modules.append(spidercls.__module__)
            packages.append(spidercls.__module__)
        entries = list_of(settings, "DEFERKIT_ITEM_CLASSES") or ()
        if not isinstance(entries, (list, tuple, set, frozenset)):
            raise StackConfigError(
                f"DEFERKIT_ITEM_CLASSES = {entries!s} ({type(entries).__name__}): a list of item "
                'classes is expected, as in DEFERKIT_ITEM_CLASSES = ["shop_items.Book"]'
            )
        with blaming("DEFERKIT_ITEM_CLASSES"):
            return cls(dict.fromkeys(packages), entries, dict.fromkeys(modules))

    def encode(self, item: Any) -> Encoded:
        """Write *item*, which is not changed; any value may be given, and nothing is raised."""
        try:
            plain = _encode_plain(item, self._may_build)
            if plain is not None:
                return plain
        except Exception:  # of one value, such as a NaN: what can be stored of the others is
            pass
        name = _name_of(type(item))
        writer = _Writer(self._classes, self._may_build)
        try:
            text = _dumps(writer.write(item, None))
        except Exception as error:  # such as a RecursionError, from far down the stack
            text = _dumps({"$unstorable": name, "repr": _shown(item)})
            writer.missing = [f"the item: a {name} could not be read ({type(error).__name__})"]
        return Encoded(text, name, tuple(writer.missing), tuple(writer.changed))

    def decode(self, text: str) -> Any:
        """Read an item; its constructor and its validators do not run.

        Raises :exc:`CodecError` where *text* is none that :meth:`encode` could have written, or
        names a class that is not allowed, and :exc:`UnstorableValue` where a value is missing.
        """
        try:
            return self._read(json.loads(text, parse_constant=_refuse_constant), None)
        except RecursionError as error:
            raise CodecError(
                f"the text is nested too deeply: an item may have {_DEEPEST} levels"
            ) from error
        except (ValueError, TypeError) as error:
            raise CodecError(f"the text is not JSON: {error}; got {_shown(text)}") from error

    def _read(self, row: Any, where: _Where) -> Any:
        if type(row) is list:
            return [self._read(each, (where, index)) for index, each in enumerate(row)]
        if type(row) is not dict:
            return row
        tags = [key for key in row if key.startswith("$")]
        if not tags:
            return {key: self._read(each, (where, key)) for key, each in row.items()}
        tag = _TAGS.get(tags[0])
        if tag is None or row.keys() - {tags[0], *tag.beside}:
            raise CodecError(
                f"{_path(where)}: {_shown(row)} has no known tag, or keys that do not go with it; "
                f"the tags are {', '.join(_TAGS)}; a dict that has such keys of its own is "
                'written as {"$dict": [[key, value], ...]}'
            )
        try:
            return tag.read(self, row, where)
        except (CodecError, RecursionError):
            raise
        except Exception as error:
            raise CodecError(
                f"{_path(where)}: {_shown(row)} is wrong: {error}; expected is something like "
                f"{tag.example}"
            ) from error

    def _read_item(self, row: dict[str, Any], where: _Where) -> Any:
        cls = self._find(row["$item"], where)
        kind = _kind_of(cls)
        if kind is None:
            raise CodecError(f'{_path(where)}: {row["$item"]} is an Enum: its tag is "$enum"')
        parts = {name: self._read(part, where) for name, part in row.items() if name != "$item"}
        try:
            return kind.build(parts)
        except ValueError as error:
            raise CodecError(f"{_path(where)}: {error}") from error

    def _read_enum(self, row: dict[str, Any], where: _Where) -> Any:
        cls = self._find(row["$enum"], where)
        if Enum not in cls.__mro__:
            raise CodecError(f'{_path(where)}: {row["$enum"]} is no Enum: its tag is "$item"')
        members: Mapping[str, Any] = cls.__members__  # type: ignore[attr-defined]
        names = row.get("name")
        if type(names) is str and names in members:
            return members[names]
        if type(names) is list and Flag in cls.__mro__ and all(map(members.__contains__, names)):
            return _flags([members[name] for name in names], members)
        raise CodecError(
            f"{_path(where)}: {row['$enum']} has no member {_shown(names)}; its members are "
            f"{', '.join(members)}"
        )

    def _find(self, name: Any, where: _Where) -> type:
        """Return the class *name*, if it may be built and is there."""
        if type(name) is str and name in self._classes:
            return self._classes[name]
        names = self._allowed(name) if type(name) is str else []
        if not names:
            packages = ", ".join(self._packages) or "none"
            raise CodecError(
                f"{_path(where)}: the class {_shown(name)} may not be built; allowed are those "
                f"defined in the packages of SPIDER_MODULES ({packages}) and those listed in "
                "DEFERKIT_ITEM_CLASSES: add it there if it is an item class of yours"
            )
        for each in names:
            found = _look_up(each, sys.modules.get)
            if found is not None and _name_of(found) == each and _is_buildable(found):
                self._classes[name] = found
                return found
        raise CodecError(
            f"{_path(where)}: {_shown(name)} is no item class, NamedTuple or Enum that is defined "
            "under that name in a module that has been imported; import it where the spider is, "
            "or list it in DEFERKIT_ITEM_CLASSES; if it has moved, put its new name into the "
            "text, or the old import path into DEFERKIT_ITEM_CLASSES where that still leads to it"
        )

    def _may_build(self, cls: type) -> bool:
        name = _name_of(cls)
        return self._classes.get(name) is cls or (_is_findable(cls) and bool(self._allowed(name)))

    def _allowed(self, name: str) -> list[str]:
        """Return under which names the class *name* may be built."""
        script, _, rest = name.partition(".")
        names = [f"{it}.{rest}" for it in self._modules] if script == "__main__" else []
        return [each for each in (name, *names) if each.startswith(self._prefixes)]


# ------------------------------------------------------------------------------------- writing


def _encode_plain(item: Any, may_build: Callable[[type], bool]) -> Encoded | None:
    """Encode an item whose values JSON has all; ``None``, or an error, where one looks closer."""
    cls: type = type(item)
    if cls is dict:
        name, fields = "dict", item
    else:
        kind = _kind_of(cls)
        if kind is None or kind.cls is not cls or not _is_findable(cls):
            return None
        if kind.has_base and not may_build(cls):
            return None
        parts = kind.take_apart(item)
        if len(parts) > 1:
            return None
        name, fields = kind.name, parts["fields"]
    if not _has_plain_keys(fields) or not _is_plain(fields.values(), _PLAIN_LEVELS):
        return None
    text = _dumps(fields if cls is dict else {"$item": name, "fields": fields})
    if "\\ud" in text:  # an emoji, or surrogates that would come back as one
        return None
    return Encoded(text, name, ())


def _has_plain_keys(mapping: Collection[Any]) -> bool:
    if not _STRINGS.issuperset(map(type, mapping)):
        return False
    joined = "".join(mapping)
    if "$" in joined and any(key.startswith("$") for key in mapping):
        return False
    return joined.isascii() or not _BETWEEN_SURROGATES.search(joined)


def _is_plain(values: Collection[Any], levels: int) -> bool:
    if _SCALARS.issuperset(map(type, values)):
        return True
    for value in values:
        cls = type(value)
        if cls is list:
            plain = levels > 0 and _is_plain(value, levels - 1)
        elif cls is dict:
            plain = levels > 0 and _has_plain_keys(value) and _is_plain(value.values(), levels - 1)
        else:
            plain = cls in _SCALARS
        if not plain:
            return False
    return True


class _Writer:
    """Makes one item into what JSON has, and notes what has no form."""

    def __init__(self, classes: Mapping[str, type], may_build: Callable[[type], bool]) -> None:
        self.missing: list[str] = []
        self.changed: dict[str, None] = {}
        self._classes = classes
        self._may_build = may_build
        self._open: set[int] = set()
        self._begun: set[int] = set()
        self._held: list[Any] = []
        self._repeats = 0

    def write(self, value: Any, where: _Where) -> Any:
        cls = type(value)
        if value is None or cls is bool:
            return value
        if cls is str:
            is_exact = value.isascii() or not _BETWEEN_SURROGATES.search(value)
            return value if is_exact else self._write_form(value)
        if cls is int:
            return value if value.bit_length() <= _SHORTEST_LONG_INT else self._write_form(value)
        if cls is float:
            return value if math.isfinite(value) else self._write_form(value)
        if id(value) in self._open:
            return self._cut(value, where, "that holds itself")
        if len(self._open) == _DEEPEST:
            return self._cut(value, where, f"more than {_DEEPEST} levels deep")
        noted = len(self.missing)
        self._open.add(id(value))
        try:
            return self._write_open(value, cls, where)
        except Exception as error:  # a class may do anything when its instance is read
            del self.missing[noted:]
            return self._leave_out(value, where, f"that cannot be read ({type(error).__name__})")
        finally:
            self._open.discard(id(value))

    def _write_open(self, value: Any, cls: type, where: _Where) -> Any:
        form = _FORMS.get(cls)
        if form is not None and form.write is not None:
            return self._write_form(value)
        if cls is dt.datetime or cls is dt.time:
            return _write_moment(value)
        if Enum in cls.__mro__:
            if self._comes_as_base(cls, where):
                return self._write_base(value, cls, where)
            self._check_class(cls, where)
            return _write_enum(value)
        if id(value) not in self._begun:
            self._begun.add(id(value))
        elif self._repeats < _MOST_REPEATS:
            self._repeats += 1
        else:
            return self._cut(value, where, "that is in the item too often")
        if cls is list:
            return self._write_elements(value, where)
        if cls is dict:
            return self._write_dict(value, where)
        if form is not None:
            return {form.tag: self._write_elements(value, where)}
        if cls is OrderedDict:
            return {"$ordereddict": self._write_pairs(value, where)}
        kind = _kind_of(cls)
        if kind is None or (kind.has_base and self._comes_as_base(cls, where)):
            return self._write_base(value, cls, where)
        self._check_class(kind.cls, where)
        if kind.cls is not cls:
            self._note_change(cls, kind.name)
        parts = kind.take_apart(value)
        return {"$item": kind.name} | {
            name: part if name == "set" else self._write_dict(part, where)
            for name, part in parts.items()
        }

    def _comes_as_base(self, cls: type, where: _Where) -> bool:
        """Check whether a value of *cls* is written as one of its base.

        An item itself keeps its class if listing that is all that is missing: it says which
        pipelines take the item.
        """
        if self._may_build(cls) or _base_of(cls) is None:
            return False
        is_foreign = cls.__module__.partition(".")[0] in sys.stdlib_module_names
        return where is not None or is_foreign or not _is_findable(cls)

    def _write_base(self, value: Any, cls: type, where: _Where) -> Any:
        base = _base_of(cls)
        plain = None if base is None else _AS_BASE[base](value)
        is_equal = base not in _ABSTRACT or plain == value or str(plain) == "nan"
        if plain is None or not is_equal:
            return self._leave_out(value, where)
        self._note_change(cls, type(plain).__name__)
        self._held.append(plain)  # so that no other value gets its id
        if type(plain) in _SCALARS:
            return self.write(plain, where)
        return self._write_open(plain, type(plain), where)

    def _note_change(self, cls: type, base: str) -> None:
        self.changed[f"{_name_of(cls)} is read back as {base}"] = None

    def _check_class(self, cls: type, where: _Where) -> None:
        if not _is_findable(cls) and self._classes.get(name := _name_of(cls)) is not cls:
            self.missing.append(
                f"{_path(where)}: no class is found by the name {name}; define it at the top "
                "level of a module, or of a class there, or list it in DEFERKIT_ITEM_CLASSES"
            )

    def _write_form(self, value: Any) -> dict[str, Any]:
        form = _FORMS[type(value)]
        assert form.write is not None
        payload = form.write(value)
        return {form.tag: payload if type(payload) is list else self.write(payload, None)}

    def _write_elements(self, values: Iterable[Any], where: _Where) -> list[Any]:
        return [self.write(value, (where, index)) for index, value in enumerate(values)]

    def _write_dict(self, mapping: dict[Any, Any], where: _Where) -> dict[str, Any]:
        if _has_plain_keys(mapping):
            return {key: self.write(value, (where, key)) for key, value in mapping.items()}
        return {"$dict": self._write_pairs(mapping, where)}

    def _write_pairs(self, mapping: dict[Any, Any], where: _Where) -> list[Any]:
        return [
            [self.write(key, (where, key)), self.write(value, (where, key))]
            for key, value in mapping.items()
        ]

    def _cut(self, value: Any, where: _Where, why: str) -> dict[str, Any]:
        self._repeats += 10
        return self._leave_out(value, where, why, shown=_shown(value, _outliner))

    def _leave_out(
        self, value: Any, where: _Where, why: str = "", shown: str = ""
    ) -> dict[str, Any]:
        name = _name_of(type(value))
        described = f"a {name} {why}".rstrip()
        self.missing.append(f"{_path(where)}: {described} has no stored form")
        return {"$unstorable": name, "repr": shown or _shown(value)}


def _write_moment(value: dt.datetime | dt.time) -> dict[str, Any]:
    tag = f"${type(value).__name__}"
    if type(value.tzinfo) is ZoneInfo and value.tzinfo.key:
        local = value.replace(tzinfo=None)
        row: dict[str, Any] = {tag: local.isoformat(), "zone": value.tzinfo.key}
    elif value.tzinfo is not None and value.utcoffset() is None:
        raise ValueError("a time zone without an offset")
    else:
        row = {tag: value.isoformat()}
    if value.fold:
        row["fold"] = 1
    return row


def _write_enum(value: Any) -> dict[str, Any]:
    cls = type(value)
    members = cls.__members__
    if value._name_ in members:
        return {"$enum": _name_of(cls), "name": value._name_}
    parts = [each for each in members.values() if each.value & value.value == each.value]
    if _flags(parts, members) != value:
        raise ValueError("bits that no member has")
    return {"$enum": _name_of(cls), "name": [each._name_ for each in dict.fromkeys(parts)]}


def _from_elements(base: Any) -> Callable[[Any], Any]:
    return lambda value: base(base.__iter__(value))


_ABSTRACT: dict[type, Callable[[Any], Any]] = {
    numbers.Integral: operator.index,
    numbers.Real: float,  # if it is equal: a Fraction may not be
}

_AS_BASE: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    complex: complex.__pos__,
    Decimal: Decimal,
    dt.datetime: lambda value: dt.datetime.combine(
        dt.datetime.date(value), dt.datetime.timetz(value)
    ),
    dt.date: lambda value: dt.datetime.combine(value, dt.time.min).date(),
    dt.time: lambda value: dt.datetime.combine(dt.date.min, value).timetz(),
    dt.timedelta: dt.timedelta.__pos__,
    UUID: lambda value: UUID(int=value.int),
    type(Path()): Path,
    PurePosixPath: PurePosixPath,
    PureWindowsPath: PureWindowsPath,
    list: list.copy,
    dict: lambda value: dict(dict.items(value)),  # dict.copy calls its __iter__
    OrderedDict: lambda value: OrderedDict(OrderedDict.items(value)),
    **{base: _from_elements(base) for base in (bytes, bytearray, tuple, set, frozenset)},
    **_ABSTRACT,
}
"""What a value of a class without a form is in the words of its base, past code of the class."""


@lru_cache(maxsize=1024)
def _base_of(cls: type) -> type | None:
    nearest = next((base for base in cls.__mro__ if base in _AS_BASE), None)
    return nearest or next((base for base in _ABSTRACT if issubclass(cls, base)), None)


# --------------------------------------------------------------------------- the kinds of items


class _Kind:
    """How dataclasses and attrs classes are taken apart and built, past all code of theirs.

    Subclasses say it of the items that have their fields elsewhere.
    """

    parts: frozenset[str] = frozenset({"fields", "attributes"})
    has_base = False
    """Whether its items are values of a class that has a form."""

    def __init__(self, cls: Any, fields: Iterable[str] = ()) -> None:
        self.cls = cls
        self.name = _name_of(cls)
        self.fields = dict.fromkeys(fields).keys()
        self.has_dict = bool(cls.__dictoffset__)
        members = [member for base in reversed(cls.__mro__) for member in vars(base).items()]
        self.slots = slots_of(cls)
        self.getters = [(name, slot.__get__) for name, slot in self.slots.items()]
        self.caches = {name for name, member in members if isinstance(member, cached_property)}

    def take_apart(self, item: Any) -> dict[str, Any]:
        """Give what *item* has, not to be changed, under names from ``parts``."""
        fields, attributes = self.split(item)
        return {"fields": fields, "attributes": attributes} if attributes else {"fields": fields}

    def split(self, item: Any) -> tuple[dict[Any, Any], dict[str, Any]]:
        """Give the fields of *item*, and its other attributes."""
        state = self.state(item)
        if state.keys() <= self.fields:
            return state, {}
        fields = {name: state.pop(name) for name in [*state] if name in self.fields}
        return fields, state

    def build(self, parts: dict[str, Any]) -> Any:
        """Build an item; raise :exc:`ValueError` where *parts* do not fit its class."""
        unknown = parts.keys() - self.parts
        if unknown or "fields" not in parts:
            raise ValueError(
                f"a {self.name} has fields, and may have {', '.join(sorted(self.parts))}; got "
                f"{', '.join(sorted(parts)) or 'nothing'}"
            )
        for name, part in parts.items():
            expected = list if name == "set" else dict
            if type(part) is not expected:
                raise ValueError(f"its {name} are no {expected.__name__}: {_shown(part)}")
        return self.make(parts["fields"], parts.get("attributes", {}))

    def make(self, fields: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
        """Make an item; raise :exc:`ValueError` for *fields* that its class does not have."""
        self.check_names("fields", fields, self.fields)
        return self.with_state(object.__new__(self.cls), attributes | fields)

    def state(self, item: Any) -> dict[str, Any]:
        """Give what *item* has in its ``__dict__`` and its slots, but for what is cached there."""
        state = dict(item.__dict__) if self.has_dict else {}
        for name, get in self.getters:
            try:
                state[name] = get(item)
            except AttributeError:  # it is not set
                continue
        for name in self.caches:
            state.pop(name, None)
        if _ATTRS_HASH in state:  # a hash holds in its own process only
            state[_ATTRS_HASH] = None
        return state

    def with_state(self, item: Any, state: dict[Any, Any]) -> Any:
        """Set all of *state* on *item*, and give it."""
        for name, value in state.items():
            if name in self.slots:
                self.slots[name].__set__(item, value)
            elif self.has_dict and type(name) is str:
                item.__dict__[name] = value
            else:
                raise ValueError(f"a {self.name} cannot have the attribute {name!r}")
        return item

    def check_names(self, part: str, names: Iterable[Any], known: Collection[str]) -> None:
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"a {self.name} has no {part} {_shown(unknown)}; it may have "
                f"{', '.join(known) or 'none'}"
            )


class _Model(_Kind):
    """Pydantic models."""

    parts = _Kind.parts | {"extra", "private", "set"}

    def take_apart(self, item: Any) -> dict[str, Any]:
        parts = super().take_apart(item)
        extra = item.__pydantic_extra__ or {}
        more = {"extra": extra, "private": item.__pydantic_private__}
        parts |= {name: part for name, part in more.items() if part}
        if item.model_fields_set != parts["fields"].keys() | extra.keys():
            known = self.cls.model_fields.keys() | extra.keys()
            parts["set"] = sorted(known & item.model_fields_set)
        return parts

    def build(self, parts: dict[str, Any]) -> Any:
        item = super().build(parts)
        takes_extra = self.cls.model_config.get("extra") == "allow"
        extra, private = parts.get("extra", {}), parts.get("private", {})
        self.check_names("extra", extra, extra if takes_extra else ())
        self.check_names("private", private, self.cls.__private_attributes__)
        names = parts.get("set", [*parts["fields"], *extra])
        self.check_names("set", names, {**self.cls.model_fields, **extra})
        object.__setattr__(item, "__pydantic_fields_set__", set(names))
        if not self.cls.__pydantic_root_model__:  # it has none, by class attributes
            has_private = bool(self.cls.__private_attributes__)
            object.__setattr__(item, "__pydantic_extra__", extra if takes_extra else None)
            object.__setattr__(item, "__pydantic_private__", private if has_private else None)
        return item


class _ScrapyItem(_Kind):
    """Scrapy's own; their fields may be added to at any time."""

    def split(self, item: Any) -> tuple[dict[Any, Any], dict[str, Any]]:
        attributes = self.state(item)
        return attributes.pop("_values"), attributes

    def make(self, fields: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
        self.check_names("fields", fields, self.cls.fields)
        return self.with_state(object.__new__(self.cls), attributes | {"_values": fields})


class _NamedTuple(_Kind):
    has_base = True

    def split(self, item: Any) -> tuple[dict[Any, Any], dict[str, Any]]:
        return dict(zip(self.fields, tuple.__iter__(item), strict=True)), self.state(item)

    def make(self, fields: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
        if fields.keys() != self.fields:
            raise ValueError(f"a {self.name} has the fields {', '.join(self.fields)}, all of them")
        item = tuple.__new__(self.cls, [fields[name] for name in self.fields])
        return self.with_state(item, attributes)


class _DictClass(_Kind):
    """Classes that derive from dict, whose keys are their fields."""

    has_base = True

    def split(self, item: Any) -> tuple[dict[Any, Any], dict[str, Any]]:
        return dict(dict.items(item)), self.state(item)

    def make(self, fields: dict[Any, Any], attributes: dict[Any, Any]) -> Any:
        item: dict[Any, Any] = dict.__new__(self.cls)
        dict.update(item, fields)
        return self.with_state(item, attributes)


_ATTRS_HASH = "_attrs_cached_hash"


@lru_cache(maxsize=1024)
def _kind_of(cls: Any) -> _Kind | None:
    """Give the kind of item that *cls* is; ``None`` for a class that is no item's."""
    cls = _defined(cls)
    bases = cls.__mro__
    if Enum in bases:
        return None
    if adds_no_layout(cls, object):
        if Item in bases:
            return _ScrapyItem(cls)
        if isinstance(getattr(cls, "__pydantic_root_model__", None), bool):
            return _Model(cls, cls.model_fields)
        if is_dataclass(cls):
            return _Kind(cls, [field.name for field in dataclass_fields(cls)])
        if isinstance(attributes := getattr(cls, "__attrs_attrs__", None), tuple):
            return _Kind(cls, [attribute.name for attribute in attributes])
    if adds_no_layout(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple):
        return _NamedTuple(cls, cls._fields)
    if adds_no_layout(cls, dict) and cls is not dict:
        return _DictClass(cls)
    return None


def _is_buildable(cls: type) -> bool:
    return Enum in cls.__mro__ or _kind_of(cls) is not None


# ------------------------------------------------------------------------------ names of classes


def _name_of(cls: type) -> str:
    try:
        module = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
        return _storable(f"{module}{cls.__qualname__}")
    except Exception:  # a metaclass may do anything
        return "class without a name"


def _defined(cls: type) -> type:
    """Return the class that a name leads to, which of the model ``Page[int]`` is ``Page``."""
    generic = getattr(cls, "__pydantic_generic_metadata__", None)
    origin = generic.get("origin") if isinstance(generic, dict) else None
    return origin if isinstance(origin, type) else cls


def _storable(text: str) -> str:
    """Return *text* as databases take it, which is without surrogates and NUL."""
    if type(text) is str and text.isascii() and "\0" not in text:
        return text
    return str.encode(text, "utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


@lru_cache(maxsize=1024)
def _is_findable(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    return module is not None and _walk(module, cls.__qualname__.split(".")) is cls


def _look_up(name: str, module_of: Callable[[str], Any]) -> type | None:
    """Return the class at the import path *name*, with *module_of* for those that lead to it."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        module = module_of(".".join(parts[:length]))
        found = None if module is None else _walk(module, parts[length:])
        if isinstance(found, type):
            return found
    return None


def _imported(path: str) -> Any:
    """Import the module *path*; return ``None`` if there is none."""
    try:
        return sys.modules.get(path) or importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not f"{path}.".startswith(f"{error.name}."):
            raise
        return None


def _walk(module: Any, parts: Iterable[str]) -> Any:
    """Follow *parts* from *module*, through classes only: never into a module it imports."""
    found = module
    for part in parts:
        found = vars(found).get(part) if found is module or isinstance(found, type) else None
    return found


def _item_class(entry: Any) -> type:
    cls = entry
    if isinstance(entry, str):
        try:
            cls = _look_up(entry, _imported)
        except Exception as error:
            raise StackConfigError(
                f"{entry!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(cls, type) or not _is_buildable(cls):
        wrong = f"there is no class {entry!r}" if cls is None else f"{entry!r} is not an item class"
        raise StackConfigError(
            f"{wrong}: expected a class derived from dict or Item, a dataclass, an attrs class, a "
            'pydantic model, a NamedTuple or an Enum, or its import path, as in "shop_items.Book"'
        )
    return cls


# ---------------------------------------------------------------------------------- for messages


def _path(where: _Where) -> str:
    """Give a place in an item in words, such as ``offers[2].price``."""
    keys = []
    while where is not None:
        where, key = where
        plain = type(key) is str and key.isidentifier()
        keys.append(f".{key}" if plain else f"[{_shown(key)}]")
    return "".join(reversed(keys)).removeprefix(".") or "the item"


def _shown(value: Any, shortener: reprlib.Repr | None = None) -> str:
    try:
        return _storable((shortener or _shortener).repr(value))
    except Exception:  # a class may do anything
        return f"<{_name_of(type(value))}>"


_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = 80


class _Outliner(reprlib.Repr):
    """Shows a value and one level in it.

    There may be thousands in one item that lead to all of it: a ``repr`` of each has no end.
    """

    def repr_instance(self, x: Any, level: int) -> str:
        return f"<{_name_of(type(x))}>"


_outliner = _Outliner()
_outliner.maxlevel = 1
_outliner.maxstring = 80


# ------------------------------------------------------------------------------ values with a tag


class _Form(NamedTuple):
    """How a value is written as one text or list, and read."""

    tag: str
    write: Callable[[Any], Any] | None
    """``None`` if its elements are what is written."""
    read: Callable[[Any], Any]
    example: Any

    def read_row(self, codec: Codec, row: dict[str, Any], where: _Where) -> Any:
        payload = codec._read(row[self.tag], where)
        if type(payload) is not type(self.example):
            raise TypeError(f"a {type(payload).__name__}")
        return self.read(payload)


class _Tag(NamedTuple):
    """How an object with a tag is read."""

    read: Callable[[Codec, dict[str, Any], _Where], Any]
    example: str
    beside: tuple[str, ...] = ()
    """The keys there may be beside the tag."""


def _write_base64(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode("ascii")


def _read_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _write_complex(value: complex) -> list[str]:
    return [repr(value.real), repr(value.imag)]


def _read_complex(parts: list[Any]) -> complex:
    real, imaginary = map(float, parts)
    return complex(real, imaginary)


def _write_timedelta(value: dt.timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _read_timedelta(parts: list[Any]) -> dt.timedelta:
    days, seconds, microseconds = parts
    return dt.timedelta(days, seconds, microseconds)


_FORMS: dict[type, _Form] = {
    str: _Form("$str", _BETWEEN_SURROGATES.split, "".join, ["A", "B"]),
    int: _Form("$int", hex, lambda text: int(text, 16), "0xff"),
    float: _Form("$float", repr, float, "nan"),
    complex: _Form("$complex", _write_complex, _read_complex, ["1.0", "-0.5"]),
    Decimal: _Form("$decimal", str, Decimal, "9.99"),
    bytes: _Form("$bytes", _write_base64, _read_base64, "aGk="),
    bytearray: _Form("$bytearray", _write_base64, lambda text: bytearray(_read_base64(text)), ""),
    dt.date: _Form("$date", dt.date.isoformat, dt.date.fromisoformat, "2020-12-31"),
    dt.timedelta: _Form("$timedelta", _write_timedelta, _read_timedelta, [1, 3600, 0]),
    UUID: _Form("$uuid", str, UUID, "12345678-1234-5678-1234-567812345678"),
    PurePosixPath: _Form("$posixpath", str, PurePosixPath, "books/1.html"),
    PureWindowsPath: _Form("$windowspath", str, PureWindowsPath, "books"),
    type(Path()): _Form("$path", str, Path, "books/1.html"),
    tuple: _Form("$tuple", None, tuple, [1, 2]),
    set: _Form("$set", None, set, [1, 2]),
    frozenset: _Form("$frozenset", None, frozenset, [1, 2]),
}


def _read_pairs(cls: type, codec: Codec, row: dict[str, Any], where: _Where) -> Any:
    """Read a dict from its keys and values."""
    (pairs,) = row.values()
    if type(pairs) is not list or not all(type(pair) is list and len(pair) == 2 for pair in pairs):
        raise TypeError("what is no list of pairs")
    mapping = cls()
    for index, (key_row, value_row) in enumerate(pairs):
        key = codec._read(key_row, (where, index))
        mapping[key] = codec._read(value_row, (where, key))
    return mapping


def _read_moment(cls: Any, codec: Codec, row: dict[str, Any], where: _Where) -> Any:
    moment = cls.fromisoformat(row[f"${cls.__name__}"])
    if "zone" in row:
        if moment.tzinfo is not None:
            raise ValueError("an offset and a zone; one of them decides")
        moment = moment.replace(tzinfo=ZoneInfo(row["zone"]))
    return moment.replace(fold=row.get("fold", 0))


def _flags(flags: Iterable[Any], members: Mapping[str, Any]) -> Any:
    """Give one Flag of all *flags*; the class itself is not called."""
    one = next(iter(members.values()))
    return reduce(operator.or_, flags, one ^ one)


def _refuse_unstorable(codec: Codec, row: dict[str, Any], where: _Where) -> Any:
    raise UnstorableValue(
        f"{_path(where)}: a {row['$unstorable']} had no stored form, {row.get('repr')}; put in "
        "its place what it should be"
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f'{name} is written as {{"$float": "{name.lower()}"}}')


_TAGS: dict[str, _Tag] = {
    form.tag: _Tag(form.read_row, _dumps({form.tag: form.example})) for form in _FORMS.values()
} | {
    "$datetime": _Tag(
        partial(_read_moment, dt.datetime),
        '{"$datetime": "2020-12-31T23:59:59", "zone": "Europe/Berlin"}',
        ("zone", "fold"),
    ),
    "$time": _Tag(partial(_read_moment, dt.time), '{"$time": "23:59:59"}', ("zone", "fold")),
    "$dict": _Tag(partial(_read_pairs, dict), '{"$dict": [[1, "one"]]}'),
    "$ordereddict": _Tag(partial(_read_pairs, OrderedDict), '{"$ordereddict": [["a", 1]]}'),
    "$enum": _Tag(
        Codec._read_enum, '{"$enum": "project.items.Format", "name": "PAPER"}', ("name",)
    ),
    "$item": _Tag(
        Codec._read_item,
        '{"$item": "bookshop.items.Book", "fields": {"title": "A"}}',
        tuple(_Model.parts),
    ),
    "$unstorable": _Tag(_refuse_unstorable, "a value", ("repr",)),
}
