"""`process_chain_both` is a Deferred with pairs added; `process_chain_both_async` is it awaited."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.python.failure import Failure

from scrapy_deferkit._runtime import CANCELLED, to_deferred
from scrapy_deferkit.defer import process_chain_both, process_chain_both_async

from . import _generated as generated
from ._generated import Boom, Observed, Run, deferring, observe, observe_in_step

FACES = [process_chain_both, process_chain_both_async]


def plain_formulation(
    callbacks: Any, errbacks: Any, input: Any, *a: Any, **kw: Any
) -> Deferred[Any]:
    deferred: Deferred[Any] = Deferred()
    for callback, errback in zip(callbacks, errbacks, strict=True):
        deferred.addCallbacks(
            deferring(callback) if callback else lambda result, *a, **kw: result,
            deferring(errback) if errback else lambda failure, *a, **kw: failure,
            callbackArgs=a,
            callbackKeywords=kw,
            errbackArgs=a,
            errbackKeywords=kw,
        )
    deferred.callback(input)
    return deferred


def pairs_of(kinds: st.SearchStrategy[str]) -> st.SearchStrategy[list[Any]]:
    maybe = st.none() | kinds
    return st.lists(st.tuples(maybe, maybe), max_size=6)


def beginning(helper: Any, pairs: Any, input: Any, args: Any, kwargs: Any) -> generated.Begin:
    def begin(run: Run) -> Deferred[Any]:
        callbacks, errbacks = (
            [
                pair[side] and run.callback(f"{name} {n}: {pair[side]}", pair[side])
                for n, pair in enumerate(pairs)
            ]
            for side, name in enumerate(("callback", "errback"))
        )
        return to_deferred(helper(callbacks, errbacks, run.input(input), *args, **kwargs))

    return begin


@given(
    pairs=pairs_of(generated.in_step),
    input=generated.inputs,
    args=generated.arguments,
    kwargs=generated.named,
)
def test_deferreds_alone_work_in_step_as_in_the_plain_formulation(
    pairs: Any, input: Any, args: Any, kwargs: Any
) -> None:
    ours = observe_in_step(beginning(process_chain_both, pairs, input, args, kwargs), [0] * 6)
    theirs = observe_in_step(beginning(plain_formulation, pairs, input, args, kwargs), [0] * 6)
    assert ours == theirs


@given(
    pairs=pairs_of(generated.on_a_loop),
    input=generated.inputs,
    args=generated.arguments,
    kwargs=generated.named,
)
async def test_coroutines_among_them_give_what_the_plain_formulation_gives(
    pairs: Any, input: Any, args: Any, kwargs: Any
) -> None:
    ours = await observe(beginning(process_chain_both, pairs, input, args, kwargs), [0] * 6)
    theirs = await observe(beginning(plain_formulation, pairs, input, args, kwargs), [0] * 6)
    assert ours == theirs


@given(
    pairs=pairs_of(generated.on_a_loop),
    input=generated.inputs,
    args=generated.arguments,
    kwargs=generated.named,
)
async def test_the_two_faces_agree(pairs: Any, input: Any, args: Any, kwargs: Any) -> None:
    one = await observe(beginning(process_chain_both, pairs, input, args, kwargs), [0] * 6)
    other = await observe(beginning(process_chain_both_async, pairs, input, args, kwargs), [0] * 6)
    assert generated.without_identity(one) == generated.without_identity(other)


def recover(failure: Failure) -> str:
    return f"recovered from {failure.value}"


def raise_boom(_: Any) -> Any:
    raise Boom("boom")


@pytest.mark.no_runtime
def test_an_errback_does_not_catch_its_own_callback() -> None:
    chained = process_chain_both([raise_boom], [recover], "item")
    failures: list[Any] = []
    chained.addErrback(failures.append)
    assert failures[0].type is Boom


@pytest.mark.no_runtime
def test_an_errback_catches_the_callbacks_before_it_and_the_chain_goes_on() -> None:
    chained = process_chain_both([raise_boom, None, str.title], [None, recover, None], "item")
    assert chained.result == "Recovered From Boom"


@pytest.mark.no_runtime
def test_an_input_that_is_a_failure_starts_with_the_errbacks() -> None:
    chained = process_chain_both([raise_boom], [recover], Failure(Boom("before")))
    assert chained.result == "recovered from before"


@pytest.mark.no_runtime
@pytest.mark.parametrize("helper", FACES)
@pytest.mark.parametrize(("callbacks", "errbacks"), [([], [recover]), ([str.title, None], [None])])
def test_unequal_lengths_are_refused_at_the_call(
    helper: Any, callbacks: Any, errbacks: Any
) -> None:
    with pytest.raises(
        ValueError, match=f"{len(callbacks)} callbacks and {len(errbacks)} errbacks"
    ):
        helper(callbacks, errbacks, "item")


@pytest.mark.no_runtime
def test_iterators_will_do() -> None:
    chained = process_chain_both(iter([str.title]), iter([None]), "item")
    assert chained.result == "Item"


def cancelled_after(
    observed: Observed, firings: int
) -> tuple[list[Any], list[str]]:  # what was called and outstanding when it was cancelled
    for _ in range(firings):
        observed.run.fire(0)
    calls, outstanding, _ = observed.snapshot()
    observed.deferred.cancel()
    return calls, outstanding


@given(
    kinds=st.lists(st.sampled_from(["later", "later_failed", "later_deaf"]), min_size=1, max_size=6)
)
def test_cancelling_cancels_what_is_outstanding_and_no_errback_recovers(kinds: list[str]) -> None:
    pairs = [(kind, kind) for kind in kinds] + [("returns", "returns")]
    for firings in range(len(kinds)):
        observed = Observed(beginning(process_chain_both, pairs, "value", (), {}))
        calls, outstanding = cancelled_after(observed, firings)
        assert observed.outcomes[0].type is CancelledError
        assert observed.run.cancelled == outstanding
        assert len(observed.run.cancelled) == 1
        assert observed.run.calls == calls


@pytest.mark.parametrize("kind", ["coroutine_waits", "coroutine_deaf"])
@pytest.mark.parametrize("input", ["value", "failure"])
async def test_cancelling_cancels_a_coroutine_and_no_errback_recovers(
    kind: str, input: str
) -> None:
    pairs = [(kind, kind), ("returns", "returns")]
    observed = Observed(beginning(process_chain_both, pairs, input, (), {}))
    await observed.until_quiet()
    calls, outstanding = cancelled_after(observed, 0)
    await observed.until_quiet()
    assert observed.outcomes[0].type is CancelledError
    assert observed.run.cancelled[:1] == outstanding
    assert observed.run.calls == calls


@pytest.mark.parametrize("kind", ["later", "coroutine_waits"])
async def test_cancelling_who_awaits_it_is_seen_by_no_errback(kind: str) -> None:
    pairs = [(kind, None), ("returns", "returns")]
    observed = Observed(beginning(process_chain_both_async, pairs, "value", (), {}))
    await observed.until_quiet()
    observed.deferred.cancel()
    await observed.until_quiet()
    assert issubclass(observed.outcomes[0].type, CANCELLED)
    assert len(observed.run.cancelled) == len(observed.run.calls) == 1


@pytest.mark.no_runtime
def test_a_callback_that_is_cancelled_by_another_hand_can_be_recovered_from() -> None:
    waiting: Deferred[Any] = Deferred()
    chained = process_chain_both([lambda _: waiting, None], [None, lambda _: "recovered"], "item")
    waiting.cancel()
    assert chained.result == "recovered"


@pytest.mark.parametrize("cancellation", CANCELLED)
async def test_awaited_no_errback_sees_a_cancellation(cancellation: type[BaseException]) -> None:
    for cancelled in (lambda _: fail(cancellation()), lambda _: Failure(cancellation())):
        coroutine = process_chain_both_async([cancelled, None], [None, recover], "item")
        with pytest.raises(cancellation):
            await coroutine


@pytest.mark.no_runtime
def test_a_callback_may_cancel_the_chain_that_it_is_in() -> None:
    waiting: Deferred[str] = Deferred()
    called: list[Any] = []

    def cancel(item: str) -> None:
        chained.cancel()
        raise_boom(item)

    callbacks = [lambda _: waiting, cancel, None, called.append]
    chained = process_chain_both(callbacks, [None, None, called.append, None], "item")
    failures: list[Any] = []
    chained.addErrback(failures.append)
    waiting.callback("item")
    assert failures[0].type is CancelledError
    assert called == []


@pytest.mark.no_runtime
def test_what_an_errback_that_cancels_its_chain_leaves_outstanding_is_cancelled() -> None:
    waiting: Deferred[str] = Deferred()
    outstanding: Deferred[str] = Deferred()

    def cancel(_: Failure) -> Deferred[str]:
        chained.cancel()
        return outstanding

    chained = process_chain_both([lambda _: waiting, None], [None, cancel], "item")
    chained.addErrback(lambda failure: failure.trap(CancelledError))
    waiting.errback(Boom("boom"))
    assert outstanding.called
