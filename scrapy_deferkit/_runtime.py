"""The three runtimes, and the only module that knows them.

Scrapy runs on the asyncio reactor, on any other Twisted reactor, or on an event loop with no
reactor at all. Everything else in the package asks this module for time, threads, and the way
between Deferreds and awaitables.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from scrapy.utils.asyncio import call_later as scrapy_call_later
from scrapy.utils.asyncio import is_asyncio_available
from scrapy.utils.defer import deferred_from_coro, maybe_deferred_to_future
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator

_T = TypeVar("_T")

CANCELLED: tuple[type[BaseException], ...] = (asyncio.CancelledError, CancelledError)
"""What cancellation looks like, whichever runtime it comes from."""


monotonic = time.monotonic


class Clock(Protocol):
    """Time, as Twisted's ``IReactorTime`` has it; tests put a ``twisted.internet.task.Clock``."""

    def seconds(self) -> float:
        """Give the time, in seconds from some point."""

    def callLater(self, delay: float, callable: Callable[[], object]) -> Any:  # noqa: N802
        """Call *callable* after *delay* seconds; give what has a ``cancel()``."""


class _SystemClock:
    def seconds(self) -> float:
        return monotonic()

    def callLater(self, delay: float, callable: Callable[[], object]) -> Any:  # noqa: N802
        return scrapy_call_later(delay, callable)


_clock: Clock = _SystemClock()


@contextmanager
def clock_set_to(clock: Clock) -> Iterator[None]:
    """Let the package take its time from *clock* while the block runs."""
    global _clock  # noqa: PLW0603
    before, _clock = _clock, clock
    try:
        yield
    finally:
        _clock = before


def now() -> float:
    """Give the time of the clock, in seconds: good for differences only."""
    return _clock.seconds()


class Timer:
    """A call of *function* in *delay* seconds, which may be cancelled at any time."""

    def __init__(self, delay: float, function: Callable[[], object]) -> None:
        self._function: Callable[[], object] | None = function
        self._call = _clock.callLater(delay, self._fire)

    def _fire(self) -> None:
        function, self._function = self._function, None
        if function is not None:
            function()

    def cancel(self) -> None:
        """Call nothing; does nothing where the call is made."""
        if self._function is not None:
            self._function = None
            self._call.cancel()


class Repeated:
    """A call of *function* every *interval* seconds, until it is cancelled."""

    def __init__(self, interval: float, function: Callable[[], object]) -> None:
        self._interval = interval
        self._function = function
        self._timer = Timer(interval, self._call)

    def _call(self) -> None:
        self._timer = Timer(self._interval, self._call)
        self._function()

    def cancel(self) -> None:
        """Call no more."""
        self._timer.cancel()


async def sleep(seconds: float) -> None:
    """Wait for *seconds* of the clock; cancelled, it leaves no timer behind."""
    if seconds <= 0:
        await turn()
        return
    over: Deferred[None] = Deferred(lambda _: timer.cancel())
    timer = Timer(seconds, lambda: over.callback(None))
    try:
        await to_awaitable(over)
    finally:
        timer.cancel()


def uses_asyncio() -> bool | None:
    """Tell whether coroutines await Futures (``True``) or Deferreds (``False``) here.

    ``None`` where neither a reactor is installed nor an event loop is running.
    """
    try:
        return is_asyncio_available()
    except RuntimeError:
        return None


def is_asked_for(cancellation: BaseException) -> bool:
    """Tell whether *cancellation*, just caught, may be meant for what runs here.

    Only asyncio can tell, from Python 3.11 on: a ``CancelledError`` in a task that nobody has
    cancelled comes from something that the task was waiting for.
    """
    if not isinstance(cancellation, asyncio.CancelledError):
        return True
    if not uses_asyncio():
        return False  # there, nobody is cancelled so
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is None or cancelling() > 0


def to_deferred(awaitable: Awaitable[_T]) -> Deferred[_T]:
    """Start *awaitable* and give a Deferred of its result; a Deferred is given back as it is.

    With no event loop and no reactor, awaitables that wait for Deferreds alone still work.
    """
    if isinstance(awaitable, Deferred):
        return awaitable
    if uses_asyncio():
        return deferred_from_coro(awaitable)
    return Deferred.fromCoroutine(_await(awaitable))


async def _await(awaitable: Awaitable[_T]) -> _T:
    return await awaitable


def to_awaitable(deferred: Deferred[_T]) -> Awaitable[_T]:
    """Give *deferred* in the form that a coroutine can await on this runtime."""
    if uses_asyncio() is None:
        return deferred
    return maybe_deferred_to_future(deferred)


