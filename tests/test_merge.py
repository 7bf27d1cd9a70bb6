"""Copies are deep where an item is mutable, and branches' changes come together."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from typing import Any

import attrs
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrapy_deferkit import MergeConflict, copy_item, keep_item, merge_changes
from scrapy_deferkit.merge import set_fields

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
