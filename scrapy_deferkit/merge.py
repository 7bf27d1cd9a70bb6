"""Copies of items, and ways to make one item of the results of several branches."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import sys
from contextlib import suppress
from functools import cache, cached_property, lru_cache
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, NamedTuple

from scrapy.item import Item

from .exceptions import DeferKitError, MergeConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_MISSING = object()

ATOMS = frozenset({str, int, float, bool, bytes, type(None)})
"""What most values are, and is its own copy: told at a glance."""

_LEVELS = 10
"""What is nested deeper, or in a cycle, is copied and looked through without recursion."""


def copy_item(item: Any) -> Any:
    """Copy *item*, and the lists, dicts, sets and items in it, recursively; share all else.

    Constructors, converters and validators do not run again. Any value may be given, nested to any
    depth, and nothing is raised: a value that is none of these, or whose class cannot copy it, is
    shared. A cycle in *item* is one in the copy. What is in *item* twice may be copied twice.

    >>> item = {"tags": ["new"], "when": object()}
    >>> copied = copy_item(item)
    >>> copied == item, copied["tags"] is item["tags"], copied["when"] is item["when"]
    (True, False, True)
    """
    try:
        return _copy(item, _LEVELS)
    except Exception:  # a class may do anything when it is copied
        return _copy_graph(item)


def is_simple(item: Any) -> bool:
    """Check whether :func:`copy_item` copies all of *item* that can be changed.

    It does for dicts, scrapy items and dataclass items of text, numbers, lists and dicts, unless
    their class has its own way to be copied. Any value may be given; ``False`` for a cycle.
    """
    try:
        cls: type = type(item)
        if cls is dict:
            return _is_simple(item, _LEVELS)
        names = _simple_names(cls)
        if names is None:
            return False
        values = vars(item)
        if names is _ITEM_NAMES:
            return len(values) == 1 and _is_simple(values["_values"], _LEVELS)
        return values.keys() == names and _is_simple(values, _LEVELS)
    except Exception:  # a class may do anything when its instance is read
        return False


def _is_simple(value: Any, levels: int) -> bool:
    cls = type(value)
    if cls is dict or cls is list:
        values = value.values() if cls is dict else value
        if ATOMS.issuperset(map(type, values)):
            return True
        if not levels:
            return _is_simple_tree(value)
        levels -= 1
        for each in values:
            if type(each) not in ATOMS and not _is_simple(each, levels):
                return False
        return True
    return cls in ATOMS


def _is_simple_tree(value: Any) -> bool:
    """Check the same without recursion; ``False`` if anything is in *value* twice."""
    seen: set[int] = set()
    pending = [value]
    while pending:
        value = pending.pop()
        cls = type(value)
        if cls is dict or cls is list:
            if id(value) in seen:
                return False
            seen.add(id(value))
            pending.extend(value.values() if cls is dict else value)
        elif cls not in ATOMS:
            return False
    return True


@lru_cache(maxsize=1024)
def _simple_names(cls: type) -> frozenset[str] | None:
    """Return what is in the ``__dict__`` of a simple item; ``None`` if *cls* has no such items."""
    if issubclass(cls, Item):
        return _ITEM_NAMES if _is_copied_as(cls, Item) else None
    if dataclasses.is_dataclass(cls) and cls.__dictoffset__ and _is_copied_as(cls, object):
        return frozenset(field.name for field in dataclasses.fields(cls))
    return None


_ITEM_NAMES = frozenset({"_values"})


def _is_copied_as(cls: type, base: type) -> bool:
    """Check whether :func:`copy.copy` runs nothing of *cls* that *base* does not have."""
    return _has_same(_COPY_HOOKS, cls, base)


def _has_same(names: Iterable[str], cls: type, base: type) -> bool:
    return all(getattr(cls, name, None) is getattr(base, name, None) for name in names)


_CODE_OF_COPIES = (
    "__copy__",
    "__getnewargs__",
    "__getnewargs_ex__",
    "__getstate__",
    "__setstate__",
    "__reduce__",
    "__reduce_ex__",
)
_COPY_HOOKS = (*_CODE_OF_COPIES, "__new__", "__getattr__", "__getattribute__")


def adds_no_layout(cls: type, base: type) -> bool:
    """Check whether *cls* derives from *base* and else from classes made in Python alone.

    ``base.__new__`` can make an instance of such a class, without any code of it.
    """
    return base in cls.__mro__ and all(
        each.__flags__ & (_MADE_AT_RUN_TIME | _MADE_IN_C) == _MADE_AT_RUN_TIME
        for each in cls.__mro__
        if each not in (base, object)
    )


_MADE_AT_RUN_TIME = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_MADE_IN_C = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE: set where C code makes a class at run time


def slots_of(cls: type) -> dict[str, MemberDescriptorType]:
    """Return the slots of *cls* and its bases, but those of pydantic's own."""
    return {
        name: member
        for base in reversed(cls.__mro__)
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType) and not name.startswith("__pydantic_")
    }


