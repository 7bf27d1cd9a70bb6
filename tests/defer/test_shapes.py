"""A Deferred of a helper is like any other in every use, and callbacks come in every shape."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, DeferredList, fail, inlineCallbacks, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from scrapy_deferkit._runtime import to_awaitable, turn, uses_asyncio
from scrapy_deferkit.defer import process_chain, process_chain_both, process_parallel

from . import test_chain, test_chain_both, test_process_parallel


class Boom(Exception):
    """What callbacks fail with."""


def both(process: Any) -> Callable[..., Deferred[Any]]:
    def chain_both(callbacks: Any, input: Any) -> Deferred[Any]:
        callbacks = list(callbacks)
        return process(callbacks, [None] * len(callbacks), input)  # type: ignore[no-any-return]

    return chain_both


HELPERS: dict[str, tuple[Any, Any]] = {
    "process_chain": (process_chain, test_chain.plain_formulation),
    "process_chain_both": (both(process_chain_both), both(test_chain_both.plain_formulation)),
    "process_parallel": (process_parallel, test_process_parallel.plain_formulation),
}
of_each_helper = pytest.mark.parametrize(("ours", "plain"), HELPERS.values(), ids=HELPERS)

# ------------------------------------------------------------------------------ uses of a Deferred


async def awaited(deferred: Deferred[Any]) -> Any:
    return await to_awaitable(deferred)


async def yielded(deferred: Deferred[Any]) -> Any:
    @inlineCallbacks
    def generator() -> Any:
        return (yield deferred)

    return await to_awaitable(generator())


async def chained(deferred: Deferred[Any]) -> Any:
    return await to_awaitable(succeed(None).addCallback(lambda _: deferred))


async def in_a_list(deferred: Deferred[Any]) -> Any:
    ((is_success, result),) = await to_awaitable(DeferredList([deferred], consumeErrors=True))
    return result if is_success else result.raiseException()


async def with_a_timeout(deferred: Deferred[Any]) -> Any:
    clock = Clock()
    deferred.addTimeout(5, clock)
    result = await to_awaitable(deferred)
    assert clock.getDelayedCalls() == []
    return result


async def as_a_future(deferred: Deferred[Any]) -> Any:
    import asyncio

    return await deferred.asFuture(asyncio.get_running_loop())


USES = [awaited, yielded, chained, in_a_list, with_a_timeout, as_a_future]


def raises(_: Any) -> Any:
    raise Boom("raised")


ENDS: dict[str, Callable[[Deferred[Any]], Callable[[Any], Any]]] = {
    "a value": lambda _: lambda value: value,
    "None": lambda _: lambda value: None,
    "raises": lambda _: raises,
    "a Failure": lambda _: lambda value: Failure(Boom("returned")),
    "a Deferred": lambda _: succeed,
    "a Deferred that has failed": lambda _: lambda value: fail(Boom("fired")),
    "later": lambda waiting: lambda _: waiting,
    "fails later": lambda waiting: lambda _: waiting.addCallback(raises),
}


async def outcome_of(use: Any, helper: Any, end: str) -> Any:
    waiting: Deferred[Any] = Deferred()
    deferred = helper([ENDS[end](waiting)], "input")
    if "later" in end:
        # In a turn of its own, so that it waits as a user would have it wait.
        from scrapy_deferkit._runtime import call_soon

        call_soon(lambda: waiting.callback("later"))
    try:
        return await use(deferred)
    except Exception as error:
        return type(error), str(error)


@of_each_helper
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("use", USES)
async def test_it_is_used_as_the_plain_formulation_is(
    ours: Any, plain: Any, end: str, use: Any
) -> None:
    if use is as_a_future and not uses_asyncio():
        pytest.skip("there is no event loop here")
    if "later" in end and uses_asyncio() is None:
        pytest.skip("nothing happens later here")
    assert await outcome_of(use, ours, end) == await outcome_of(use, plain, end)


@of_each_helper
@pytest.mark.parametrize("end", ["raises", "a Failure", "a Deferred that has failed"])
def test_a_failure_that_nobody_handles_is_logged(
    ours: Any, plain: Any, end: str, unhandled: list[str]
) -> None:
    for helper in (ours, plain):
        helper([ENDS[end](Deferred())], "input")
        gc.collect()
        (logged,) = unhandled
        assert "Boom" in logged
        unhandled.clear()


# ----------------------------------------------------------------------------- chains within chains

PAGES = 2000


@pytest.mark.no_runtime
@of_each_helper
@pytest.mark.parametrize("fails", [False, True])
def test_a_loop_of_chains_runs_for_any_number_of_pages(ours: Any, plain: Any, fails: bool) -> None:
    waiting: list[Deferred[Any]] = []
    ended: list[Any] = []

    def get(page: int) -> Deferred[int]:
        waiting.append(Deferred())
        return waiting[-1]

    def follow(page: int) -> Any:
        if page < PAGES:
            return crawl(page + 1)
        if fails:
            raise Boom("the last page")
        return "the last page"

    def crawl(page: int) -> Deferred[Any]:
        if ours is process_parallel:
            return process_chain([get, lambda page: ours([follow], page)], page)
        return ours([get, follow], page)  # type: ignore[no-any-return]

    crawl(1).addBoth(ended.append)
    for page in range(1, PAGES + 1):
        waiting[-1].callback(page)
    (outcome,) = ended
    while isinstance(outcome, list):
        (outcome,) = outcome
    assert outcome.type is Boom if fails else outcome == "the last page"


@pytest.mark.no_runtime
@of_each_helper
def test_what_it_waits_for_may_be_nested_a_thousand_deep(ours: Any, plain: Any) -> None:
    for helper in (ours, plain):
        innermost: Deferred[str] = Deferred()
        nested: Deferred[Any] = innermost
        for _ in range(1000):
            nested = succeed(None).addCallback(lambda _, within=nested: within)
        ended: list[Any] = []
        helper([lambda _, nested=nested: nested], "input").addBoth(ended.append)
        innermost.callback("deep")
        assert ended[0] in ("deep", ["deep"])


@pytest.mark.no_runtime
@of_each_helper
def test_what_is_paused_is_waited_for(ours: Any, plain: Any) -> None:
    for helper in (ours, plain):
        paused: Deferred[str] = succeed("late")
        paused.pause()
        ended: list[Any] = []
        deferred = helper([lambda _, paused=paused: paused], "input").addBoth(ended.append)
        assert ended == []
        deferred.pause()
        paused.unpause()
        assert ended == []
        deferred.unpause()
        assert ended[0] in ("late", ["late"])


@pytest.mark.no_runtime
@of_each_helper
def test_it_may_be_made_and_returned_within_the_callbacks_of_what_it_waits_for(
    ours: Any, plain: Any
) -> None:
    def steps_of(helper: Any) -> list[Any]:
        fired: Deferred[str] = Deferred()
        steps: list[Any] = []

        def begin(value: str) -> str:
            helper([lambda _: fired], "input").addBoth(steps.append)
            steps.append("begun")
            return value

        fired.addCallback(begin).addCallback(lambda _: steps.append("after"))
        fired.callback("value")
        return steps

    assert steps_of(ours) == steps_of(plain)


async def test_a_coroutine_may_return_what_is_pending_itself() -> None:
    async def inner() -> str:
        await turn()
        return "value"

    async def outer() -> Any:
        return inner()

    async def of_a_deferred() -> Any:
        return succeed("value")

    for callback in (lambda _: outer(), lambda _: of_a_deferred()):
        assert await to_awaitable(process_chain([callback, str.title], "input")) == "Value"
        chained = process_chain_both([callback, str.title], [None, None], "input")
        assert await to_awaitable(chained) == "Value"
        assert await to_awaitable(process_parallel([callback], "input")) == ["value"]


# -------------------------------------------------------------------------- shapes of the callbacks


@pytest.mark.no_runtime
@of_each_helper
@pytest.mark.parametrize("shape", [tuple, list, deque, iter, dict.fromkeys])
def test_callbacks_come_in_any_iterable(ours: Any, plain: Any, shape: Any) -> None:
    callbacks = [str.strip, str.title]
    assert ours(shape(callbacks), " item ").result == plain(shape(callbacks), " item ").result


@pytest.mark.no_runtime
@of_each_helper
def test_a_call_that_changes_where_the_callbacks_come_from_changes_nothing_now(
    ours: Any, plain: Any
) -> None:
    def called(helper: Any, shape: Any) -> list[str]:
        names: list[str] = []

        def once(value: str) -> str:
            names.append("once")
            callbacks.remove(once)
            callbacks.append(later)
            return value

        def second(value: str) -> str:
            names.append("second")
            return value

        def later(value: str) -> str:
            names.append("later")
            return value

        callbacks = shape([once, second])
        helper(callbacks, "input")
        return names

    for shape in (list, deque):
        assert called(ours, shape) == ["once", "second"]
    if ours is not process_parallel:  # the plain one reads them meanwhile
        assert called(plain, list) == ["once", "second"]


@pytest.mark.no_runtime
@of_each_helper
def test_callbacks_that_cannot_be_taken_are_an_error_before_the_first_call(
    ours: Any, plain: Any
) -> None:
    called: list[str] = []

    def broken() -> Iterator[Any]:
        yield called.append
        raise Boom("no more callbacks")

    for helper in (ours, plain):
        with pytest.raises(TypeError):
            helper(None, "input")
    with pytest.raises(Boom):
        ours(broken(), "input")
    assert called == []
