"""Copies of items, and ways to make one item of the results of several branches."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import sys
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from scrapy.item import Item

from .exceptions import DeferKitError, MergeConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_MISSING = object()

ATOMS = frozenset({str, int, float, bool, bytes, type(None)})
"""What most values are, and is its own copy: told at a glance."""


def copy_item(item: Any) -> Any:
    """Copy *item*, and the lists, dicts, sets and items in it, recursively; share all else.

    Constructors, converters and validators do not run again. Any value may be given; one that is
    none of these is its own copy.

    >>> item = {"tags": ["new"], "when": object()}
    >>> copied = copy_item(item)
    >>> copied == item, copied["tags"] is item["tags"], copied["when"] is item["when"]
    (True, False, True)
    """
    cls: type = type(item)
    if cls in ATOMS:
        return item
    copier = _copier(cls)
    return item if copier is None else copier(item)


def is_simple(item: Any) -> bool:
    """Tell whether :func:`copy_item` copies all of *item* that can be changed.

    That is so for dicts, scrapy items and dataclass items of text, numbers, lists and dicts.
    """
    cls: type = type(item)
    if cls is dict:
        return _is_simple(item)
    if issubclass(cls, Item):
        return _is_simple(item._values) and len(vars(item)) == 1
    names = _field_names(cls)  # type: ignore[arg-type]  # a class is hashable
    if names is None:
        return False
    values = vars(item)
    return values.keys() == names and _is_simple(values)


def _is_simple(value: Any) -> bool:
    cls = type(value)
    if cls is dict or cls is list:
        values = value.values() if cls is dict else value
        return ATOMS.issuperset(map(type, values)) or all(map(_is_simple, values))
    return cls in ATOMS


@lru_cache(maxsize=1024)
def _field_names(cls: type) -> frozenset[str] | None:
    """Give the fields of a dataclass whose instances have a dict; ``None`` for other classes."""
    if not dataclasses.is_dataclass(cls) or not cls.__dictoffset__:
        return None
    return frozenset(field.name for field in dataclasses.fields(cls))


@cache
def _adapters() -> Any:
    """Return :mod:`itemadapter.adapter`, whose import imports pydantic if that is installed."""
    from itemadapter import adapter

    return adapter


def _is_item(value: Any) -> bool:
    return _may_be_item(type(value)) and bool(_adapters().ItemAdapter.is_item(value))


def _may_be_item(cls: type) -> bool:
    """Check whether itemadapter is worth importing for *cls*."""
    return (
        "itemadapter" in sys.modules  # others may have told it of classes of their own
        or "pydantic" in sys.modules
        or issubclass(cls, (dict, Item))
        or dataclasses.is_dataclass(cls)
        or hasattr(cls, "__attrs_attrs__")
    )


@lru_cache(maxsize=1024)
def _copier(cls: type) -> Callable[[Any], Any] | None:
    if cls is dict:
        return _copy_plain_dict
    if cls is list:
        return _copy_plain_list
    if issubclass(cls, dict):
        return _copy_dict
    if issubclass(cls, list):
        return _copy_list
    if issubclass(cls, set):
        return copy.copy
    if issubclass(cls, Item):
        return _copy_scrapy_item
    if _may_be_item(cls) and _adapters().ItemAdapter.is_item_class(cls):
        return _copy_fields
    return None


def _copy_plain_dict(value: dict[Any, Any]) -> dict[Any, Any]:
    copied = value.copy()
    if not ATOMS.issuperset(map(type, value.values())):
        for key, each in value.items():
            copied[key] = copy_item(each)
    return copied


def _copy_plain_list(value: list[Any]) -> list[Any]:
    return value[:] if ATOMS.issuperset(map(type, value)) else [copy_item(each) for each in value]


def _copy_dict(value: dict[Any, Any]) -> dict[Any, Any]:
    copied = copy.copy(value)
    for key, each in value.items():
        copied[key] = copy_item(each)
    return copied


def _copy_list(value: list[Any]) -> list[Any]:
    copied = copy.copy(value)
    copied[:] = [copy_item(each) for each in value]
    return copied


def _copy_scrapy_item(item: Item) -> Item:
    # Not Item.copy(): it calls the constructor again, which a subclass may have changed.
    copied = copy.copy(item)
    copied._values = {key: copy_item(each) for key, each in item.items()}
    return copied


def _copy_fields(item: Any) -> Any:
    copied = copy.copy(item)
    for field, value in _fields(item).items():
        value_copy = copy_item(value)
        if value_copy is not value:
            _force_field(copied, field, value_copy)
    return copied


def _fields(item: Any) -> dict[str, Any]:
    """Give the fields of *item*; ItemAdapter leaves out the extra ones of a pydantic model."""
    fields = dict(_adapters().ItemAdapter(item).items())
    if _is_pydantic(item):
        fields.update(item.__pydantic_extra__ or {})
    return fields


def _force_field(item: Any, field: str, value: Any) -> None:
    """Set *field* of a fresh copy past frozen classes, validators and records of what was set."""
    cls = type(item)
    if dataclasses.is_dataclass(cls) or hasattr(cls, "__attrs_attrs__"):
        object.__setattr__(item, field, value)
    elif not _is_pydantic(item):
        _adapters().ItemAdapter(item)[field] = value
    elif field in vars(item):
        vars(item)[field] = value
    else:
        item.__pydantic_extra__[field] = value


def _is_pydantic(item: Any) -> bool:
    return hasattr(type(item), "model_copy")


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
    if not _is_item(item):
        raise DeferKitError(
            f"merge_changes works on items with fields; got {_shown(item)} "
            f"({type(item).__name__}): give the Parallel merge= that decides"
        )
    before = _fields(item)
    changes: dict[str, Any] = {}
    for position, result in enumerate(results, start=1):
        if result is None or result is item:
            continue
        if type(result) is not type(item):
            raise MergeConflict(
                f"branch {position} returned a {type(result).__name__}, and the item is a "
                f"{type(item).__name__}: merge_changes takes items of one type, or None for no "
                "change; convert the item before or behind the Parallel, or give it merge="
            )
        after = _fields(result)
        for field in [*before, *(field for field in after if field not in before)]:
            value = after.get(field, _MISSING)
            if _is_same(value, before.get(field, _MISSING)):
                continue
            if field in changes and not _is_same(value, changes[field]):
                raise MergeConflict(
                    f"two branches changed the field {field!r}, to {_shown(changes[field])} and "
                    f"to {_shown(value)}: let one branch write each field, or give the Parallel "
                    "merge= that decides"
                )
            changes[field] = value
    deleted = [field for field, value in changes.items() if value is _MISSING]
    return set_fields(
        item, {field: it for field, it in changes.items() if it is not _MISSING}, deleted
    )


def keep_item(item: Any, results: Sequence[Any]) -> Any:
    """Give *item* as it was before the branches; ignore what they returned."""
    return item


def field_of(item: Any, field: str) -> Any:
    """Give the value of *field* in *item*, or ``None`` where it has none.

    Raises :exc:`~scrapy_deferkit.exceptions.DeferKitError` when *item* is not an item, or is of a
    class that has no such field.
    """
    if not _is_item(item):
        raise DeferKitError(f"{_shown(item)} ({type(item).__name__}) is not an item with fields")
    fields = _fields(item)
    if field in fields:
        return fields[field]
    known = list(_adapters().ItemAdapter(item).field_names())
    if field in known or isinstance(item, dict) or getattr(item, "__pydantic_extra__", None):
        return None
    raise DeferKitError(
        f"{type(item).__name__} has no field {field!r}; its fields are {', '.join(known)}"
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
        rebuilt = copy.copy(item)
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


def _is_same(value: Any, other: Any) -> bool:
    if value is other:
        return True
    if type(value) is not type(other):
        return False
    # What is copied is compared as it is copied: what is shared in it is the same by identity.
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(
            _is_same(value[key], other[key]) for key in value
        )
    if isinstance(value, list):
        return len(value) == len(other) and all(map(_is_same, value, other))
    if _is_item(value):
        return _is_same(_fields(value), _fields(other))
    try:
        return bool(value == other)
    except Exception:  # an array, say, has no one truth: take it as changed
        return False


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "nothing (deleted)"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