class _Kind(NamedTuple):
    """How values of a class are copied."""

    outer: Callable[[Any], Any]
    """Copy the value without what is in it, which is shared; may return the value itself."""
    parts: Callable[[Any], Iterable[tuple[Any, Any]]]
    """What is in it, each by a key."""
    put: Callable[[Any, Any, Any], None]
    """Put a part into a copy, by its key."""


class _NestedTooDeep(Exception):
    """There may be a cycle."""


def _copy(value: Any, levels: int) -> Any:
    """Copy *value* with all that is in it, so many *levels* deep; may raise."""
    cls: type = type(value)
    if cls is dict and ATOMS.issuperset(map(type, value.values())):
        return value.copy()
    if cls is list:
        if ATOMS.issuperset(map(type, value)):
            return value[:]
        if levels:
            return [part if type(part) in ATOMS else _copy(part, levels - 1) for part in value]
    kind = _kind_of(cls)
    if kind is None:
        return value
    if not levels:
        raise _NestedTooDeep
    outer, parts, put = kind
    copied = outer(value)
    if copied is not value:
        levels -= 1
        for key, part in parts(value):
            if type(part) not in ATOMS:
                part_copy = _copy(part, levels)
                if part_copy is not part:
                    put(copied, key, part_copy)
    return copied


def _copy_graph(item: Any) -> Any:
    """Copy *item* without recursion, cycles as cycles, and share what cannot be copied."""
    copies: dict[int, tuple[Any, Any]] = {}  # no id comes twice while they are held
    places = []
    pending = [item]
    while pending:
        value = pending.pop()
        if id(value) in copies:
            continue
        copied = value
        with suppress(Exception):  # a class may do anything when it is copied
            cls: type = type(value)
            kind = _kind_of(cls)
            if kind is not None:
                parts = list(kind.parts(value))
                copied = kind.outer(value)
                if copied is not value:
                    places += [(kind.put, copied, key, part) for key, part in parts]
                    pending += [part for _, part in parts]
        copies[id(value)] = (value, copied)
    for put, holder, key, part in places:
        copied = copies[id(part)][1]
        if copied is not part:
            with suppress(Exception):  # a property without a setter, say
                put(holder, key, copied)
    return copies[id(item)][1]


@lru_cache(maxsize=1024)
def _kind_of(cls: type) -> _Kind | None:
    if cls is dict:
        return _PLAIN_DICT
    if cls is list:
        return _PLAIN_LIST
    if issubclass(cls, dict):
        return _DICT
    if issubclass(cls, list):
        return _LIST
    if issubclass(cls, set):
        return _SET
    if issubclass(cls, Item):
        return _SCRAPY_ITEM
    if not _may_be_item(cls) or not _adapters().ItemAdapter.is_item_class(cls):
        return None
    adapters = _adapters()
    known = (adapters.DataclassAdapter, adapters.AttrsAdapter, adapters.PydanticAdapter)
    return _FIELDS if any(it.is_item_class(cls) for it in known) else _FOREIGN


# What a value holds is read and set past the methods of its class, which may change it.


class _State(NamedTuple):
    """Where the attributes of a class's instances are."""

    base: Any
    is_bare: bool
    """Whether ``base.__new__`` and the attributes make a copy; else :func:`copy.copy` does."""
    has_dict: bool
    slots: dict[str, MemberDescriptorType]
    caches: frozenset[str]

    def of(self, value: Any) -> dict[str, Any]:
        """Return the attributes of *value* that are set."""
        state = dict(_dict_of(value)) if self.has_dict else {}
        for name, slot in self.slots.items():
            with suppress(AttributeError):  # it is not set
                state[name] = slot.__get__(value)
        return state

    def put(self, value: Any, name: str, attribute: Any) -> None:
        if name in self.slots:
            self.slots[name].__set__(value, attribute)
        else:
            _dict_of(value)[name] = attribute


