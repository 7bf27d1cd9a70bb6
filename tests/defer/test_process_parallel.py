"""`process_parallel` is a DeferredList of all callbacks; `process_parallel_async` is it awaited."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.python.failure import Failure

from scrapy_deferkit._runtime import CANCELLED, to_deferred
from scrapy_deferkit.defer import process_parallel, process_parallel_async

from . import _generated as generated
from ._generated import Boom, Observed, Run, deferring, observe, observe_in_step


def plain_formulation(callbacks: Any, input: Any, *a: Any, **kw: Any) -> Deferred[Any]:
    deferreds = [succeed(input).addCallback(deferring(each), *a, **kw) for each in callbacks]
    together = DeferredList(deferreds, fireOnOneErrback=True, consumeErrors=True)
    return together.addCallbacks(
        lambda pairs: [result for _, result in pairs], lambda first: first.value.subFailure
    )


def beginning(helper: Any, kinds: list[str], input: Any, args: Any, kwargs: Any) -> generated.Begin:
    def begin(run: Run) -> Deferred[Any]:
        return to_deferred(helper(run.callbacks(kinds), run.input(input), *args, **kwargs))

    return begin


@pytest.mark.parametrize("peer", [plain_formulation, *generated.scrapys("process_parallel")])
@given(
    kinds=st.lists(generated.in_step, max_size=6),
    input=generated.inputs,
    args=generated.arguments,
    kwargs=generated.named,
    order=generated.orders,
)
def test_deferreds_alone_work_in_step_as_in_the_plain_formulation(
    peer: Any, kinds: list[str], input: Any, args: Any, kwargs: Any, order: list[int]
) -> None:
    ours = observe_in_step(beginning(process_parallel, kinds, input, args, kwargs), order)
    assert ours == observe_in_step(beginning(peer, kinds, input, args, kwargs), order)


@given(
    kinds=st.lists(generated.on_a_loop, max_size=6),
    input=generated.inputs,
    args=generated.arguments,
    kwargs=generated.named,
    order=generated.orders,
)
async def test_coroutines_among_them_give_what_the_plain_formulation_gives(
    kinds: list[str], input: Any, args: Any, kwargs: Any, order: list[int]
) -> None:
    ours = await observe(beginning(process_parallel, kinds, input, args, kwargs), order)
    theirs = await observe(beginning(plain_formulation, kinds, input, args, kwargs), order)
    assert ours == theirs


@given(
    kinds=st.lists(generated.on_a_loop, max_size=6),
    input=generated.inputs,
    args=generated.arguments,
    kwargs=generated.named,
    order=generated.orders,
)
async def test_the_two_faces_agree(
    kinds: list[str], input: Any, args: Any, kwargs: Any, order: list[int]
) -> None:
    one = await observe(beginning(process_parallel, kinds, input, args, kwargs), order)
    other = await observe(beginning(process_parallel_async, kinds, input, args, kwargs), order)
    assert generated.without_identity(one) == generated.without_identity(other)


@pytest.mark.no_runtime
def test_plain_callbacks_have_all_run_when_it_returns() -> None:
    assert process_parallel([str.title, str.upper], "item").result == ["Item", "ITEM"]


async def test_the_coroutine_does_not_wait_where_nothing_is_pending() -> None:
    coroutine = process_parallel_async([str.title, str.upper], "item")
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    assert ended.value.value == ["Item", "ITEM"]


@pytest.mark.no_runtime
def test_results_are_in_the_order_of_the_callbacks_whichever_comes_first() -> None:
    first: Deferred[str] = Deferred()
    second: Deferred[str] = Deferred()
    together = process_parallel([lambda _: first, lambda _: None, lambda _: second], "item")
    second.callback("second")
    assert not together.called
    first.callback("first")
    assert together.result == ["first", None, "second"]


@pytest.mark.no_runtime
def test_the_first_failure_is_delivered_as_itself_and_later_ones_are_consumed() -> None:
    pending: list[Deferred[str]] = [Deferred(), Deferred()]
    together = process_parallel([lambda _: pending[0], lambda _: pending[1]], "item")
    failures: list[Any] = []
    together.addErrback(failures.append)
    first = Failure(Boom("first"))
    pending[1].errback(first)
    assert failures == [first]
    pending[0].errback(Boom("second"))
    pending.clear()
    gc.collect()  # an unheard failure would be logged now


@pytest.mark.no_runtime
def test_a_callback_that_raises_after_one_that_has_fired_fails_the_whole() -> None:
    def broken(_: Any) -> Any:
        raise Boom("boom")

    failures: list[Any] = []
    process_parallel([lambda _: succeed("fired"), broken], "item").addErrback(failures.append)
    assert failures[0].type is Boom


@given(
    kinds=st.lists(
        st.sampled_from(["returns", "fired", "later", "later_failed", "later_deaf"]), max_size=6
    )
)
def test_cancelling_cancels_all_that_is_outstanding(kinds: list[str]) -> None:
    observed = Observed(beginning(process_parallel, [*kinds, "later"], "value", (), {}))
    _, outstanding, _ = observed.snapshot()
    observed.deferred.cancel()
    assert observed.outcomes[0].type is CancelledError
    assert observed.run.cancelled == outstanding
    assert not observed.run.outstanding


async def test_cancelling_cancels_coroutines() -> None:
    kinds = ["coroutine_waits", "later", "coroutine_deaf"]
    observed = Observed(beginning(process_parallel, kinds, "value", (), {}))
    await observed.until_quiet()
    assert len(observed.run.outstanding) == 3
    observed.deferred.cancel()
    await observed.until_quiet()
    assert observed.outcomes[0].type is CancelledError
    assert not observed.run.outstanding


async def test_cancelling_who_awaits_it_cancels_all_that_is_outstanding() -> None:
    kinds = ["coroutine_waits", "later", "later_deaf", "coroutine_deaf"]
    observed = Observed(beginning(process_parallel_async, kinds, "value", (), {}))
    await observed.until_quiet()
    assert len(observed.run.outstanding) == 4
    observed.deferred.cancel()
    await observed.until_quiet()
    assert issubclass(observed.outcomes[0].type, CANCELLED)
    assert not observed.run.outstanding


@pytest.mark.no_runtime
def test_what_is_cancelled_may_fail_with_nobody_to_hear_it() -> None:
    def fail_instead(deferred: Deferred[Any]) -> None:
        deferred.errback(Boom("while cancelling"))

    together = process_parallel([lambda _: Deferred(fail_instead), lambda _: Deferred()], "item")
    failures: list[Any] = []
    together.addErrback(failures.append)
    together.cancel()
    assert failures[0].type is CancelledError
    del together
    gc.collect()


@pytest.mark.no_runtime
def test_no_callbacks_give_no_results_even_for_a_failure() -> None:
    assert process_parallel([], "item").result == []
    assert process_parallel([], Failure(Boom("boom"))).result == []
