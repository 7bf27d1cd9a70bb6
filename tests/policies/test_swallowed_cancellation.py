"""A step that swallows its cancellation, or is cancelled from within, deceives nobody."""

from __future__ import annotations

from typing import Any

import pytest
import tenacity
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from scrapy_deferkit import (
    Chain,
    Each,
    Fallback,
    Limit,
    Parallel,
    Retry,
    StackPipeline,
    StepCancelled,
    StepTimeout,
    Tap,
    Timeout,
    Tolerant,
    step_of,
)
from scrapy_deferkit._runtime import CANCELLED, to_deferred, turn
from scrapy_deferkit.testing import mock_crawler, run_stack

from ..steps import Broken, Held, until, wait

calls: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


async def swallow(item: Any) -> Any:
    """Wait for ever; cancelled, go on as if nothing had been."""
    calls.append("swallow")
    try:
        await wait(Deferred())
    except Exception:
        return item


async def convert(item: Any) -> Any:
    """Wait for ever; cancelled, fail with something else."""
    calls.append("convert")
    try:
        await wait(Deferred())
    except Exception:
        raise Broken from None


def store(item: Any) -> Any:
    """Note that the item came here."""
    calls.append("store")
    return item


@pytest.mark.parametrize(
    "stack",
    [
        Chain(swallow, store),
        Chain(Chain(swallow), store),
        Fallback(convert, store),
        Tolerant((convert, lambda failure, item: item), store),
        Tolerant((swallow, lambda failure, item: item), store),
        Chain(Tap(convert), store),
        Chain(Tap(swallow), store),
        Retry(convert, on=Broken, wait=tenacity.wait_none()),
        Chain(Each("n", swallow), store),
        Chain(Limit(swallow, concurrency=1), store),
    ],
    ids=str,
)
@pytest.mark.parametrize("around", ["Timeout", "Parallel", "Each"])
async def test_nothing_further_runs(stack: Any, around: str, clock: Clock, runtime: str) -> None:
    if runtime == "twisted":
        pytest.skip("Twisted's CancelledError is an Exception, and a step can swallow it")
    failing = Held("failing")
    if around == "Timeout":
        item = to_deferred(Timeout(stack, 5)({"n": [1]}))
    elif around == "Parallel":
        item = to_deferred(Parallel(stack, failing)({"n": [1]}))
    else:
        item = to_deferred(Timeout(Each("all", stack), 5)({"all": [{"n": [1]}]}))
    await until(lambda: calls)
    if around == "Parallel":
        await until(lambda: failing.waiting)
        failing.waiting[0][1].errback(Broken("first"))
    else:
        await until(clock.getDelayedCalls)
        clock.advance(5)
    with pytest.raises((StepTimeout, Broken)):
        await wait(item)
    for _ in range(5):
        await turn()
    assert len(calls) == 1, "the step that was cancelled, and none behind it"


async def from_within(item: Any) -> Any:
    """Wait for something that is cancelled, though nobody has cancelled the item."""
    waiting = to_deferred(_cancelled())
    waiting.cancel()
    return await wait(waiting)


async def _cancelled() -> None:
    await wait(Deferred())


async def test_a_timeout_makes_a_failure_of_a_cancellation_from_within(clock: Clock) -> None:
    with pytest.raises(StepCancelled) as caught:
        await Timeout(from_within, 5, name="t")({})
    assert step_of(caught.value) == "t/from_within"


async def test_a_tap_keeps_a_cancellation_from_within_to_itself() -> None:
    assert await Tap(from_within)({"a": 1}) == {"a": 1}


@pytest.mark.parametrize("wrap", [Chain, lambda p: Tolerant((p, lambda failure, item: item))])
async def test_run_stack_and_pipelines_make_a_failure_of_a_cancellation_from_within(
    wrap: Any, runtime: str
) -> None:
    run = await run_stack(wrap(from_within), [{}, {}])
    assert [type(it.exception) for it in run.failed] == [StepCancelled] * 2

    class Pipeline(StackPipeline):
        stack = wrap(from_within)

    pipeline = Pipeline.from_crawler(mock_crawler())
    await pipeline.open_spider()
    with pytest.raises((StepCancelled, *CANCELLED)) as caught:
        await pipeline.process_item({})
    if runtime != "twisted" and hasattr(_task_type(), "cancelling"):
        assert caught.type is StepCancelled
    await pipeline.close_spider()


def _task_type() -> Any:
    import asyncio

    return asyncio.Task


@pytest.mark.parametrize(
    "make",
    [
        lambda p: Timeout(p, 60),
        lambda p: Each("n", p),
        lambda p: Limit(Timeout(p, 60), concurrency=1),
        lambda p: Retry(p, on=Broken),
        lambda p: Fallback(p, p),
    ],
)
async def test_a_cancelled_branch_is_waited_for_whatever_is_around_it(
    make: Any, clock: Clock
) -> None:
    cleaned: Deferred[None] = Deferred()
    failing = Held()

    async def cleans_up(item: Any) -> Any:
        calls.append("began")
        try:
            await wait(Deferred())
        finally:
            await wait(cleaned)
            calls.append("cleaned up")

    ended: list[Any] = []
    item = to_deferred(Parallel(make(cleans_up), failing)({"n": [1]}))
    item.addErrback(ended.append)
    await until(lambda: calls and failing.waiting)
    failing.waiting[0][1].errback(Broken())
    for _ in range(10):
        await turn()
    assert not ended
    cleaned.callback(None)
    await until(lambda: ended)
    assert calls == ["began", "cleaned up"]
    assert ended[0].check(Broken)
