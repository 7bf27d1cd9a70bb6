"""Copies are deep where an item is mutable, and branches' changes come together."""

from __future__ import annotations

import collections
import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import attrs
import itemadapter
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrapy_deferkit import DeferKitError, MergeConflict, copy_item, keep_item, merge_changes
from scrapy_deferkit.merge import field_of, is_simple, set_fields

from . import codec_items as shop
from .items import KINDS, Dataclass, FrozenAttrs, ScrapyItem

pytestmark = pytest.mark.no_runtime


def value_of(item: Any, field: str) -> Any:
    """Look a field up without the package's help."""
    return item[field] if isinstance(item, (dict, ScrapyItem)) else getattr(item, field)


all_kinds = pytest.mark.parametrize("kind", KINDS)


@all_kinds
def test_a_copy_is_equal_and_of_the_same_type(kind: Any) -> None:
    item = kind(title="A", tags=["new", {"by": {"us"}}])
    copied = copy_item(item)
    assert copied == item
    assert type(copied) is type(item)
    assert copied is not item


@all_kinds
def test_a_change_inside_a_copy_does_not_reach_the_item(kind: Any) -> None:
    item = kind(title="A", tags=["new", {"by": {"us"}}, kind(title="B", tags=[1])])
    tags = value_of(copy_item(item), "tags")
    tags.append("more")
    tags[1]["by"].add("them")
    value_of(tags[2], "tags").append(2)
    assert item == kind(title="A", tags=["new", {"by": {"us"}}, kind(title="B", tags=[1])])


@all_kinds
def test_values_that_are_no_containers_are_shared(kind: Any) -> None:
    value = object()
    item = kind(title="A", tags=[value, (1, [2])])
    copied = value_of(copy_item(item), "tags")
    assert copied[0] is value
    assert copied[1] is value_of(item, "tags")[1]


def test_subclasses_of_dict_and_list_keep_their_type() -> None:
    class Tags(list[str]):
        pass

    item = collections.defaultdict(list, tags=Tags(["a"]))
    copied = copy_item(item)
    assert type(copied["tags"]) is Tags
    assert copied["tags"] is not item["tags"]
    assert copied["missing"] == []


def test_constructors_and_validators_do_not_run_again_for_a_copy() -> None:
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Counted:
        tags: list[Any]
        double: list[Any] = dataclasses.field(init=False)

        def __post_init__(self) -> None:
            calls.append(self)
            object.__setattr__(self, "double", self.tags * 2)

    class OddItem(ScrapyItem):
        def __init__(self, only: str) -> None:
            super().__init__(title=only)

    copied = copy_item(Counted(["a"]))
    assert (copied.tags, copied.double, len(calls)) == (["a"], ["a", "a"], 1)
    assert copy_item(OddItem("x"))["title"] == "x"


def test_a_copied_model_remembers_which_fields_were_set() -> None:
    class Model(pydantic.BaseModel):
        tags: list[str] = ["default"]

    assert copy_item(Model()).model_dump(exclude_unset=True) == {}


# ------------------------------------------------------------------- cycles, depth, what raises


def holder_of_itself(kind: Any) -> Any:
    item = kind(title="A", tags=[])
    tags = value_of(item, "tags")  # a model has made a list of its own
    tags += [item, {"holder": tags}]
    return item


def nested(kind: Any, levels: int) -> Any:
    item = kind(title="A", tags=["deepest"])
    for _ in range(levels):
        item = kind(title="A", tags=[item])
    return item


@all_kinds
def test_an_item_that_holds_itself_is_copied_as_one_that_does(kind: Any) -> None:
    item = holder_of_itself(kind)
    copied = copy_item(item)
    tags = value_of(copied, "tags")
    assert copied is not item
    assert type(copied) is type(item)
    assert tags is not value_of(item, "tags")
    assert tags[0] is copied
    assert tags[1] == {"holder": tags} or tags[1]["holder"] is tags
    assert value_of(item, "tags")[0] is item


def test_a_tree_whose_children_know_their_parent_is_copied_as_one() -> None:
    root: dict[str, Any] = {"children": [], "name": "root"}
    root["children"] = [{"parent": root, "offers": [Dataclass("A", [root])]} for _ in range(3)]
    copied = copy_item(root)
    assert copied is not root
    assert len({id(child) for child in copied["children"]}) == 3
    for child, original in zip(copied["children"], root["children"], strict=True):
        assert child is not original
        assert child["parent"] is copied
        assert child["offers"][0].tags[0] is copied


