"""A Retry calls again what failed, and knows when to stop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import tenacity
import twisted.internet.error
from hypothesis import given
from hypothesis import strategies as st
from scrapy.exceptions import CloseSpider, DownloadTimeoutError, DropItem
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from scrapy_deferkit import (
    Each,
    Fallback,
    NoItemReturned,
    Retry,
    StackConfigError,
    policies,
    step_of,
)
from scrapy_deferkit._runtime import clock_set_to, to_deferred
from scrapy_deferkit.testing import mock_crawler, run_stack

from ..steps import Broken, Held, until, wait

NO_WAIT = tenacity.wait_none()


class Flaky:
    """A processor that fails as often as it is told to, and then returns the item."""

    def __init__(self, failures: int, error: Any = Broken) -> None:
        self.__name__ = "flaky"
        self.left = failures
        self.error = error
        self.calls = 0

    def __call__(self, item: Any, *args: Any) -> Any:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error(f"call {self.calls}") if isinstance(self.error, type) else self.error
        return item


async def in_time(clock: Clock, awaitable: Any, step: float = 0.25, most: int = 4000) -> Any:
    """Wait for *awaitable* while the clock moves in small steps whenever all is waiting."""
    deferred = to_deferred(awaitable)
    done: list[Any] = []
    deferred.addBoth(lambda result: (done.append(result), result)[1])
    for _ in range(most):
        if done:
            break
        if clock.getDelayedCalls():
            clock.advance(step)
        await _turn()
    return await wait(deferred)


async def _turn() -> None:
    from scrapy_deferkit._runtime import turn

    await turn()


@given(st.integers(1, 5), st.integers(0, 6))
async def test_it_succeeds_if_one_of_its_attempts_does(attempts: int, failures: int) -> None:
    clock = Clock()
    with clock_set_to(clock):
        flaky = Flaky(failures)
        crawler = mock_crawler()
        stack = Retry(flaky, on=Broken, attempts=attempts, wait=tenacity.wait_fixed(2))
        run = await in_time(clock, run_stack(stack, [{"a": 1}], crawler=crawler), step=2)
        assert flaky.calls == min(attempts, failures + 1)
        assert clock.seconds() == 2 * (flaky.calls - 1)
        assert (crawler.stats.get_value("deferkit/Retry/retried") or 0) == flaky.calls - 1
        if failures < attempts:
            assert run.scraped == [{"a": 1}]
            assert crawler.stats.get_value("deferkit/Retry/gave_up") is None
        else:
            assert run.failed[0].exception.args == (f"call {attempts}",)
            if attempts > 1:
                assert crawler.stats.get_value("deferkit/Retry/gave_up") == 1
    assert not clock.getDelayedCalls()


async def test_each_attempt_gets_a_fresh_copy_of_the_item() -> None:
    attempts = []

    def append_and_fail(item: Any) -> Any:
        attempts.append(item)
        item["nested"][0]["seen"].append("x")
        if len(attempts) < 3:
            raise Broken
        return item

    item: Any = {"nested": [{"seen": []}]}
    result = await Retry(append_and_fail, on=Broken, wait=NO_WAIT)(item)
    assert result == {"nested": [{"seen": ["x"]}]}
    assert item == {"nested": [{"seen": []}]}
    assert len(attempts) == 3


async def test_what_gives_up_raises_the_last_failure_with_the_attempts_in_its_notes() -> None:
    with pytest.raises(Broken) as caught:
        await Retry(Flaky(9), on=Broken, attempts=3, wait=NO_WAIT, name="reviews")({})
    notes = caught.value.__notes__
    assert caught.value.args == ("call 3",)
    assert "Attempt 1 failed with Broken('call 1')" in notes
    assert "Attempt 2 failed with Broken('call 2')" in notes
    assert "reviews ended after 3 attempts" in notes
    assert step_of(caught.value) == "reviews/flaky"


@pytest.mark.parametrize(
    ("on", "error", "calls"),
    [
        (ValueError, ValueError, 3),
        (ValueError, UnicodeError, 3),
        ((KeyError, ValueError), KeyError, 3),
        (ValueError, KeyError, 1),
        (lambda error: "call" in str(error), KeyError, 3),
        (lambda error: "other" in str(error), KeyError, 1),
        (Exception, DropItem("no"), 1),
        (Exception, CloseSpider("full"), 1),
        (BaseException, CancelledError(), 1),
        (BaseException, asyncio.CancelledError(), 1),
        (NoItemReturned, ValueError, 1),
    ],
)
async def test_on_says_what_is_tried_again(on: Any, error: Any, calls: int) -> None:
    flaky = Flaky(9, error)
    with pytest.raises(BaseException):  # noqa: B017 - cancellation is one
        await Retry(flaky, on=on, wait=NO_WAIT)({})
    assert flaky.calls == calls


async def test_a_failure_that_on_does_not_name_ends_it_midway() -> None:
    errors = iter([ValueError("once"), KeyError("other")])

    def fail(item: Any) -> Any:
        raise next(errors)

    with pytest.raises(KeyError):
        await Retry(fail, on=ValueError, wait=NO_WAIT)({})


class TryLater(Exception):
    retry_after: Any = None


@pytest.mark.parametrize(
    ("wanted", "seconds"),
    [
        (7, 7),
        (0, 0),
        ("7", 7),
        (b"7", 7),
        (" 7.0 ", 7),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 7),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 7),
        (b"Sun Nov  6 08:49:37 1994", 7),
        ("Sun, 06 Nov 1994 10:49:37 +0200", 7),
        ("Sun, 06 Nov 1994 08:49:00 GMT", 0),  # it has passed
        ("soon", 21),
        ("", 21),
        ("-7", 21),
        ("nan", 21),
        (b"\xff", 21),
        (-7, 21),
        (True, 21),
        (None, 21),
        ([7], 21),
    ],
)
async def test_an_exception_may_ask_for_its_own_wait(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, wanted: Any, seconds: int
) -> None:
    monkeypatch.setattr(policies, "time", lambda: 784111770)  # 08:49:30 that day
    monkeypatch.setattr(TryLater, "retry_after", wanted)
    stack = Retry(Flaky(2, TryLater), on=TryLater, wait=tenacity.wait_fixed(21))
    assert await in_time(clock, stack({"a": 1}), step=7) == {"a": 1}
    assert clock.seconds() == 2 * seconds


class Odd(Broken):
    """Raises whatever one asks of it."""

    @property
    def retry_after(self) -> Any:
        raise KeyError("not set yet")

    def __repr__(self) -> str:
        raise KeyError("not set yet")

    __str__ = __repr__


@pytest.mark.parametrize(
    "stack",
    [
        Retry(Flaky(9, Odd), on=Broken, wait=NO_WAIT),
        Fallback(Flaky(9, Odd), Flaky(9, Odd)),
        Each("a", Flaky(9, Odd)),
    ],
    ids=["Retry", "Fallback", "Each"],
)
async def test_an_odd_exception_is_raised_as_it_is(stack: Any) -> None:
    with pytest.raises(Odd):
        await stack({"a": [1, 2]})


@pytest.mark.parametrize("argument", ["wait", "stop"])
async def test_a_function_of_ones_own_that_fails_is_noted_on_the_failure(argument: str) -> None:
    def fail(state: Any) -> Any:
        raise KeyError("not set yet")

    stack = Retry(Flaky(9), on=Broken, **{argument: fail})
    with pytest.raises(Broken) as error:
        await stack({})
    note = f"Retry: the function {argument}= failed on it: KeyError('not set yet')"
    assert note in error.value.__notes__


async def test_without_wait_it_waits_longer_each_time(clock: Clock) -> None:
    await in_time(clock, Retry(Flaky(3), on=Broken, attempts=4)({}), step=0.125)
    # 0.5, 1 and 2 seconds, and up to a second of jitter each
    assert 3.5 <= clock.seconds() <= 3.5 + 3 + 3 * 0.125


async def test_any_stop_of_tenacity_takes_the_place_of_attempts() -> None:
    flaky = Flaky(9)
    with pytest.raises(Broken):
        await Retry(flaky, on=Broken, stop=tenacity.stop_after_attempt(5), wait=NO_WAIT)({})
    assert flaky.calls == 5


async def test_cancelling_while_it_waits_ends_it_at_once(clock: Clock) -> None:
    flaky = Flaky(9)
    item = to_deferred(Retry(flaky, on=Broken, wait=tenacity.wait_fixed(5))({}))
    await until(clock.getDelayedCalls)
    item.cancel()
    with pytest.raises((CancelledError, asyncio.CancelledError)):
        await wait(item)
    await until(lambda: not clock.getDelayedCalls())
    assert flaky.calls == 1


async def test_extra_arguments_go_to_every_attempt() -> None:
    seen = []

    def fail_once(item: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        if len(seen) == 1:
            raise Broken
        return item

    await Retry(fail_once, on=Broken, wait=NO_WAIT)({}, "response", depth=1)
    assert seen == [(("response",), {"depth": 1})] * 2


async def test_an_attempt_that_is_pending_is_waited_for() -> None:
    held = Held()
    item = to_deferred(Retry(held, on=Broken, wait=NO_WAIT)({"a": 1}))
    await until(lambda: held.waiting)
    held.waiting.pop()[1].errback(Broken())
    await until(lambda: held.waiting)
    held.release()
    assert await wait(item) == {"a": 1}


@pytest.mark.no_runtime
def test_what_the_docstring_says_of_download_time_outs_is_true() -> None:
    for error in (DownloadTimeoutError, twisted.internet.error.TimeoutError):
        assert not issubclass(error, TimeoutError)
        assert f"{error.__module__}.{error.__name__}" in str(Retry.__doc__)


@pytest.mark.no_runtime
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "on= is required"),
        ({"on": "ValueError"}, "on='ValueError'"),
        ({"on": ()}, "on=\\(\\)"),
        ({"on": (ValueError, 3)}, "exception class, a tuple of them"),
        ({"on": int}, "exception class"),
        ({"on": Broken, "attempts": 0}, "attempts=0.*1 or more"),
        ({"on": Broken, "attempts": True}, "attempts=True"),
        ({"on": Broken, "attempts": 2.0}, "attempts=2.0"),
        ({"on": Broken, "wait": 5}, "wait=5.*tenacity.wait_fixed"),
        ({"on": Broken, "stop": 5}, "stop=5.*tenacity.stop_after_delay"),
        ({"on": Broken, "attempts": 2, "stop": tenacity.stop_never}, "give one of the two"),
    ],
)
def test_wrong_arguments_fail_when_it_is_built(arguments: Any, message: str) -> None:
    with pytest.raises(StackConfigError, match=message):
        Retry(len, **arguments)