def call_soon(function: Callable[[], object]) -> Any:
    """Call *function* on a later turn of the loop; give what has a ``cancel()``."""
    return scrapy_call_later(0, function)


async def turn() -> None:
    """Let the loop have a turn; with no loop there is nothing to wait for."""
    if uses_asyncio() is None:
        return
    passed: Deferred[None] = Deferred()
    call_soon(lambda: passed.callback(None))
    await to_awaitable(passed)


def begin(coroutine: Coroutine[Any, Any, None]) -> Any:
    """Run *coroutine* beside what is running now; return what has a ``cancel()``.

    That is a task on asyncio. Elsewhere it is a Deferred, and the coroutine has begun.
    """
    if uses_asyncio():
        return asyncio.ensure_future(coroutine)
    return Deferred.fromCoroutine(coroutine)


async def until_begun() -> None:
    """Let the coroutines begin that were given to :func:`begin`, on asyncio."""
    await asyncio.sleep(0)


def spawn(awaitable: Awaitable[Any], on_error: Callable[[Any], object]) -> None:
    """Run *awaitable* beside what is running now; a Failure of it goes to *on_error*."""
    to_deferred(awaitable).addErrback(on_error)


class WorkerThread:
    """A thread of its own for calls that block, made one after the other."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    def call(self, function: Callable[..., _T], *args: Any) -> Deferred[_T]:
        """Call *function* in the thread; give a Deferred of its result.

        What has begun in a thread cannot be stopped: cancelled, the Deferred fails at once and the
        call goes on unheard.
        """
        done: Deferred[_T] = Deferred(lambda _: None)
        call_in_loop = _way_back()

        def deliver(outcome: Any) -> None:
            if not done.called:
                done.callback(outcome)

        def run() -> None:
            try:
                outcome: Any = function(*args)
            except BaseException:
                outcome = Failure()
            try:
                call_in_loop(deliver, outcome)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

        self._executor.submit(run)
        return done

    def close(self) -> None:
        """Take no further calls; those that wait are still made."""
        self._executor.shutdown(wait=False)


def _way_back() -> Callable[..., object]:
    """Give what calls a function in the loop from another thread."""
    if uses_asyncio():
        return asyncio.get_running_loop().call_soon_threadsafe
    from twisted.internet import reactor

    return reactor.callFromThread  # type: ignore[no-any-return]


class Latch:
    """What many coroutines wait for together, each as the runtime wants it; it opens once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop() if uses_asyncio() else None
        self._waiting: list[Any] = []

    def wait(self) -> Awaitable[None]:
        """Give what one coroutine awaits; cancelling that cancels nobody else's."""
        waiting: Any = (
            Deferred(lambda _: None) if self._loop is None else self._loop.create_future()
        )
        self._waiting.append(waiting)
        return waiting  # type: ignore[no-any-return]

    def open(self) -> None:
        """Let all go on."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if isinstance(each, Deferred):
                if not each.called:
                    each.callback(None)
            elif not each.done():
                each.set_result(None)


class Started:
    """What is left of *coroutine*, which was started by hand and gave *waiting*; await it.

    The one who cancels it need not be the one who awaits it. It is cancelled as its runtime does
    that: the task that awaits it is, or the Deferred that it waits for.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Any], waiting: Any) -> None:
        self.coroutine = coroutine
        self._waiting = waiting
        self._task: Any = asyncio.current_task() if uses_asyncio() else None
        self._cancellations = 0
        self._is_given_up = False

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[Any], Any]
        try:
            while True:
                try:
                    result = yield self._waiting
                except GeneratorExit:
                    self.coroutine.close()
                    raise
                except BaseException as error:
                    if self._is_given_up:
                        self._close()
                        raise
                    resume, result = self.coroutine.throw, error
                else:
                    resume = self.coroutine.send
                try:
                    self._waiting = resume(result)
                except StopIteration as done:
                    return done.value
        finally:
            if hasattr(self._task, "uncancel"):  # from Python 3.11 on
                for _ in range(self._cancellations):
                    self._task.uncancel()

    def _close(self) -> None:
        # One that goes on waiting even so raises RuntimeError; nobody drives it any more.
        with suppress(RuntimeError):
            self.coroutine.close()

    def cancel(self) -> None:
        """Cancel it where it waits; it may still do what it wants."""
        if self._task is not None:
            self._cancellations += 1
            self._task.cancel()
        else:
            self._waiting.cancel()

    def give_up(self) -> None:
        """Cancel it again and end it there, whatever it does: who awaits it goes on."""
        self._is_given_up = True
        self.cancel()


def is_awaitable(value: object) -> bool:
    """Tell whether *value* can be awaited (a generator-based coroutine included)."""
    return inspect.isawaitable(value)
