"""`parallel` is *count* coiterators of one generator; `parallel_async` is it awaited."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed

from scrapy_deferkit.defer import parallel

from . import _generated as generated
from ._generated import Boom, Observed
from ._parallel import FACES, THE_SOURCE_RAISES, beginning, plain_formulation, turns_by_hand

counts = st.integers(1, 4)
# Which of the outstanding Deferreds are fired together before the loop has a turn.
batches = st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=8).map(
    lambda some: [*some, *[[0]] * 8]
)
one_by_one = generated.orders.map(lambda order: [[choice] for choice in order])


def elements_of(kinds: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """Seldom anything that ends all: a call that raises, or the source itself."""
    rarely = st.lists(st.sampled_from(["raises", "raises_base", THE_SOURCE_RAISES]), max_size=1)
    lives_on = kinds.filter(lambda kind: not kind.startswith("raises"))
    return st.builds(
        lambda before, end, after: [*before, *end, *after],
        st.lists(lives_on, max_size=6),
        rarely,
        st.lists(lives_on, max_size=2),
    )


def observe_by_hand(begin: generated.Begin, batches: list[list[int]]) -> list[Any]:
    with turns_by_hand() as turns:
        observed = Observed(begin)
        seen = [observed.snapshot()]
        for batch in [[], *batches]:
            observed.run.fire(*batch)
            turns.take_all()
            seen.append(observed.snapshot())
    return seen


async def observe(begin: generated.Begin, batches: list[list[int]]) -> list[Any]:
    observed = Observed(begin)
    seen = []
    for batch in [[], *batches]:
        observed.run.fire(*batch)
        await observed.until_quiet()
        seen.append(observed.snapshot())
    return seen


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no slow moment of the machine end a slice of work, on either side."""
    monkeypatch.setattr("twisted.internet.task._Timer.MAX_SLICE", 3600.0)
    monkeypatch.setattr("scrapy_deferkit._engine.monotonic", lambda: 0.0)


@pytest.mark.parametrize("peer", [plain_formulation, *generated.scrapys("parallel")])
@given(
    kinds=elements_of(generated.in_step),
    count=counts,
    args=generated.arguments,
    kwargs=generated.named,
    batches=batches,
)
def test_each_worker_ends_as_in_the_plain_formulation(
    peer: Any, kinds: list[str], count: int, args: Any, kwargs: Any, batches: list[list[int]]
) -> None:
    ours = observe_by_hand(beginning(parallel, kinds, count, args, kwargs), batches)
    assert ours == observe_by_hand(beginning(peer, kinds, count, args, kwargs), batches)


@given(
    kinds=elements_of(generated.on_a_loop),
    count=counts,
    args=generated.arguments,
    kwargs=generated.named,
    batches=batches,
)
async def test_coroutines_among_them_give_what_the_plain_formulation_gives(
    kinds: list[str], count: int, args: Any, kwargs: Any, batches: list[list[int]]
) -> None:
    ours = await observe(beginning(parallel, kinds, count, args, kwargs), batches)
    theirs = await observe(beginning(plain_formulation, kinds, count, args, kwargs), batches)
    assert ours == theirs


def in_any_order(seen: list[Any]) -> list[Any]:
    """Sort the pairs: of coroutines that end in one turn, any worker may be the first to go on."""
    return [
        (*before, result if isinstance(result, str) else [sorted(it, key=repr) for it in result])
        for *before, result in seen
    ]


@given(kinds=elements_of(generated.on_a_loop), count=counts, batches=one_by_one)
@example(
    kinds=["fired_failed", "later", "coroutine", "coroutine", "returns", "raises"],
    count=4,
    batches=[[0]] * 6,
)
async def test_the_two_faces_agree(kinds: list[str], count: int, batches: list[list[int]]) -> None:
    one, other = [await observe(beginning(face, kinds, count), batches) for face in FACES]
    assert in_any_order(one) == in_any_order(other)


@pytest.mark.parametrize("helper", FACES)
@given(kinds=elements_of(generated.in_step), count=counts, batches=one_by_one)
async def test_an_async_iterable_is_as_good_as_a_plain_one(
    helper: Any, kinds: list[str], count: int, batches: list[list[int]]
) -> None:
    one, other = [
        await observe(beginning(helper, kinds, count, made_async=made_async), batches)
        for made_async in (False, True)
    ]
    assert one == other


@pytest.mark.no_runtime
@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("helper", FACES)
def test_a_count_below_one_is_refused_at_the_call(helper: Any, count: int) -> None:
    with pytest.raises(ValueError, match=f"1 or more; got {count}"):
        helper([], count, str)


@pytest.mark.no_runtime
def test_there_is_one_iterator_for_all_workers() -> None:
    with turns_by_hand() as turns:
        worked = parallel([1], 3, str)
        turns.take_all()
    outcomes = worked.result
    assert [success for success, _ in outcomes] == [True] * 3
    assert len({id(iterator) for _, iterator in outcomes}) == 1
    assert list(outcomes[0][1]) == []


@pytest.mark.no_runtime
def test_a_call_that_raises_ends_the_rest_and_what_is_outstanding_goes_on() -> None:
    waiting: Deferred[Any] = Deferred()
    called: list[str] = []

    def call(element: str) -> Any:
        called.append(element)
        if element == "raises":
            raise Boom(element)
        return waiting

    with turns_by_hand() as turns:
        worked = parallel(["waits", "raises", "never"], 2, call)
        turns.take_all()
        assert not worked.called
        waiting.callback(None)
        turns.take_all()
    (_, iterator), (success, failure) = worked.result
    assert called == ["waits", "raises"]
    assert (success, failure.type) == (False, Boom)
    assert list(iterator) == []


@pytest.mark.no_runtime
def test_a_deferred_that_fails_ends_its_worker_alone() -> None:
    with turns_by_hand() as turns:
        called: list[int] = []

        def call(element: int) -> Any:
            called.append(element)
            return fail(Boom(str(element))) if element < 2 else succeed(None)

        worked = parallel(range(6), 3, call)
        turns.take_all()
        assert called == [0, 1, 2, 3, 4, 5]
        assert sorted(success for success, _ in worked.result) == [False, False, True]


@pytest.mark.no_runtime
def test_no_worker_left_means_that_the_rest_is_not_taken() -> None:
    source = iter(range(6))
    with turns_by_hand() as turns:
        worked = parallel(source, 2, lambda element: fail(Boom(str(element))))
        turns.take_all()
    assert [str(failure.value) for _, failure in worked.result] == ["0", "1"]
    assert list(source) == [2, 3, 4, 5]


@pytest.mark.no_runtime
def test_failures_that_it_reports_are_consumed() -> None:
    with turns_by_hand() as turns:
        parallel(range(2), 2, lambda element: fail(Boom(str(element))))
        turns.take_all()
    gc.collect()  # an unheard failure would be logged now
