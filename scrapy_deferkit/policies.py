"""Policies: what a processor does when the world misbehaves.

Each wraps processors and is a processor, so they nest anywhere:
``Retry(Timeout(fetch, 5), on=StepTimeout)`` gives each attempt 5 seconds,
``Timeout(Retry(fetch, on=OSError), 5)`` gives them 5 seconds together.
"""

from __future__ import annotations

import logging
from calendar import timegm
from dataclasses import dataclass
from email.utils import parsedate_tz
from time import time
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.python.failure import Failure

from ._bucket import TokenBucket
from ._engine import (
    Gate,
    cancel_once,
    forget_waits_below,
    granted,
    is_pending,
    not_stopping,
    note_wait,
    resolve,
    settled,
)
from ._imports import import_in_thread
from ._runtime import CANCELLED, Timer, monotonic, now, sleep, to_deferred
from ._stack import (
    PASSING,
    Policy,
    Stack,
    cancelled_from_within,
    check_function,
    is_number_above_zero,
    naming,
    refuse_passing,
)
from .exceptions import StackConfigError, StepTimeout, add_notes, counted, repr_of, step_of
from .merge import copy_item
from .processor import refuse_unless_taking

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity import RetryCallState
    from tenacity.stop import stop_base
    from tenacity.wait import wait_base

_T = TypeVar("_T")