def test_lists_and_dicts_of_any_class_may_hold_themselves() -> None:
    class Tags(list[Any]):
        pass

    for kind in (list, Tags):
        tags = kind(["a"])
        tags.append(tags)
        copied = copy_item(tags)
        assert type(copied) is kind
        assert copied is not tags
        assert copied[0] == "a"
        assert copied[1] is copied
    row = collections.OrderedDict(first=1)
    row["again"] = row  # type: ignore[assignment]
    assert copy_item(row)["again"] is not row


@all_kinds
def test_an_item_is_copied_however_deep_it_is_nested(kind: Any) -> None:
    levels = 20_000 if kind is dict else 1_000
    item = nested(kind, levels)
    copied = copy_item(item)
    for _ in range(levels):
        assert copied is not item
        assert type(copied) is kind
        ((item,), (copied,)) = value_of(item, "tags"), value_of(copied, "tags")
    assert value_of(copied, "tags") == ["deepest"]
    assert value_of(copied, "tags") is not value_of(item, "tags")


def test_lists_that_hold_one_list_twice_and_so_on_are_copied_in_bounds() -> None:
    value: Any = ["innermost"]
    for _ in range(18):
        value = [value, value]
    copied = copy_item(value)
    assert copied[0] is copied[1], "there would be 262,144 of the innermost"
    assert copied[0] is not value[0]