@lru_cache(maxsize=1024)
def _state_of(cls: type) -> _State:
    base = next(base for base in cls.__mro__ if base in (Item, dict, list, set, object))
    is_bare = adds_no_layout(cls, base) and _has_same(_CODE_OF_COPIES, cls, base)
    members = {name: each for it in reversed(cls.__mro__) for name, each in vars(it).items()}
    caches = frozenset(it for it, each in members.items() if isinstance(each, cached_property))
    return _State(base, is_bare, bool(cls.__dictoffset__), slots_of(cls), caches)


def _dict_of(value: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = object.__getattribute__(value, "__dict__")
    return attributes


def _values_of(item: Item) -> dict[str, Any]:
    values: dict[str, Any] = _dict_of(item)["_values"]
    return values


def _copy_outer(value: Any) -> Any:
    """Copy *value* with its attributes; what it holds by itself may not be in the copy yet."""
    cls: type = type(value)
    base, is_bare, has_dict, slots, _ = _state_of(cls)
    copied = base.__new__(cls) if is_bare else copy.copy(value)
    if copied is value:
        return value
    if type(copied) is not cls or (has_dict and _dict_of(copied) is _dict_of(value)):
        raise TypeError("a copy of another type, or of the same attributes")
    if has_dict:
        _dict_of(copied).update(_dict_of(value))
    for slot in slots.values():
        with suppress(AttributeError):  # it is not set
            slot.__set__(copied, slot.__get__(value))
    return copied


def _copy_outer_dict(value: dict[Any, Any]) -> dict[Any, Any]:
    copied: dict[Any, Any] = _copy_outer(value)
    if _state_of(type(value)).is_bare:
        dict.update(copied, dict.items(value))
    elif copied is not value:
        if [*map(id, dict.keys(copied))] != [*map(id, dict.keys(value))]:
            raise TypeError("a copy with other keys")
        for key, part in dict.items(value):  # the order of an OrderedDict stays
            dict.__setitem__(copied, key, part)
    return copied


def _copy_outer_list(value: list[Any]) -> list[Any]:
    copied: list[Any] = _copy_outer(value)
    if copied is not value:
        list.__setitem__(copied, slice(None), list.copy(value))
    return copied


def _copy_outer_set(value: set[Any]) -> set[Any]:
    copied: set[Any] = _copy_outer(value)
    if copied is not value:
        set.clear(copied)
        set.update(copied, value)
    return copied


def _copy_outer_scrapy_item(item: Item) -> Item:
    # Not Item.copy(): it calls the constructor again, which a subclass may have changed.
    copied: Item = _copy_outer(item)
    if copied is not item:
        _dict_of(copied)["_values"] = _values_of(item).copy()
    return copied


def _attributes(item: Any) -> Iterable[tuple[Any, Any]]:
    """Return what is to be copied of *item*: the extra fields of a pydantic model, too."""
    cls: type = type(item)
    state = _state_of(cls)
    attributes = [part for part in state.of(item).items() if part[0] not in state.caches]
    return [*attributes, *_extra(item).items()]


def _put_attribute(copied: Any, name: str, attribute: Any) -> None:
    extra = _extra(copied)
    if name in extra:
        extra[name] = attribute
    else:
        cls: type = type(copied)
        _state_of(cls).put(copied, name, attribute)


@cache
def _adapters() -> Any:
    """Return :mod:`itemadapter.adapter`, whose import imports pydantic if that is installed."""
    from itemadapter import adapter

    return adapter


def _may_be_item(cls: type) -> bool:
    """Check whether itemadapter is worth importing for *cls*."""
    return (
        "itemadapter" in sys.modules  # others may have told it of classes of their own
        or "pydantic" in sys.modules
        or dataclasses.is_dataclass(cls)
        or hasattr(cls, "__attrs_attrs__")
    )


def _fields(item: Any) -> dict[str, Any]:
    """Give the fields of *item*; ItemAdapter leaves out the extra ones of a pydantic model."""
    return dict(_adapters().ItemAdapter(item).items()) | _extra(item)


def _put_field(item: Any, field: str, value: Any) -> None:
    _adapters().ItemAdapter(item)[field] = value


def _extra(item: Any) -> dict[str, Any]:
    """Return the extra fields of a pydantic model; there are none in any other item."""
    return (item.__pydantic_extra__ or {}) if _is_pydantic(item) else {}


def _is_pydantic(item: Any) -> bool:
    return hasattr(type(item), "model_copy")


_PLAIN_DICT = _Kind(dict.copy, dict.items, dict.__setitem__)
_PLAIN_LIST = _Kind(list.copy, lambda value: enumerate(list.__iter__(value)), list.__setitem__)
_DICT = _PLAIN_DICT._replace(outer=_copy_outer_dict)
_LIST = _PLAIN_LIST._replace(outer=_copy_outer_list)
_SET = _Kind(_copy_outer_set, lambda value: (), lambda copied, key, part: None)
_SCRAPY_ITEM = _Kind(
    _copy_outer_scrapy_item,
    lambda item: _values_of(item).items(),
    lambda copied, field, value: _values_of(copied).__setitem__(field, value),
)
_FIELDS = _Kind(_copy_outer, _attributes, _put_attribute)
_FOREIGN = _Kind(_copy_outer, lambda item: _fields(item).items(), _put_field)
"""What itemadapter has been told of by others."""


def merge_changes(item: Any, results: Sequence[Any]) -> Any:
    """Apply to *item* what each of *results* changed against it; give the item.

    ``None`` among the results stands for no change, and a field that a result lacks was deleted.
    A value counts as changed when it is of another type or unequal. Which result came first does
    not matter: nothing is applied where two results change one field differently.

    Raises :exc:`~scrapy_deferkit.exceptions.MergeConflict` on such a field, and when a result is
    not an item of the same type as *item*.

    >>> merge_changes({"title": " A ", "n": 1}, [{"title": "A", "n": 1}, {"title": " A ", "n": 2}])
    {'title': 'A', 'n': 2}
    """
    if not _has_fields(item):
        raise DeferKitError(
            f"merge_changes works on items with fields; got {_shown(item)} "
            f"({_name(item)}): give the Parallel merge= that decides"
        )
    before = _stored_fields(item)
    changes: dict[str, tuple[Any, Any]] = {}
    for position, result in enumerate(results, start=1):
        if result is None or result is item:
            continue
        if type(result) is not type(item):
            raise MergeConflict(
                f"branch {position} returned a {_name(result)}, and the item is a "
                f"{_name(item)}: merge_changes takes items of one type, or None for no "
                "change; convert the item before or behind the Parallel, or give it merge="
            )
        after = _stored_fields(result)
        for field in {**before, **after}:
            value = after.get(field, _MISSING)
            if _is_same(value, before.get(field, _MISSING), (result, item)):
                continue
            first, source = changes.setdefault(field, (value, result))
            if not _is_same(value, first, (result, source)):
                raise MergeConflict(
                    f"two branches changed the field {_shown(field)}, to "
                    f"{_shown(first)} and to {_shown(value)}: let one branch write each "
                    "field, or give the Parallel merge= that decides"
                )
    changed = {field: value for field, (value, _) in changes.items() if value is not _MISSING}
    deleted = [field for field in changes if field not in changed]
    if not isinstance(item, Item):
        return set_fields(item, changed, deleted)
    values = _values_of(item)
    values.update(changed)
    for field in deleted:
        del values[field]
    return item


def _stored_fields(item: Any) -> dict[Any, Any]:
    """Return the fields of *item* as it has them, where a method of its class may show others.

    Even ``dict.copy`` calls ``__iter__`` of a class that derives from dict.
    """
    if isinstance(item, Item):
        return _values_of(item)
    return dict(dict.items(item)) if isinstance(item, dict) else _fields(item)


def is_changed(item: Any, original: Any) -> bool:
    """Check whether *item*, which was a copy of *original*, is unequal to it by now."""
    return not _is_same(item, original, (None, None))


def keep_item(item: Any, results: Sequence[Any]) -> Any:
    """Give *item* as it was before the branches; ignore what they returned."""
    return item


def field_of(item: Any, field: str) -> Any:
    """Give the value of *field* in *item*, or ``None`` where it has none.

    Raises :exc:`~scrapy_deferkit.exceptions.DeferKitError` when *item* is not an item, or is of a
    class that has no such field.
    """
    if not _has_fields(item):
        raise DeferKitError(f"{_shown(item)} ({_name(item)}) is not an item with fields")
    fields = _fields(item)
    if field in fields:
        return fields[field]
    known = list(_adapters().ItemAdapter(item).field_names())
    if field in known or isinstance(item, dict) or _extra(item):
        return None
    raise DeferKitError(
        f"{_name(item)} has no field {_shown(field)}; its fields are {', '.join(known)}"
    )


def set_fields(item: Any, changes: Mapping[str, Any], deleted: Sequence[str] = ()) -> Any:
    """Set the fields *changes* of *item* and remove those *deleted*; give the item.

    A frozen item is rebuilt with :func:`dataclasses.replace`, ``attrs.evolve`` or ``model_copy``;
    any other is changed in place.
    """
    if _is_pydantic(item):
        return _set_model_fields(item, changes, deleted)
    adapter = _adapters().ItemAdapter(item)
    try:
        for field, value in changes.items():
            adapter[field] = value
        for field in deleted:
            del adapter[field]
    except AttributeError:  # the base of what frozen dataclasses and attrs classes raise
        return _rebuild(item, changes, deleted)
    return item


def _set_model_fields(item: Any, changes: Mapping[str, Any], deleted: Sequence[str]) -> Any:
    if _is_frozen_model(item, changes, deleted):
        item = item.model_copy(update=dict(changes))
        for field in deleted:
            (vars(item) if field in vars(item) else item.__pydantic_extra__).pop(field)
        return item
    for field, value in changes.items():
        setattr(item, field, value)
    for field in deleted:
        delattr(item, field)
    return item


def _is_frozen_model(item: Any, changes: Iterable[str], deleted: Iterable[str]) -> bool:
    fields = type(item).model_fields
    return bool(item.model_config.get("frozen")) or any(
        field in fields and fields[field].frozen for field in (*changes, *deleted)
    )


def _rebuild(item: Any, changes: Mapping[str, Any], deleted: Iterable[str]) -> Any:
    if not _takes_by_constructor(item, changes):
        rebuilt = _copy_outer(item)
        for field, value in changes.items():
            object.__setattr__(rebuilt, field, value)
    elif dataclasses.is_dataclass(item):
        rebuilt = dataclasses.replace(item, **changes)  # type: ignore[type-var]
    else:
        from attr import evolve  # attrs is there when its items are

        rebuilt = evolve(item, **changes)
    for field in deleted:
        object.__delattr__(rebuilt, field)
    return rebuilt


def _takes_by_constructor(item: Any, fields: Iterable[str]) -> bool:
    """Tell whether a changed copy of *item* can be made by its constructor.

    It cannot where a field is not an argument of it, or an argument is not a field.
    """
    arguments = inspect.signature(type(item)).parameters
    return all(field in arguments for field in fields) and all(
        hasattr(item, argument) for argument in arguments
    )


def _is_same(value: Any, other: Any, holders: tuple[Any, Any]) -> bool:
    """Check whether two values are the same; ``False`` if they cannot be compared.

    What is copied is compared as it is copied: what is shared in it is the same by identity. The
    *holders*, where the values hold them, are taken as the same, whatever their other fields are.
    """
    compared = {(id(holders[0]), id(holders[1])): holders}  # no id comes twice while they are held
    pending = [(value, other)]
    try:
        while pending:
            value, other = pair = pending.pop()
            if value is other:
                continue
            if type(value) is not type(other):
                return False
            cls: type = type(value)
            kind = None if cls in ATOMS else _kind_of(cls)
            if kind is None or kind is _SET:
                if not bool(value == other):  # no != of its own
                    return False
            elif (id(value), id(other)) not in compared:  # else as in a cycle
                compared[id(value), id(other)] = pair
                parts, other_parts = dict(kind.parts(value)), dict(kind.parts(other))
                if parts.keys() != other_parts.keys():
                    return False
                pending += [(part, other_parts[key]) for key, part in parts.items()]
    except Exception:  # an array, say, has no one truth: take it as changed
        return False
    return True


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "nothing (deleted)"
    try:
        text = repr(value)
    except Exception:  # a class may do anything; or it is nested too deep
        return f"<{_name(value)}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _name(value: Any) -> str:
    try:
        return type(value).__name__
    except Exception:  # a metaclass may do anything
        return "object"


def _has_fields(value: Any) -> bool:
    try:
        cls: type = type(value)
        return _kind_of(cls) not in (None, _PLAIN_LIST, _LIST, _SET)
    except Exception:  # a class may do anything when it is looked at
        return False