class Retry(Policy):
    """Call *processor* again when it fails.

    *on* says which failures: an exception class, a tuple of them, or a predicate of the
    exception. There are *attempts* in all; between them it waits as *wait* says, by default
    exponentially longer, with jitter. *wait* and *stop* take any of tenacity's; *stop* takes the
    place of *attempts*. An exception with an attribute ``retry_after`` asks for a wait of its own:
    seconds, or text as in the HTTP header, seconds or a date.

    Each attempt gets a fresh copy of the item, made by *copy*. What gives up raises the last
    failure, with the attempts in its notes. Counted are ``retried`` and ``gave_up``.

    Mind that the time-outs of Scrapy's downloads are no ``TimeoutError``: they are
    :exc:`scrapy.exceptions.DownloadTimeoutError`, and Twisted's own, which other download handlers
    and clients raise, are :exc:`twisted.internet.error.TimeoutError`, which is none either.

    The default wait is truncated exponential back-off from half a second up to a minute, with up
    to a second of jitter, as in Google's "Exponential backoff" for its cloud storage.
    """

    def __init__(
        self,
        processor: Any,
        *,
        on: type[Exception]
        | tuple[type[Exception], ...]
        | Callable[[Exception], bool]
        | None = None,
        attempts: int | None = None,
        wait: wait_base | None = None,
        stop: stop_base | None = None,
        copy: Callable[[Any], Any] = copy_item,
        name: str | None = None,
    ) -> None:
        if on is None:
            raise StackConfigError(
                "Retry: on= is required, since trying everything again hides mistakes; give the "
                "exceptions that may pass, as in Retry(fetch, on=(OSError, StepTimeout))"
            )
        if _is_exceptions(on):
            refuse_passing(on, "Retry")
        elif not isinstance(on, (type, tuple)) and callable(on):
            meaning = "a predicate is a function of the exception"
            check_function(on, "Retry: on", meaning, of="exception")
        if not _is_exceptions(on) and (isinstance(on, (type, tuple)) or not callable(on)):
            raise StackConfigError(
                f"Retry(on={on!r}): on= is an exception class, a tuple of them, or a function "
                "that tells whether to try again after an exception"
            )
        if attempts is not None and stop is not None:
            raise StackConfigError("Retry(attempts=..., stop=...): give one of the two")
        if attempts is not None and (type(attempts) is not int or attempts < 1):
            raise StackConfigError(
                f"Retry(attempts={attempts!r}): attempts is the number of calls in all, 1 or more"
            )
        for argument, value in (("wait", wait), ("stop", stop)):
            if value is not None and (not callable(value) or isinstance(value, type)):
                raise StackConfigError(
                    f"Retry({argument}={value!r}): {argument}= is one of tenacity's, such as "
                    f"tenacity.{argument}_{'fixed(2)' if argument == 'wait' else 'after_delay(60)'}"
                )
            if value is not None:
                refuse_unless_taking(value, ("retry_state",), f"Retry: {argument}")
        self._on: Any = on
        self._attempts = 3 if attempts is None else attempts
        self._wait = wait
        self._stop = stop
        check_function(copy, "Retry: copy", "copy= is a function of the item")
        self._copy = copy
        super().__init__([processor], name)

    async def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._require_ready()
        began = monotonic()
        attempt_item = self._own("copy", self._copy, item)
        try:
            return await self._run(attempt_item, *args, **kwargs)
        except Exception as error:
            if not self._is_retried(error):
                raise
            first: list[Exception] = [error]
        return await self._again(first, monotonic() - began, item, args, kwargs)

    def _is_retried(self, error: BaseException) -> bool:
        if isinstance(error, PASSING) or not isinstance(error, Exception):
            return False
        if _is_exceptions(self._on):
            return isinstance(error, self._on)
        try:
            return bool(self._on(error))
        except Exception as own:
            self._note_own(error, "on", own)
            return False

    def _note_own(self, error: BaseException, argument: str, own: Exception) -> None:
        note = f"{self.path}: the function {argument}= failed on it: {repr_of(own)}"
        add_notes(error, [note])

    def _guarded(
        self, argument: str, function: Callable[[RetryCallState], _T]
    ) -> Callable[[RetryCallState], _T]:
        """Let the failure of the step be raised if *function*, tenacity's or not, fails."""

        def call(state: RetryCallState) -> _T:
            try:
                return function(state)
            except Exception as own:
                assert state.outcome is not None
                error = state.outcome.exception()
                assert error is not None
                self._note_own(error, argument, own)
                raise error from own

        return call

    async def _again(
        self, first: list[Exception], elapsed: float, item: Any, args: Any, kwargs: Any
    ) -> Any:
        """Let tenacity go on after the *first* attempt, which has failed, and took *elapsed* s."""
        await import_in_thread("tenacity")
        import tenacity

        def count_first_attempt_in(state: RetryCallState) -> None:
            if state.attempt_number == 1:
                state.start_time -= elapsed

        failures: list[BaseException] = []

        async def attempt() -> Any:
            try:
                if first:
                    raise first.pop()
                self._count("retried")
                return await self._run(self._own("copy", self._copy, item), *args, **kwargs)
            except Exception as error:
                failures.append(error)
                raise

        retrying = tenacity.AsyncRetrying(
            sleep=sleep,
            before=count_first_attempt_in,
            stop=self._guarded("stop", self._stop or tenacity.stop_after_attempt(self._attempts)),
            wait=self._guarded("wait", _waiting(self._wait or _default_wait())),
            retry=tenacity.retry_if_exception(self._is_retried),
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except Exception as error:
            if self._is_retried(error):
                self._count("gave_up")
            earlier = [it for it in failures[:-1] if it is not error]
            add_notes(
                error,
                [
                    f"Attempt {number} failed with {repr_of(failure)}"
                    for number, failure in enumerate(earlier, start=1)
                ]
                + [f"{self.path} ended after {counted(len(failures), 'attempt')}"],
            )
            raise


def _is_exceptions(on: Any) -> bool:
    classes = on if isinstance(on, tuple) else (on,)
    return bool(classes) and all(
        isinstance(each, type) and issubclass(each, BaseException) for each in classes
    )


def _default_wait() -> wait_base:
    import tenacity

    return tenacity.wait_exponential(multiplier=0.5, max=60) + tenacity.wait_random(0, 1)


def _waiting(wait: Callable[[RetryCallState], float]) -> Callable[[RetryCallState], float]:
    def seconds(state: RetryCallState) -> float:
        wanted = _retry_after(state.outcome.exception() if state.outcome is not None else None)
        return wait(state) if wanted is None else wanted

    return seconds


def _retry_after(error: BaseException | None) -> float | None:
    """Return the seconds that *error* asks for in ``retry_after``: as a number, or as HTTP does."""
    try:
        wanted: Any = getattr(error, "retry_after", None)
        if isinstance(wanted, bytes):
            wanted = wanted.decode()
        if isinstance(wanted, str):
            date = parsedate_tz(wanted)
            if date is None:
                wanted = float(wanted)
            else:  # unlike mktime_tz(): a date of HTTP is GMT, whether it says so or not
                wanted = max(0, timegm(date[:9]) - (date[9] or 0) - time())
        return float(wanted) if is_number_above_zero(wanted) or wanted == 0 else None
    except Exception:  # of a property, or of text that is neither
        return None


class Timeout(Policy):
    """Give *processor* so many *seconds*, then cancel it and fail with ``StepTimeout``.

    After the cancellation it has *grace* seconds to come to its end; the item fails in either
    case, and a processor that would not end is named in the log and counted as ``stuck``.
    Counted are ``timed_out`` too.

    A plain function that blocks cannot be cut short: while it runs, no timer does. Such work
    belongs off the event loop, into a thread or a process.
    """

    def __init__(
        self, processor: Any, seconds: float, *, grace: float = 1.0, name: str | None = None
    ) -> None:
        for argument, value in (("seconds", seconds), ("grace", grace)):
            if not is_number_above_zero(value):
                raise StackConfigError(
                    f"Timeout({argument}={value!r}): {argument} is a number above 0"
                )
        self._seconds = seconds
        self._grace = grace
        super().__init__([processor], name)

    async def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._require_ready()
        try:
            result = self._step.call(item, *args, **kwargs)
            if is_pending(result):
                forget = note_wait(self._calls)
                try:
                    result = await self._within_time(to_deferred(result), item, args)
                finally:
                    if forget is not None:
                        forget(None)
            if isinstance(result, Failure):
                result.raiseException()
            if result is None:
                raise self.nothing_returned(self._step.name)
        except StopIteration as stop:
            stopped = not_stopping(stop)
            self._mark(self._step, stopped)
            raise stopped from stop
        except Exception as error:
            self._mark(self._step, error)
            raise
        return result

    async def _within_time(self, work: Deferred[Any], item: Any, args: Any) -> Any:
        outcome: list[Any] = []
        gate = Gate([work])
        work.addBoth(outcome.append).addBoth(gate.open)
        timers: list[Timer] = []
        is_over = False

        def expire() -> None:
            nonlocal is_over
            is_over = True
            timers.append(Timer(self._grace, gate.open))
            cancel_once(work)

        timers.append(Timer(self._seconds, expire))
        try:
            await resolve(gate.deferred)
        except GeneratorExit:  # nothing can be waited for any more
            raise
        except BaseException:
            await self._end(work)
            raise
        finally:
            for timer in timers:
                timer.cancel()
        if not is_over:
            result = outcome[0]
            if isinstance(result, Failure) and result.check(*CANCELLED):
                raise cancelled_from_within(result.value)
            return result
        self._count("timed_out")
        path = f"{self.path}/{self._step.name}"
        if not outcome:
            self._count("stuck")
            forget_waits_below(path)
            self._log(
                logging.ERROR,
                "%s was cancelled after %g s and has not ended %g s later, with %s; its result is "
                "ignored",
                self._step.name,
                self._seconds,
                self._grace,
                naming(item, args),
            )
        raise StepTimeout(path, self._seconds)

    async def _end(self, work: Deferred[Any]) -> None:
        """Cancel *work*, and give it its grace to come to an end."""
        ended = Gate([])
        work.addBoth(ended.open)
        cancel_once(work)
        timer = Timer(self._grace, ended.open)
        try:
            await resolve(ended.deferred)
        finally:
            timer.cancel()


class Fallback(Stack):
    """Call the first of *processors*, and the next one where it fails; the first success counts.

    Each gets a fresh copy of the item, made by *copy*. When all fail, the last failure is raised,
    with the others in its notes. Counted is ``fell_back``, once for each item that needed it.
    """

    def __init__(
        self,
        *processors: Any,
        copy: Callable[[Any], Any] = copy_item,
        name: str | None = None,
    ) -> None:
        if len(processors) < 2:
            raise StackConfigError(
                f"Fallback takes two processors or more, the first to be tried first; got "
                f"{len(processors)}"
            )
        check_function(copy, "Fallback: copy", "copy= is a function of the item")
        self._copy = copy
        super().__init__(processors, name)

    def _arrange(self) -> None:
        self._runners = [self._runner(step) for step in self.steps or ()]

    async def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.steps is None:
            raise self._not_ready()
        failures: list[Exception] = []
        for run in self._runners:
            try:
                return await run(self._own("copy", self._copy, item), *args, **kwargs)
            except PASSING:
                raise
            except Exception as error:
                if not failures:
                    self._count("fell_back")
                failures.append(error)
        last = failures.pop()
        notes = [f"Before, {step_of(error)} failed: {repr_of(error)}" for error in failures]
        add_notes(last, notes)
        raise last


_INTERVAL = 60.0
"""Seconds between two log lines on failures of one kind."""

_MOST_KINDS = 100


@dataclass
class _Repeats:
    """The failures of one kind that have not been logged *since* a time."""

    since: float
    number: int = 0
    last: str = ""
    """The item of the last one."""


class Tap(Policy):
    """Call *processor* for its side effect, with a copy of the item, and go on with the item.

    What it returns is ignored. A failure is logged, counted as ``tap_failed``, and goes no
    further; ``DropItem`` still drops the item. The first failure of each kind (its type and its
    step) is logged with its traceback, the others as a number, once a minute and at the end.
    """

    needs_results = False

    def __init__(
        self,
        processor: Any,
        *,
        copy: Callable[[Any], Any] = copy_item,
        name: str | None = None,
    ) -> None:
        check_function(copy, "Tap: copy", "copy= is a function of the item")
        self._copy = copy
        super().__init__([processor], name)

    def _begin(self) -> None:
        self._repeats: dict[Any, _Repeats] = {}

    async def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._require_ready()
        copied = self._own("copy", self._copy, item)
        try:
            await self._tell(copied, args, kwargs)
        except PASSING as passing:
            if isinstance(passing, Exception):
                self._mark(self._step, passing)
            raise
        except Exception as error:
            self._mark(self._step, error)
            self._count("tap_failed")
            self._log_failed(error, naming(item, args))
        return item

    def _log_failed(self, error: Exception, item: str) -> None:
        kind = type(error).__name__, step_of(error)
        if kind not in self._repeats and len(self._repeats) >= _MOST_KINDS:
            kind = "errors of other kinds", None
        repeats = self._repeats.get(kind)
        if repeats is None:
            self._repeats[kind] = _Repeats(now())
            message = "%s failed; %s goes on"
            self._log(logging.ERROR, message, self._step.name, item, exc_info=error)
            return
        repeats.number += 1
        repeats.last = item
        if now() - repeats.since >= _INTERVAL:
            self._log_repeats(kind[0], repeats)

    def _log_repeats(self, kind: str, repeats: _Repeats) -> None:
        if repeats.number:
            self._log(
                logging.ERROR,
                "failures of %s with %s in the last %.0f s: %d, the last of %s; the items go on",
                self._step.name,
                kind,
                now() - repeats.since,
                repeats.number,
                repeats.last,
            )
        repeats.number, repeats.since = 0, now()

    async def close(self) -> None:
        """Close the processor, and log how many failures have not been."""
        try:
            await super().close()
        finally:
            if not self._opened:
                for (kind, _), repeats in self._repeats.items():
                    self._log_repeats(kind, repeats)

    async def _tell(self, item: Any, args: Any, kwargs: Any) -> None:
        result = self._step.call(item, *args, **kwargs)
        if is_pending(result):
            # Apart from this coroutine: a cancellation from within is a failure, not the item's.
            forget = note_wait(self._calls)
            try:
                result = await settled(to_deferred(result))
            finally:
                if forget is not None:
                    forget(None)
            if isinstance(result, Failure) and result.check(*CANCELLED):
                raise cancelled_from_within(result.value)
        await resolve(result)


class Limit(Policy):
    """Bound the calls of *processor*: so many at once, and so many per second, crawl-wide.

    Calls wait their turn in the order in which they came. *per_second* is a token bucket that
    holds as many tokens as one second brings, at least one (Turner, "New directions in
    communications", 1986). One ``Limit`` object, wherever it stands in a crawl, is one limit.
    Counted are calls that ``waited`` for others to end, and that the rate ``held_back``.
    """

    def __init__(
        self,
        processor: Any,
        concurrency: int | None = None,
        per_second: float | None = None,
        *,
        name: str | None = None,
    ) -> None:
        if concurrency is None and per_second is None:
            raise StackConfigError("Limit: give concurrency=, per_second=, or both")
        if concurrency is not None and (type(concurrency) is not int or concurrency < 1):
            raise StackConfigError(
                f"Limit(concurrency={concurrency!r}): concurrency is the number of calls at once, "
                "1 or more"
            )
        if per_second is not None and not is_number_above_zero(per_second):
            raise StackConfigError(
                f"Limit(per_second={per_second!r}): per_second is a number above 0, such as 0.5"
            )
        self._concurrency = concurrency
        self._per_second = per_second
        super().__init__([processor], name)

    def _begin(self) -> None:
        self._slots = DeferredSemaphore(self._concurrency) if self._concurrency else None
        self._bucket = TokenBucket(self._per_second) if self._per_second else None

    async def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._require_ready()
        slots, bucket = self._slots, self._bucket
        if slots is not None:
            if slots.tokens:
                slots.tokens -= 1
            else:
                self._count("waited")
                await granted(slots.acquire(), slots.release)
        try:
            if bucket is not None and not bucket.take():
                self._count("held_back")
                await granted(bucket.wait(), bucket.give_back)
            return await self._run(item, *args, **kwargs)
        finally:
            if slots is not None:
                slots.release()
