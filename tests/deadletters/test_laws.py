"""Whatever is done in whatever order, each letter is there once, with what it has been through."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrapy_deferkit.deadletters import ALL, DeadLetters

from ..scale import third_of
from .failures import at, failed

pytestmark = pytest.mark.no_runtime

IDS = st.sampled_from("abc")
OWNERS = st.sampled_from(["run 1", "run 2"])

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.tuples(IDS, st.integers(0, 5)), max_size=4)),
        st.tuples(st.just("put_again"), st.just(None)),
        st.tuples(st.just("take"), OWNERS, st.integers(1, 3)),
        st.tuples(st.just("delivered"), OWNERS, st.lists(IDS, max_size=3)),
        st.tuples(st.just("failed_again"), OWNERS, st.lists(IDS, max_size=3, unique=True)),
        st.tuples(st.just("release"), OWNERS),
    ),
    max_size=12,
)


class Model:
    """What the table should hold, in a dict."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.seconds = 10

    def put(self, failures: list[tuple[str, int]]) -> None:
        for letter, seconds in sorted(failures):
            row = self.rows.get(letter)
            if row is None:
                self.rows[letter] = {"attempts": 1, "first": seconds, "last": seconds, "by": None}
            elif seconds > row["last"]:
                row["attempts"] += 1
                row["last"] = seconds

    def held(self, owner: str, letters: list[str]) -> set[str]:
        return {each for each in letters if each in self.rows and self.rows[each]["by"] == owner}


def check(letters: DeadLetters, steps: list[Any]) -> None:
    letters.delete(ALL)
    model = Model()
    last_put: list[tuple[str, int]] = []
    run = 0
    names = {"run 1": "run 1", "run 2": "run 2"}
    for name, *arguments in steps:
        if name in ("put", "put_again"):
            last_put = arguments[0] if name == "put" else last_put
            model.put(last_put)
            letters.put([failed(letter, seconds) for letter, seconds in last_put])
            continue
        owner = names[arguments[0]]
        if name == "take":
            taken = {letter.id for letter in letters.take(ALL, arguments[1], owner, 60)}
            free = {letter for letter, row in model.rows.items() if row["by"] is None}
            assert taken <= free
            for letter in taken:
                model.rows[letter]["by"] = owner
        elif name == "delivered":
            gone = model.held(owner, arguments[1])
            assert letters.delivered(owner, arguments[1]) == gone
            for letter in gone:
                del model.rows[letter]
        elif name == "failed_again":
            model.seconds += 1
            for letter in model.held(owner, arguments[1]):
                row = model.rows[letter]
                row.update(attempts=row["attempts"] + 1, last=model.seconds, by=None)
            letters.failed_again(owner, [failed(each, model.seconds) for each in arguments[1]])
        else:  # the run is over: its letters are free, and another run comes
            for row in model.rows.values():
                if row["by"] == owner:
                    row["by"] = None
            letters.release(owner)
            run += 1
            names[arguments[0]] = f"{arguments[0]}, {run} later"
    found = {
        letter.id: (letter.attempts, letter.first_failed_at, letter.failed_at, letter.leased_by)
        for letter in letters.select()
    }
    assert found == {
        letter: (row["attempts"], at(row["first"]), at(row["last"]), row["by"])
        for letter, row in model.rows.items()
    }


@settings(max_examples=third_of(40))
@given(steps=STEPS)
def test_the_table_holds_what_a_dict_would(letters: DeadLetters, steps: list[Any]) -> None:
    check(letters, steps)