@given(
    st.recursive(
        st.integers(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    ),
    st.integers(0, 40),
)
def test_what_is_copied_at_any_depth_is_equal_and_shares_no_container(
    value: Any, levels: int
) -> None:
    for level in range(levels):
        value = [level, value] if level % 3 else {"": value}
    copied = copy_item(value)
    assert copied == value
    assert not containers(copied) & containers(value)


def containers(value: Any) -> set[int]:
    if not isinstance(value, (dict, list)):
        return set()
    inner = value.values() if isinstance(value, dict) else value
    return {id(value)}.union(*map(containers, inner))


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("a class may do anything")


def endless(item: Any, name: str) -> Any:
    return getattr(item, f"_{name}")


def broken(base: Any, *methods: str, **namespace: Any) -> Any:
    """Return a class that raises in *methods*."""
    return type(f"Broken{base.__name__}", (base,), dict.fromkeys(methods, refuse) | namespace)


def same_attributes(item: Any) -> Any:
    copied = object.__new__(type(item))
    copied.__dict__ = vars(item)
    return copied


class _RefusingMeta(type):
    __hash__ = __eq__ = __getattribute__ = refuse  # type: ignore[assignment]


def unmade_item() -> Any:
    item = object.__new__(ScrapyItem)  # its constructor has made none of it
    vars(item).clear()
    return item


UNCOPIABLE: dict[str, Callable[[], Any]] = {
    **{
        f"{hook} of a {base.__name__}": lambda base=base, hook=hook: broken(base, hook)()
        for base in (dict, list, set)
        for hook in ("__copy__", "__reduce_ex__")
    },
    "dict of other keys": lambda: broken(dict, __copy__=lambda self: type(self)(b=1))(a=1),
    "copy that is none": lambda: broken(dict, __copy__=lambda self: None)(a=[1]),
    "copy with the same attributes": lambda: broken(Dataclass, __copy__=same_attributes)("A", []),
    "copy that is another's": lambda: broken(list, __copy__=lambda self: {})("a"),
    "dataclass": lambda: broken(Dataclass, "__copy__")("A", []),
    "scrapy item": lambda: broken(ScrapyItem, "__copy__")(title="A"),
    "unmade scrapy item": unmade_item,
    "pydantic model": lambda: broken(shop.Sparse, "__copy__")(title="A"),
}


@pytest.mark.parametrize("name", UNCOPIABLE)
def test_what_cannot_be_copied_is_shared_and_the_rest_is_copied(name: str) -> None:
    value = UNCOPIABLE[name]()
    assert copy_item(value) is value
    assert not is_simple(value)
    for holder in ({"tags": ["new"], "value": value}, ScrapyItem(tags=["new"], title=value)):
        copied = copy_item(holder)
        assert copied["tags"] == ["new"]
        assert copied["tags"] is not holder["tags"]
        assert next(each for each in copied.values() if each is value) is value
        assert not is_simple(holder)


def computed(self: Any, *args: Any) -> Any:
    return ["computed"]


def doubled(base: Any) -> Any:
    """Return a ``__setitem__`` that changes what is set."""
    return lambda self, key, value: base.__setitem__(self, key, [value, value])


def answer(item: Any, name: str) -> Any:
    """Answer to any name with what takes anything, as a remote object does."""
    return lambda *args, **kwargs: None


def with_arguments(base: Any) -> dict[str, Any]:
    """Return a ``__new__`` that takes an argument, and an ``__init__`` that hands on none."""

    def __new__(cls: Any, given: Any, *args: Any, **fields: Any) -> Any:  # noqa: N807
        return base.__new__(cls)

    def __init__(self: Any, given: Any, *args: Any, **fields: Any) -> None:  # noqa: N807
        base.__init__(self, *args, **fields)

    return {"__new__": __new__, "__init__": __init__}


def odd(base: Any, *args: Any, own: Any = (), late: Any = (), **fields: Any) -> Any:
    """Return an instance of a class with *own* methods, and others that come *late*."""
    cls = type(f"Odd{base.__name__}", (base,), dict(own))
    value = cls(*args, **fields)
    for name, method in dict(late).items():
        setattr(cls, name, method)
    return value


@dataclasses.dataclass(slots=True)
class Slotted:
    title: Any
    tags: Any


COMPUTING = dict.fromkeys(("__getitem__", "__iter__", "keys", "items", "copy", "__len__"), computed)
ANSWERING = {"__getattr__": answer}
FILLED = {"title": "A", "tags": ["new"]}

ODD: dict[str, Callable[[], Any]] = {
    "scrapy item that computes": lambda: odd(ScrapyItem, late=COMPUTING, **FILLED),
    "scrapy item that changes": lambda: odd(
        ScrapyItem, late={"__setitem__": doubled(ScrapyItem)}, **FILLED
    ),
    "scrapy item whose values are hidden": lambda: odd(
        ScrapyItem, late={"_values": property(refuse)}, **FILLED
    ),
    "scrapy item that answers": lambda: odd(ScrapyItem, own=ANSWERING, **FILLED),
    "scrapy item with an argument": lambda: odd(
        ScrapyItem, 1, own=with_arguments(ScrapyItem), **FILLED
    ),
    "scrapy item with a state": lambda: odd(
        ScrapyItem, own={"__getstate__": lambda self: {"_values": {"title": "B"}}}, **FILLED
    ),
    "dict that computes": lambda: odd(dict, late=COMPUTING, **FILLED),
    "dict that changes": lambda: odd(dict, late={"__setitem__": doubled(dict)}, **FILLED),
    "dict that refuses": lambda: odd(dict, late={"__setitem__": refuse}, **FILLED),
    "dict that answers": lambda: odd(dict, own=ANSWERING, **FILLED),
    "dict with an argument": lambda: odd(dict, 1, own=with_arguments(dict), **FILLED),
    "dict of attributes": lambda: odd(
        dict, late={"__getattr__": dict.__getitem__, "__setattr__": dict.__setitem__}, **FILLED
    ),
    "dict with a copy": lambda: odd(
        dict, own={"__copy__": lambda self: type(self)(dict.fromkeys(self, 1))}, **FILLED
    ),
    "ordered dict that changes": lambda: odd(
        collections.OrderedDict, late={"__setitem__": doubled(collections.OrderedDict)}, **FILLED
    ),
    "list that computes": lambda: odd(list, [["new"]], late=COMPUTING),
    "list that refuses": lambda: odd(list, [["new"]], late={"append": refuse, "extend": refuse}),
    "list with an argument": lambda: odd(list, 1, [["new"]], own=with_arguments(list)),
    "set that changes": lambda: odd(
        set, {1}, late={"__init__": lambda self, given: set.__init__(self, map(str, given))}
    ),
    "set with an argument": lambda: odd(set, 1, {1}, own=with_arguments(set)),
    "set with a copy": lambda: odd(set, {1}, own={"__copy__": lambda self: type(self)({2})}),
    "dataclass that answers": lambda: odd(Dataclass, own=ANSWERING, **FILLED),
    "dataclass that recurses": lambda: odd(Dataclass, own={"__getattr__": endless}, **FILLED),
    "dataclass with an argument": lambda: odd(
        Dataclass,
        1,
        own=with_arguments(Dataclass) | {"__new__": lambda cls, _, **__: object.__new__(cls)},
        **FILLED,
    ),
    "dataclass with a copy": lambda: odd(
        Dataclass, own={"__copy__": lambda self: type(self)("B", [])}, **FILLED
    ),
    "dataclass with a field that computes": lambda: odd(
        Dataclass, own={"__getattribute__": lambda self, name: [name]}, **FILLED
    ),
    "dataclass with slots that answers": lambda: odd(Slotted, own=ANSWERING, **FILLED),
    "attrs item that answers": lambda: odd(shop.AttrsBook, own=ANSWERING, **FILLED),
    "pydantic model that answers": lambda: odd(shop.Sparse, own=ANSWERING, title=["new"]),
    "pydantic model with a copy": lambda: odd(
        shop.Model, own={"__copy__": lambda self: type(self)(title="B")}, title=["new"]
    ),
}


def held_by(value: Any) -> Any:
    """Return all that *value* holds, past the methods of its class."""
    try:
        held = dict(object.__getattribute__(value, "__dict__"))
    except AttributeError:
        held = {}
    slots = [name for cls in type(value).__mro__ for name in vars(cls).get("__slots__", ())]
    held |= {it: object.__getattribute__(value, it) for it in slots if it in ("title", "tags")}
    for kind in (dict, list, set):
        if isinstance(value, kind):
            held["by itself"] = [*(dict.items(value) if kind is dict else kind.__iter__(value))]
    return held


def lists_in(held: Any) -> set[int]:
    if isinstance(held, (dict, tuple)):
        inner = held.values() if isinstance(held, dict) else held
        return set().union(*map(lists_in, inner))
    return {id(held)} if type(held) is list else set()


@pytest.mark.parametrize("name", ODD)
def test_a_copy_holds_what_the_item_holds_whatever_the_methods_of_its_class_do(name: str) -> None:
    value = ODD[name]()
    before = copy.deepcopy(held_by(value))
    for copied in (copy_item(value), copy_item({"value": value})["value"]):
        assert type(copied) is type(value)
        assert copied is not value
        assert held_by(copied) == held_by(value) == before
        for key, held in held_by(value).items():
            shared = lists_in(held) & lists_in(held_by(copied)[key])
            assert key == "by itself" or not shared
            inner = held if key == "by itself" else []
            assert not set().union(*map(lists_in, inner)) & set().union(
                *map(lists_in, held_by(copied).get("by itself", []))
            )


def test_what_branches_stored_is_merged_whatever_an_item_shows_of_it() -> None:
    item = odd(ScrapyItem, late=COMPUTING | {"__setitem__": doubled(ScrapyItem)}, **FILLED)
    titled, tagged = copy_item(item), copy_item(item)
    titled._values["title"] = "B"
    del tagged._values["tags"]
    assert merge_changes(item, [titled, tagged]) is item
    assert item._values == {"title": "B"}
    row = odd(
        dict, late={"__getitem__": computed, "items": computed, "__iter__": computed}, **FILLED
    )
    result = copy_item(row)
    dict.__setitem__(result, "title", "B")
    merged = merge_changes(row, [result])
    assert dict(dict.items(merged)) == {"title": "B", "tags": ["new"]}


def test_what_an_item_has_beside_its_fields_is_copied_but_for_what_is_worked_out() -> None:
    book = shop.Book("A", [], given=["note"])
    book.shout()
    copied = copy_item(book)
    assert copied._note == ["note"]
    assert copied._note is not book._note
    assert vars(copied)["shout"] is vars(book)["shout"]
    extra = copy_item(shop.Model(more=[1]))
    assert extra.model_extra == {"more": [1]}


def test_a_copy_that_is_the_item_itself_is_not_written_to() -> None:
    tags: list[Any] = []
    value = broken(dict, __copy__=lambda self: self)(tags=tags)
    assert copy_item({"value": value})["value"] is value
    assert value["tags"] is tags


def test_a_class_that_raises_at_every_touch_is_shared() -> None:
    value = type.__call__(_RefusingMeta("Untouchable", (), {}))
    item = {"tags": ["new"], "value": value}
    copied = copy_item(item)
    assert copied["value"] is value
    assert copied["tags"] is not item["tags"]
    assert copy_item(value) is value
    assert is_simple(value) is is_simple(item) is False


def test_an_adapter_that_raises_leaves_the_item_shared() -> None:
    class Adapter(itemadapter.adapter.AdapterInterface):
        is_item_class = classmethod(refuse)
        __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = refuse

    class Foreign:
        pass

    item = {"tags": ["new"], "value": Foreign()}
    itemadapter.ItemAdapter.ADAPTER_CLASSES.append(Adapter)  # type: ignore[attr-defined]
    try:
        copied = copy_item(item)
    finally:
        itemadapter.ItemAdapter.ADAPTER_CLASSES.remove(Adapter)  # type: ignore[attr-defined]
    assert copied["value"] is item["value"]
    assert copied["tags"] is not item["tags"]


def test_methods_of_an_item_of_its_own_do_not_run_for_a_copy() -> None:
    item = broken(ScrapyItem, "items", "keys", "__iter__", "__setitem__", "__repr__")()
    item._values = {"tags": ["new"]}
    copied = copy_item(item)
    assert copied is not item
    assert copied["tags"] == ["new"]
    assert copied["tags"] is not item["tags"]


def test_values_that_raise_when_compared_or_shown_do_not_hinder_a_copy() -> None:
    value = broken(object, "__eq__", "__hash__", "__repr__", "__bool__")()
    item: dict[str, Any] = {"a": [value]}
    item["self"] = item
    copied = copy_item(item)
    assert copied["self"] is copied
    assert copied["a"] is not item["a"]
    assert copied["a"][0] is value


def test_items_that_hold_themselves_are_not_simple_and_deep_ones_are() -> None:
    deep = nested(dict, 20_000)
    for item in (deep, ScrapyItem(tags=deep), Dataclass("A", [deep])):
        assert is_simple(item)
    assert not is_simple(nested(lambda **fields: {**fields, "x": {1}}, 50))
    for kind in (dict, ScrapyItem, Dataclass):
        assert not is_simple(holder_of_itself(kind))


@all_kinds
def test_deep_items_and_items_that_hold_themselves_are_merged(kind: Any) -> None:
    for make in (lambda: holder_of_itself(kind), lambda: nested(kind, 500)):
        item = make()
        titled = set_fields(copy_item(item), {"title": "B"})
        same, tags = copy_item(item), value_of(item, "tags")
        merged = merge_changes(item, [titled, same])
        assert value_of(merged, "title") == "B"
        assert value_of(merged, "tags") is tags, "it has not changed"
        item = make()
        one, other = copy_item(item), copy_item(item)
        value_of(one, "tags").append(nested(kind, 500))
        value_of(other, "tags").append(nested(kind, 501))
        with pytest.raises(MergeConflict, match="'tags', to .* and to "):
            merge_changes(item, [one, other])


def test_a_change_far_inside_an_item_that_holds_itself_is_found() -> None:
    item = {"self": {}, "far": [[["old"]]]}
    item["self"] = item
    result = copy_item(item)
    result["far"][0][0][0] = "new"
    assert merge_changes(item, [result])["far"] == [[["new"]]]


def test_what_cannot_be_shown_is_named_by_its_type_in_messages() -> None:
    Unshown = broken(object, "__repr__", "__eq__")  # noqa: N806
    with pytest.raises(MergeConflict, match="'a', to <Brokenobject> and to <Brokenobject>:"):
        merge_changes({"a": 1}, [{"a": Unshown()}, {"a": Unshown()}])
    with pytest.raises(DeferKitError, match="got <Brokenobject>"):
        merge_changes(Unshown(), [])
    with pytest.raises(DeferKitError, match="<Brokenobject> .* is not an item with fields"):
        field_of(Unshown(), "a")
    key = broken(object, "__repr__")()
    with pytest.raises(MergeConflict, match="the field <Brokenobject>, to 1 and to 2"):
        merge_changes({key: 0}, [{key: 1}, {key: 2}])
    untouchable = broken(object, __class__=property(refuse))()
    with pytest.raises(DeferKitError, match="is not an item with fields"):
        field_of(untouchable, "a")


@all_kinds
def test_changes_of_several_branches_come_together(kind: Any) -> None:
    item = kind(title=" A ", tags=["x"])
    titled, tagged = copy_item(item), copy_item(item)
    titled = set_fields(titled, {"title": "A"})
    value_of(tagged, "tags").append("y")
    merged = merge_changes(item, [titled, None, tagged])
    assert merged == kind(title="A", tags=["x", "y"])
    assert type(merged) is type(item)


@all_kinds
def test_two_branches_that_change_one_field_differently_conflict(kind: Any) -> None:
    item = kind(title="A", tags=["x"])
    one, other = (
        set_fields(copy_item(item), {"title": "B"}),
        set_fields(copy_item(item), {"title": "C", "tags": []}),
    )
    with pytest.raises(MergeConflict, match="'title', to 'B' and to 'C'"):
        merge_changes(item, [one, other])
    assert item == kind(title="A", tags=["x"]), "nothing is applied"


@all_kinds
def test_two_branches_that_agree_do_not_conflict(kind: Any) -> None:
    item = kind(title="A", tags=[])
    both = [set_fields(copy_item(item), {"title": "B"}) for _ in range(2)]
    assert value_of(merge_changes(item, both), "title") == "B"


@pytest.mark.parametrize("kind", [dict, ScrapyItem])
def test_a_deleted_field_is_a_change(kind: Any) -> None:
    item = kind(title="A", tags=["x"])
    result = copy_item(item)
    del result["tags"]
    assert merge_changes(item, [result, copy_item(item)]) == kind(title="A")
    result = copy_item(item := kind(title="A", tags=["x"]))
    del result["tags"]
    with pytest.raises(MergeConflict, match="nothing"):
        merge_changes(item, [result, kind(title="A", tags=["y"])])


def test_a_new_field_is_a_change() -> None:
    assert merge_changes({"a": 1}, [{"a": 1, "b": 2}, {"a": 1, "c": 3}]) == {
        "a": 1,
        "b": 2,
        "c": 3,
    }


def test_a_value_of_another_type_is_a_change() -> None:
    assert merge_changes({"n": 1}, [{"n": 1.0}])["n"].__class__ is float


def test_values_that_cannot_be_compared_count_as_changed() -> None:
    class Array:
        def __eq__(self, other: object) -> Any:
            raise ValueError("the truth of an array is ambiguous")

        __hash__ = None  # type: ignore[assignment]

    new = Array()
    assert merge_changes({"a": Array()}, [{"a": new}, None])["a"] is new


def test_a_branch_that_returns_another_type_is_told_so() -> None:
    with pytest.raises(MergeConflict, match=r"branch 2 returned a Dataclass, and .* a dict"):
        merge_changes({"title": "A"}, [None, Dataclass("A", [])])


def test_frozen_items_are_rebuilt_and_validated() -> None:
    @attrs.frozen
    class Positive:
        n: int = attrs.field(validator=attrs.validators.gt(0))

    item = Positive(1)
    assert set_fields(item, {"n": 2}) == Positive(2)
    assert item == Positive(1)
    with pytest.raises(ValueError, match="> 0"):
        set_fields(item, {"n": -1})


def test_one_frozen_field_of_a_model_is_enough_to_rebuild_it() -> None:
    class Model(pydantic.BaseModel):
        upc: str = pydantic.Field(frozen=True)
        n: int = 0

    assert set_fields(Model(upc="a"), {"upc": "b", "n": 1}) == Model(upc="b", n=1)


def test_keep_item_ignores_the_results() -> None:
    item = FrozenAttrs("A", [])
    assert keep_item(item, [None, FrozenAttrs("B", [])]) is item


values = st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=2)
items = st.dictionaries(st.sampled_from("abcd"), values)


@given(items, st.lists(items | st.none(), max_size=3))
def test_the_order_of_the_branches_does_not_matter(item: Any, results: list[Any]) -> None:
    def merged(order: Any) -> Any:
        try:
            return merge_changes(copy_item(item), list(order))
        except MergeConflict:
            return MergeConflict

    assert all(merged(order) == merged(results) for order in itertools.permutations(results))


@given(items, items)
def test_one_branch_alone_gives_what_it_returned(item: Any, result: Any) -> None:
    assert merge_changes(copy_item(item), [result]) == result
