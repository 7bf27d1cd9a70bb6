"""`process_chain` is a Deferred with callbacks added; `process_chain_async` is it awaited."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred

from scrapy_deferkit._runtime import CANCELLED, to_deferred
from scrapy_deferkit.defer import process_chain, process_chain_async

from . import _generated as generated
from ._generated import Observed, Run, deferring, observe, observe_in_step


def plain_formulation(callbacks: Any, input: Any, *a: Any, **kw: Any) -> Deferred[Any]:
    deferred: Deferred[Any] = Deferred()
    for callback in callbacks:
        deferred.addCallback(deferring(callback), *a, **kw)
    deferred.callback(input)
    return deferred


def beginning(helper: Any, kinds: list[str], input: Any, args: Any, kwargs: Any) -> generated.Begin:
    def begin(run: Run) -> Deferred[Any]:
        return to_deferred(helper(run.callbacks(kinds), run.input(input), *args, **kwargs))

    return begin


@pytest.mark.parametrize("peer", [plain_formulation, *generated.scrapys("process_chain")])
@given(
    kinds=st.lists(generated.in_step, max_size=6),
    input=generated.inputs,
    args=generated.arguments,
    kwargs=generated.named,
)
def test_deferreds_alone_work_in_step_as_in_the_plain_formulation(
    peer: Any, kinds: list[str], input: Any, args: Any, kwargs: Any
) -> None:
    ours = observe_in_step(beginning(process_chain, kinds, input, args, kwargs), [0] * 6)
    assert ours == observe_in_step(beginning(peer, kinds, input, args, kwargs), [0] * 6)


@given(
    kinds=st.lists(generated.on_a_loop, max_size=6),
    input=generated.inputs,
    args=generated.arguments,
    kwargs=generated.named,
)
async def test_coroutines_among_them_give_what_the_plain_formulation_gives(
    kinds: list[str], input: Any, args: Any, kwargs: Any
) -> None:
    ours = await observe(beginning(process_chain, kinds, input, args, kwargs), [0] * 6)
    theirs = await observe(beginning(plain_formulation, kinds, input, args, kwargs), [0] * 6)
    assert ours == theirs


@given(
    kinds=st.lists(generated.on_a_loop, max_size=6),
    input=generated.inputs,
    args=generated.arguments,
    kwargs=generated.named,
)
async def test_the_two_faces_agree(kinds: list[str], input: Any, args: Any, kwargs: Any) -> None:
    one = await observe(beginning(process_chain, kinds, input, args, kwargs), [0] * 6)
    other = await observe(beginning(process_chain_async, kinds, input, args, kwargs), [0] * 6)
    assert generated.without_identity(one) == generated.without_identity(other)


@pytest.mark.no_runtime
def test_plain_callbacks_have_all_run_when_it_returns() -> None:
    chained = process_chain([str.strip, str.title], "  a light in the attic ")
    assert chained.result == "A Light In The Attic"


async def test_the_coroutine_does_not_wait_where_nothing_is_pending() -> None:
    coroutine = process_chain_async([str.strip, str.title], "  a light in the attic ")
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    assert ended.value.value == "A Light In The Attic"


@pytest.mark.no_runtime
def test_none_is_passed_on() -> None:
    assert process_chain([lambda _: None, lambda value: [value]], "item").result == [None]


@pytest.mark.no_runtime
def test_the_next_callback_waits_for_the_deferred_before_it() -> None:
    waiting: Deferred[str] = Deferred()
    given: list[str] = []
    process_chain([lambda _: waiting, str.title], "item").addCallback(given.append)
    assert given == []
    waiting.callback("later")
    assert given == ["Later"]


@given(kinds=st.lists(st.sampled_from(["returns", "fired", "later", "later_deaf"]), max_size=6))
def test_cancelling_cancels_what_is_outstanding_and_calls_nothing_further(
    kinds: list[str],
) -> None:
    for firings in range(kinds.count("later") + kinds.count("later_deaf")):
        observed = Observed(beginning(process_chain, kinds, "value", (), {}))
        for _ in range(firings):
            observed.run.fire(0)
        calls, outstanding, _ = observed.snapshot()
        observed.deferred.cancel()
        assert observed.outcomes[0].type is CancelledError
        assert observed.run.cancelled == outstanding
        assert observed.run.calls == calls


@given(
    kinds=st.lists(st.sampled_from(["later", "coroutine_waits", "coroutine_deaf"]), min_size=1),
    firings=st.integers(0, 4),
)
async def test_cancelling_cancels_coroutines_and_calls_nothing_further(
    kinds: list[str], firings: int
) -> None:
    observed = Observed(beginning(process_chain, kinds, "value", (), {}))
    await observed.until_quiet()
    for _ in range(min(firings, len(kinds) - 1)):
        observed.run.fire(0)
        await observed.until_quiet()
    calls, outstanding, _ = observed.snapshot()
    observed.deferred.cancel()
    await observed.until_quiet()
    assert observed.outcomes[0].type is CancelledError
    assert observed.run.cancelled[:1] == outstanding
    assert observed.run.calls == calls


@pytest.mark.parametrize("kind", ["later", "coroutine_waits"])
async def test_cancelling_who_awaits_it_does_likewise(kind: str) -> None:
    observed = Observed(beginning(process_chain_async, [kind, "returns"], "value", (), {}))
    await observed.until_quiet()
    observed.deferred.cancel()
    await observed.until_quiet()
    assert issubclass(observed.outcomes[0].type, CANCELLED)
    assert len(observed.run.cancelled) == len(observed.run.calls) == 1


@pytest.mark.no_runtime
def test_cancelling_what_has_ended_changes_nothing() -> None:
    chained = process_chain([str.title], "item")
    chained.cancel()
    assert chained.result == "Item"


@pytest.mark.no_runtime
def test_a_callback_that_is_cancelled_by_another_hand_is_a_failure_like_any_other() -> None:
    waiting: Deferred[str] = Deferred()
    chained = process_chain([lambda _: waiting], "item")
    failures: list[Any] = []
    chained.addErrback(failures.append)
    waiting.cancel()
    assert failures[0].type is CancelledError


@pytest.mark.no_runtime
def test_a_callback_may_cancel_the_chain_that_it_is_in() -> None:
    waiting: Deferred[str] = Deferred()
    called: list[str] = []

    def cancel(item: str) -> str:
        chained.cancel()
        return item

    chained = process_chain([lambda _: waiting, cancel, called.append], "item")
    failures: list[Any] = []
    chained.addErrback(failures.append)
    waiting.callback("item")
    assert failures[0].type is CancelledError
    assert called == []


@pytest.mark.no_runtime
def test_what_a_callback_that_cancels_its_chain_leaves_outstanding_is_cancelled() -> None:
    waiting: Deferred[str] = Deferred()
    outstanding: Deferred[str] = Deferred()

    def cancel(_: str) -> Deferred[str]:
        chained.cancel()
        return outstanding

    chained = process_chain([lambda _: waiting, cancel], "item")
    chained.addErrback(lambda failure: failure.trap(CancelledError))
    waiting.callback("item")
    assert outstanding.called
