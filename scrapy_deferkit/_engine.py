"""The engine: chaining, errbacks, fan-out and bounded iteration, written once.

A value that is not pending goes straight on: no Deferred, no task, no turn of the loop. What is
pending is waited for in one of two ways. A function that is called ``start_...`` returns a Deferred
and becomes Twisted's own formulation there; its namesake is a coroutine that awaits. An iteration
has a *face* for that:

* ``COROUTINE`` awaits coroutines as they are, and Deferreds as the runtime wants them;
* ``DeferredFace`` waits for Deferreds alone, so :func:`start` can run the coroutine up to its first
  wait and needs no event loop where there are only Deferreds.
"""

from __future__ import annotations

import sys
import types
from contextvars import ContextVar
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from weakref import WeakSet

from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredQueue,
    DeferredSemaphore,
    fail,
    succeed,
)
from twisted.python.failure import Failure

from ._runtime import (
    CANCELLED,
    begin,
    call_soon,
    is_awaitable,
    monotonic,
    to_awaitable,
    to_deferred,
    turn,
    until_begun,
    uses_asyncio,
)

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Coroutine,
        Iterable,
        Iterator,
    )

    Callback = Callable[..., Any]
    Pair = tuple[Callback | None, Callback | None]

# What a value means to the engine. Falsy: an ordinary value. From _GENERATOR on: perhaps pending.
_VALUE, _NOTHING, _FAILURE, _GENERATOR, _PENDING = range(5)


# The kind of each type met so far. An exact dict, and looked up in place: that is a fifth of what
# a step costs.
_KINDS: dict[type, int] = {}

_COROUTINE = types.CoroutineType


def _learn(cls: type) -> int:
    """Find out the kind of *cls*, and keep it; no more types are kept than a crawl has."""
    if len(_KINDS) >= 1024:
        _KINDS.clear()
    if cls is type(None):
        kind = _NOTHING
    elif issubclass(cls, Failure):
        kind = _FAILURE
    elif issubclass(cls, types.GeneratorType):
        kind = _GENERATOR
    else:
        kind = _PENDING if hasattr(cls, "__await__") else _VALUE
    _KINDS[cls] = kind
    return kind


def _kind_of(value: object) -> int:
    try:
        return _KINDS[type(value)]
    except KeyError:
        return _learn(type(value))


def is_special(value: object) -> bool:
    """Check whether *value* may be pending, is a Failure, or is ``None``."""
    try:
        return _KINDS[type(value)] != _VALUE
    except KeyError:
        return _learn(type(value)) != _VALUE


def is_pending(value: object) -> bool:
    """Tell whether *value* stands for a result that is awaited: a Deferred or any awaitable."""
    try:
        kind = _KINDS[type(value)]
    except KeyError:
        kind = _learn(type(value))
    return kind == _PENDING or (kind == _GENERATOR and is_awaitable(value))


class Steps(tuple["Callback", ...]):  # noqa: SLOT001 - what it stands for hangs on it
    """Callbacks that must each return something, and that learn which of them failed."""

    def failed(self, position: int, error: Exception) -> None:
        """Take note that the step at *position* raised *error*."""
        raise NotImplementedError

    def nothing_returned(self, position: int) -> Exception:
        """Give the exception for the step at *position*, which returned ``None``."""
        raise NotImplementedError

    def path_of(self, position: int) -> str:
        """Give the path of the step at *position*."""
        raise NotImplementedError


class Face(Protocol):
    """How a pending value is waited for."""

    @property
    def is_cancelled(self) -> bool:
        """Whether what runs has been cancelled, and goes no further."""
        ...

    def wait(self, pending: Any) -> Awaitable[Any]:
        """Give what the engine awaits for *pending*: its result, or a Failure."""

    def turn(self) -> Awaitable[Any]:
        """Return what the engine awaits to let the loop have a turn."""

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> Any:
        """Run *coroutine*, which waits through this face, beside what runs now."""


class _CoroutineFace:
    is_cancelled = False  # its cancellation is an exception where it waits

    def wait(self, pending: Any) -> Awaitable[Any]:
        if type(pending) is _COROUTINE or not isinstance(pending, Deferred):
            return pending
        return _settle(pending, to_awaitable)

    def turn(self) -> Awaitable[Any]:
        return turn()

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> Any:
        return begin(coroutine)


class DeferredFace:
    """Waits for Deferreds alone; made anew for each run, which :func:`start` starts."""

    is_cancelled = False

    def wait(self, pending: Any) -> Awaitable[Any]:
        """Wait for *pending*; cancel it where its own callback has cancelled what runs."""
        deferred: Deferred[Any] = to_deferred(pending)
        if self.is_cancelled:
            deferred.cancel()
        return _settle(deferred, _as_it_is)

    def turn(self) -> Awaitable[Any]:
        passed: Deferred[None] = Deferred()
        call_soon(lambda: passed.callback(None))
        if self.is_cancelled:
            passed.cancel()
        return passed

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> Any:
        return Deferred.fromCoroutine(coroutine)


COROUTINE: Face = _CoroutineFace()


def _as_it_is(deferred: Deferred[Any]) -> Awaitable[Any]:
    return deferred


async def _settle(deferred: Deferred[Any], awaitable: Callable[[Deferred[Any]], Any]) -> Any:
    """Wait for *deferred*; give its result, a Failure as the object that it is."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    if not results:
        # Not the Deferred itself: it may be in the middle of its callbacks, and of this one.
        gate = Gate([deferred])
        deferred.addBoth(gate.open)
        await awaitable(gate.deferred)
    return results[0]


async def settled(deferred: Deferred[Any]) -> Any:
    """Wait for *deferred* from a coroutine; give its result, or its Failure without raising it."""
    return await _settle(deferred, to_awaitable)


def start(function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Deferred[Any]:
    """Run the coroutine ``function(*args, face)`` until it waits; give a Deferred of its result.

    Where nothing is pending, the Deferred has already fired. Cancelling it cancels what the
    coroutine waits for, runs nothing further, and fails with Twisted's ``CancelledError``.
    """
    face = DeferredFace()
    coroutine = function(*args, face)
    try:
        waiting = coroutine.send(None)
    except StopIteration as done:
        return succeed(done.value)
    return _rest(coroutine, waiting, face)


def _rest(
    coroutine: Coroutine[Any, Any, Any], waiting: Deferred[Any], face: DeferredFace
) -> Deferred[Any]:
    async def go_on() -> Any:
        nonlocal waiting
        while True:
            try:
                await waiting  # it fails only when it is cancelled
            except CancelledError:
                coroutine.close()
                raise
            try:
                waiting = coroutine.send(None)
            except StopIteration as done:
                return done.value

    def deliver(outcome: Any) -> None:
        if not result.called:
            result.callback(outcome)

    def cancel(_: Deferred[Any]) -> None:
        face.is_cancelled = True
        waiting.cancel()

    result: Deferred[Any] = Deferred(cancel)
    Deferred.fromCoroutine(go_on()).addBoth(deliver)
    return result


def advance(
    left: Iterator[Callback], value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, int]:
    """Call one callback after the other while they return ordinary values, each with the last one.

    Gives the last result and its kind: falsy when all that was *left* has been called.
    """
    extra = bool(args or kwargs)
    for callback in left:
        value = callback(value, *args, **kwargs) if extra else callback(value)
        try:
            kind = _KINDS[type(value)]
        except KeyError:
            kind = _learn(type(value))
        if kind:
            return value, kind
    return value, _VALUE


def start_chain(
    callbacks: tuple[Callback, ...], value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Deferred[Any]:
    """Call one callback after the other, each with the result of the one before it.

    The formulation is a Deferred with ``addCallback``: a Failure, given or returned, ends it. With
    the first result that is pending it becomes one.
    """
    if isinstance(value, Failure):
        return fail(value)
    left = iter(callbacks)
    kind = _NOTHING
    try:
        while kind:
            value, kind = advance(left, value, args, kwargs)
            if kind == _FAILURE:
                return fail(value)
            if kind == _PENDING or (kind == _GENERATOR and is_awaitable(value)):
                return Chained(value, ((callback, None) for callback in left), args, kwargs)
    except BaseException:
        return fail(Failure())
    return succeed(value)


async def chain(
    callbacks: tuple[Callback, ...],
    value: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    left: Iterator[Callback] | None = None,
    nothing_returned: Callable[[], Exception] | None = None,
) -> Any:
    """Do as :func:`start_chain` does, in a coroutine.

    With *left*, *value* is what the last callback gave, and those in it have not been called. With
    *nothing_returned*, a callback that returns ``None`` fails with what that returns.
    """
    forget: Callback | None = None
    kind = _VALUE
    if left is not None:
        kind = _kind_of(value)
    elif isinstance(value, Failure):
        return _raised(value)
    else:
        left = iter(callbacks)
    try:
        while True:
            if not kind:
                value, kind = advance(left, value, args, kwargs)
                if not kind:
                    return value
            while kind == _PENDING or (kind == _GENERATOR and is_awaitable(value)):
                if forget is None and isinstance(callbacks, Steps):
                    forget = note_wait(callbacks, left)
                value = await COROUTINE.wait(value)
                kind = _KINDS[type(value)] if type(value) in _KINDS else _learn(type(value))
            if kind == _FAILURE:
                return _raised(value)
            if kind == _NOTHING and isinstance(callbacks, Steps):
                raise callbacks.nothing_returned(_position(callbacks, left))
            if kind == _NOTHING and nothing_returned is not None:
                raise nothing_returned()
            kind = _VALUE
    except StopIteration as stop:
        error = not_stopping(stop)
        if isinstance(callbacks, Steps):
            callbacks.failed(_position(callbacks, left), error)
        raise error from stop
    except Exception as error:
        if isinstance(callbacks, Steps):
            callbacks.failed(_position(callbacks, left), error)
        raise
    finally:
        if forget is not None:
            forget(None)


def resume(
    left: Iterator[Callback], value: Any, nothing_returned: Callable[[], Exception] | None = None
) -> Coroutine[Any, Any, Any]:
    """Wait for *value*, what :func:`advance` has returned, and call the callbacks that are *left*.

    Failures are raised; ``None`` is one too if *nothing_returned* tells which.
    """
    return chain((), value, (), {}, left, nothing_returned)


def _position(steps: Steps, left: Iterator[Callback]) -> int:
    """Tell which of *steps* was called last, where those in *left* have not been called."""
    return len(steps) - length_hint(left) - 1


Waits: TypeAlias = "dict[Iterator[Callback], Steps]"
"""The steps that an item waits in; the keys are the callbacks that have not been called."""

_waits: ContextVar[Waits | None] = ContextVar("deferkit_waits", default=None)


def watch_waits(waits: Waits | None) -> Waits | None:
    """Note in *waits* the steps that wait from now on in this context; return where they were."""
    before = _waits.get()
    _waits.set(waits)
    return before


def note_wait(steps: Steps, left: Iterator[Callback] | None = None) -> Callback | None:
    """Note that the last of *steps* but those *left* waits, if anybody watches.

    Returns what takes the note away, and passes a result on.
    """
    waits = _waits.get()
    if waits is None:
        return None
    key = iter(()) if left is None else left
    waits[key] = steps

    def forget(result: Any) -> Any:
        waits.pop(key, None)
        return result

    return forget


def forget_waits_below(path: str) -> None:
    """Forget the steps beneath *path* that wait: nobody waits for them any more."""
    waits = _waits.get() or {}
    for left, steps in tuple(waits.items()):
        if steps.path_of(_position(steps, left)).startswith(f"{path}/"):
            del waits[left]


def waiting_in(waits: Waits) -> str | None:
    """Return the paths of the innermost steps in *waits*, or ``None`` if there are none."""
    paths = dict.fromkeys(steps.path_of(_position(steps, left)) for left, steps in waits.items())
    return (
        ", ".join(
            path for path in paths if not any(other.startswith(f"{path}/") for other in paths)
        )
        or None
    )


def _raised(failure: Failure) -> Any:
    """Raise what *failure* holds, in a form that a coroutine may raise."""
    if isinstance(failure.value, StopIteration):
        raise not_stopping(failure.value) from failure.value
    failure.raiseException()


def not_stopping(_: StopIteration) -> RuntimeError:
    """Make an exception that a coroutine may raise of one that would end it."""
    return RuntimeError("a callback raised StopIteration (from a next() without a default?)")


def _advance_both(
    left: Iterator[Pair],
    value: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    passing: tuple[type[BaseException], ...] = (),
) -> tuple[Any, bool]:
    """Call the callback or the errback of each pair that is *left*; ``None`` passes through.

    Gives the last result, a Failure of what was raised but what is *passing*, and whether it is
    pending.
    """
    for callback, errback in left:
        handler = errback if isinstance(value, Failure) else callback
        if handler is None:
            continue
        try:
            value = handler(value, *args, **kwargs)
        except passing:
            raise
        except BaseException:
            value = Failure()
        if is_pending(value):
            return value, True
        _let_pass(value, passing)
    return value, False


def _let_pass(value: Any, passing: tuple[type[BaseException], ...]) -> None:
    """Raise *value* if it is a Failure of what is *passing*."""
    if passing and isinstance(value, Failure) and value.check(*passing):
        value.raiseException()


def start_chain_both(
    pairs: Iterable[Pair], value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Deferred[Any]:
    """Call the callback or the errback of one pair after the other; ``None`` passes through.

    The formulation is a Deferred with ``addCallbacks``: an errback handles failures of the pairs
    before its own. With the first result that is pending it becomes one.
    """
    left = iter(pairs)
    value, pending = _advance_both(left, value, args, kwargs)
    if pending:
        return Chained(value, left, args, kwargs)
    return fail(value) if isinstance(value, Failure) else succeed(value)


async def chain_both(
    pairs: Iterable[Pair], value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Do as :func:`start_chain_both` does, in a coroutine, whose cancellation no errback sees."""
    left = iter(pairs)
    while True:
        value, pending = _advance_both(left, value, args, kwargs, CANCELLED)
        if not pending:
            return _raised(value) if isinstance(value, Failure) else value
        while is_pending(value):
            try:
                value = await COROUTINE.wait(value)
            except GeneratorExit:
                raise
            except CANCELLED:
                raise
            except BaseException:
                value = Failure()
        _let_pass(value, CANCELLED)


def _as_deferred(pending: Any) -> Deferred[Any]:
    """Return a Deferred of what *pending* comes to; a coroutine may return what is pending, too."""
    return pending if isinstance(pending, Deferred) else to_deferred(resolve(pending))


class Chained(Deferred[Any]):
    """The Deferred of a chain that waits for *pending*, and then calls the *pairs* in turn.

    They are its own callbacks: Twisted runs chains of chains without recursion. Cancelled, it
    cancels what is outstanding, calls nothing further, and fails with ``CancelledError``.
    """

    def __init__(
        self, pending: Any, pairs: Iterable[Pair], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__()
        self._is_cancelled = False
        self._args, self._kwargs = args, kwargs
        self.addCallback(lambda _: self._begun(pending))
        for callback, errback in pairs:
            self.addCallbacks(
                self._call, self._call, callbackArgs=(callback,), errbackArgs=(errback,)
            )
        self.addBoth(self._end)
        self.callback(None)

    def cancel(self) -> None:
        """Cancel what is outstanding; nothing further is called."""
        self._is_cancelled = True
        super().cancel()

    def _call(self, value: Any, handler: Callback | None) -> Any:
        if self._is_cancelled:
            raise CancelledError
        if handler is None:
            return value
        result = handler(value, *self._args, **self._kwargs)
        return self._begun(result) if is_pending(result) else result

    def _begun(self, pending: Any) -> Deferred[Any]:
        deferred = _as_deferred(pending)
        if self._is_cancelled:  # by the handler that has begun it
            deferred.cancel()
        return deferred

    def _end(self, result: Any) -> Any:
        if self._is_cancelled and not (
            isinstance(result, Failure) and result.check(CancelledError)
        ):
            raise CancelledError
        return result


_cancelled: WeakSet[Deferred[Any]] = WeakSet()


def cancel_once(deferred: Deferred[Any]) -> None:
    """Cancel *deferred*, unless it has been: again, it would be disturbed while it cleans up."""
    if deferred not in _cancelled:
        _cancelled.add(deferred)
        deferred.cancel()


class Gate:
    """One Deferred for several that are pending: the first :meth:`open` fires it.

    Cancelling it cancels them all, and nothing that they then do can open it.
    """

    def __init__(self, pending: Iterable[Deferred[Any]]) -> None:
        self._pending = pending
        self._is_shut = False
        self.deferred: Deferred[Any] = Deferred(self._cancel)

    def open(self, result: Any = None) -> None:
        """Fire the Deferred with *result*, the first time."""
        if not self._is_shut:
            self._is_shut = True
            self.deferred.callback(result)

    def _cancel(self, _: Deferred[Any]) -> None:
        self._is_shut = True
        for deferred in tuple(self._pending):
            cancel_once(deferred)


def _call_each(
    callbacks: Iterable[Callback], value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], bool]:
    """Call every callback with *value*; give the outcomes, and whether any is no plain value.

    What was raised is a Failure, and what is pending a Deferred.
    """
    outcomes: list[Any] = []
    special = False
    for callback in callbacks:
        try:
            outcome = callback(value, *args, **kwargs)
        except BaseException:
            outcome = Failure()
        if _kind_of(outcome):
            special = True
            if is_pending(outcome):
                outcome = _as_deferred(outcome)
        outcomes.append(outcome)
    return outcomes, special


def start_fan_out(
    callbacks: tuple[Callback, ...], value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Deferred[Any]:
    """Call every callback with *value*; give the results in order, or the first failure.

    The formulation is a ``DeferredList`` with ``fireOnOneErrback`` and ``consumeErrors``: all are
    called, the first failure is delivered as itself, and the others go on unheard.
    """
    if isinstance(value, Failure):
        return fail(value) if callbacks else succeed([])
    outcomes, special = _call_each(callbacks, value, args, kwargs)
    if not special:
        return succeed(outcomes)
    if len(outcomes) == 1 and isinstance(outcomes[0], Deferred):  # as below, without recursion
        return Chained(outcomes[0], [(lambda result: [result], None)], (), {})
    return _all_or_first_failure(outcomes).addCallback(lambda failure: failure or outcomes)


async def fan_out(
    callbacks: tuple[Callback, ...], value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Do as :func:`start_fan_out` does, in a coroutine."""
    if isinstance(value, Failure):
        return _raised(value) if callbacks else []
    outcomes, special = _call_each(callbacks, value, args, kwargs)
    if special:
        failure = await COROUTINE.wait(_all_or_first_failure(outcomes))
        if failure is not None:
            return _raised(failure)
    return outcomes


def _all_or_first_failure(outcomes: list[Any]) -> Deferred[Failure | None]:
    """Put the results in the places of the Deferreds; fire with ``None``, or the first Failure."""
    special = [
        (index, it) for index, it in enumerate(outcomes) if isinstance(it, (Deferred, Failure))
    ]
    left = len(special)
    gate = Gate([it for _, it in special if isinstance(it, Deferred)])

    def settle(result: Any, index: int) -> None:
        nonlocal left
        outcomes[index] = result
        left -= 1
        if isinstance(result, Failure):
            gate.open(result)
        elif not left:
            gate.open()

    for index, outcome in special:
        if isinstance(outcome, Deferred):
            outcome.addBoth(settle, index)
        else:
            settle(outcome, index)
    if not special:
        gate.open()
    return gate.deferred


def shield(pending: Awaitable[Any]) -> Deferred[Any]:
    """Give a Deferred of *pending* whose cancellation does not reach it: it goes on unheard."""
    result: Deferred[Any] = Deferred(lambda _: None)

    def deliver(outcome: Any) -> None:
        if not result.called:
            result.callback(outcome)

    to_deferred(pending).addBoth(deliver)
    return result


async def granted(waiting: Deferred[Any], give_back: Callable[[], object]) -> None:
    """Wait for what *waiting* grants; cancelled when it has just been granted, give it back."""
    grants: list[bool] = []
    waiting.addCallback(lambda _: grants.append(True))
    try:
        await resolve(waiting)
    except BaseException:
        if grants:
            give_back()
        raise


async def cancel_and_wait(deferreds: Iterable[Deferred[Any]]) -> None:
    """Cancel *deferreds*, whose results are nobody's any more, and wait until all have ended."""
    cancelled = tuple(deferreds)
    for deferred in cancelled:
        cancel_once(deferred)
    for deferred in cancelled:
        await settled(deferred)


PASSED: Final = object()
"""What a call of an :class:`Iteration` returns to hand its element to who iterates."""

END: Final = object()
"""What :meth:`Iteration.next` returns when there is nothing more."""

_TURN: Final = object()
_SLICE = 0.01  # seconds after which the loop gets a turn


class _Worker:
    """What awaits one result of a call after the other, in a coroutine of its own."""

    __slots__ = ("coroutine", "element", "holds_lead", "pending", "running")

    coroutine: Any
    running: Any  # the task or Deferred that it runs in

    def __init__(self, element: Any, pending: Any) -> None:
        self.element = element
        self.pending = pending  # until it has begun
        self.holds_lead = False

    def cancel(self) -> None:
        """Cancel what it awaits; one that runs just now is cancelled when it waits."""
        if self.coroutine.cr_running:
            call_soon(self.cancel)
        elif self.pending is None and self.coroutine.cr_frame is not None:
            self.running.cancel()


class Iteration:
    """Calls of *call* over the elements of *source*, taken lazily, at most *count* outstanding.

    The *source* is any iterable or async iterable. Who awaits :meth:`next` takes the elements and
    calls, while results are plain values. With the first that is pending a worker begins, a task on
    asyncio: it awaits the result, and then takes the next element itself. Another one begins only
    if a result has been seen to suspend while there is room. Only one takes elements at a time.

    A *source* or a *call* that raises, and a pending result that fails, end the source; the error
    is raised when all that is outstanding has ended.

    Without *workers_lead*, only who awaits :meth:`next` takes elements: an async *source* is then
    iterated in one task. If it *is_detached*, what is outstanding goes on when that is cancelled.
    """

    def __init__(
        self,
        source: Any,
        count: int | None,
        call: Callable[[Any], Any],
        *,
        workers_lead: bool = True,
        is_detached: bool = False,
    ) -> None:
        self.count = sys.maxsize if count is None else count
        self._workers_lead = workers_lead
        self._is_detached = is_detached
        self.is_cancelled = False
        self._is_async = hasattr(source, "__aiter__")
        self._source: Any = aiter(source) if self._is_async else iter(source)
        self._call = call
        self._workers: dict[_Worker, None] = {}
        self._outstanding = 0
        self._ended = 0
        self._is_paused = False
        self._is_led = False  # somebody takes an element, or may go on to do so
        self._is_over = False
        self._element: Any = None  # what _end() is given for the last call
        self._passed: Any = END
        self._error: BaseException | None = None
        self._wake: Deferred[None] | None = None
        self._until = 0.0  # when the loop has to have a turn

    async def run(self, face: Face = COROUTINE) -> None:
        """Call *call* for every element, none of which is passed."""
        await self.next(face)

    async def next(self, face: Face = COROUTINE) -> Any:
        """Return the next element that *call* has passed, or ``END`` after all calls have ended.

        Cancelled, it cancels what is outstanding and waits until that has ended.
        """
        try:
            while True:
                if self._passed is not END:
                    if any(worker.pending is not None for worker in self._workers):
                        await until_begun()
                    passed, self._passed = self._passed, END
                    return passed
                if face.is_cancelled:
                    raise CancelledError
                if self._may_lead():
                    self._until = monotonic() + _SLICE
                    pending = await self._lead(face)
                    if pending is not None:
                        await self._begin(pending, face)
                elif self._workers or self._is_paused:
                    self._wake = Deferred()
                    await face.wait(self._wake)
                else:
                    break
        except BaseException as error:
            if self._is_detached:
                self.stop()
                raise
            self.cancel()
            if isinstance(error, GeneratorExit):  # nothing can be waited for any more
                raise
            for worker in tuple(self._workers):
                await settled(to_deferred(worker.running))
            raise
        failed_with, self._error = self._error, None
        if failed_with is not None:
            raise failed_with
        return END

    def stop(self) -> None:
        """Take nothing more; what is outstanding goes on."""
        self._is_over = True

    def pause(self) -> None:
        """Take nothing before :meth:`go_on` is called."""
        self._is_paused = True

    def go_on(self) -> None:
        """Take elements again."""
        self._is_paused = False
        self._wake_up()

    def cancel(self) -> None:
        """Cancel what is outstanding, and take nothing more."""
        self.is_cancelled = self._is_over = True
        for worker in tuple(self._workers):
            worker.cancel()

    def _fail(self, error: BaseException) -> None:
        """End the source, for *error*."""
        self._is_over = True
        if self._error is None:
            self._error = error

    def _has_room(self) -> bool:
        return not (self._is_over or self._is_paused) and self._outstanding < self.count

    def _may_lead(self) -> bool:
        return not self._is_led and self._passed is END and self._has_room()

    async def _lead(self, face: Face) -> Any:
        """Take elements and call until a result is pending; return that, or ``None``."""
        self._is_led = True
        elements: Any = self._source
        pending: Any = _TURN
        while pending is _TURN and self._has_room() and not face.is_cancelled:
            if monotonic() >= self._until:
                # Workers whose results come meanwhile go on, and may take the lead.
                self._is_led = is_alone = len(self._workers) <= 1
                await face.turn()
                if not (is_alone or self._may_lead()):
                    return None
                self._is_led = True
                self._until = monotonic() + _SLICE
            if self._is_async:
                elements = ()
                try:
                    if face is COROUTINE:
                        element = await anext(self._source)
                    elif isinstance(element := await face.wait(anext(self._source)), Failure):
                        element.raiseException()
                    if not self.is_cancelled:
                        elements = (element,)  # whatever has been stopped meanwhile
                except StopAsyncIteration:
                    self._is_over = True
                except GeneratorExit:
                    raise
                except CANCELLED:
                    raise
                except BaseException as error:
                    self._fail(error)
            pending = self._work_on(elements)
        self._is_led = False
        return None if pending is _TURN else pending

    def _work_on(self, elements: Any) -> Any:
        """Call for *elements* until a result is pending; return that.

        ``None`` if there is nothing more to be done, and ``_TURN`` if there may be: the loop has to
        have a turn, or another element has to be taken.
        """
        call = self._call
        try:
            for element in elements:
                self._element = element
                pending = call(element)
                cls = type(pending)
                if cls is _COROUTINE:
                    self._outstanding += 1
                    return pending
                kind = _KINDS[cls] if cls in _KINDS else _learn(cls)
                if kind == _PENDING or (kind == _GENERATOR and is_awaitable(pending)):
                    if (pending := self._unfired(pending)) is not None:
                        self._outstanding += 1
                        return pending
                elif pending is PASSED:
                    self._passed = element
                    return None
                if self._is_over or self._outstanding >= self.count:
                    return None
                if monotonic() >= self._until:
                    return _TURN
            if not self._is_async:
                self._is_over = True
        except BaseException as error:
            self._fail(error)
        return _TURN

    def _unfired(self, pending: Any) -> Any:
        """Return what has to be waited for: *pending*, unless it is a Deferred that has fired."""
        results: list[Any] = []
        while isinstance(pending, Deferred):
            pending.addBoth(_keep_in(results))
            if not results:
                break
            pending.addErrback(lambda _: None)  # it is known
            pending = self._end(self._element, results.pop())
        return pending

    def _end(self, element: Any, result: Any) -> Any:
        """Take the result of the call for *element*, or its Failure, which was waited for.

        Returns what has to be waited for in its place, if there is anything.
        """
        if isinstance(result, Failure):
            assert result.value is not None
            self._fail(result.value)

    async def _begin(self, pending: Any, face: Face) -> None:
        worker = _Worker(self._element, pending)
        # If others have suspended, so may this: the next element is taken at once.
        self._is_led = worker.holds_lead = not self._workers
        self._workers[worker] = None
        worker.coroutine = self._work(worker, face)
        worker.running = face.begin(worker.coroutine)
        if worker.holds_lead and worker.pending is not None:
            await until_begun()
        if worker.holds_lead:
            worker.holds_lead = self._is_led = False

    async def _work(self, worker: _Worker, face: Face) -> None:
        pending, worker.pending = worker.pending, None
        try:
            while pending is not None:
                if self.is_cancelled:
                    _discard(pending)
                    return
                ended = self._ended
                try:
                    if face is COROUTINE and type(pending) is _COROUTINE:
                        result = await pending
                    else:
                        result = await face.wait(pending)
                except GeneratorExit:
                    raise
                except BaseException:
                    if self.is_cancelled:  # since then
                        if isinstance(pending, Deferred):  # type: ignore[unreachable]
                            await cancel_and_wait([pending])
                        return
                    result = Failure()
                pending = self._end(worker.element, result)
                if pending is not None:
                    continue
                self._outstanding -= 1
                if self._ended != ended:  # others have run meanwhile: the loop has had a turn
                    self._until = monotonic() + _SLICE
                self._ended += 1
                if (
                    (self._is_led and not worker.holds_lead)
                    or self._is_over
                    or self._is_paused
                    or self._passed is not END
                    or self._outstanding >= self.count
                    or not self._workers_lead
                ):
                    return
                pending = _TURN
                if not self._is_async and monotonic() < self._until:
                    pending = self._work_on(self._source)
                if pending is _TURN:
                    worker.holds_lead = False
                    pending = await self._lead(face)
                worker.element = self._element
                if self._wake is not None and self._may_lead():
                    call_soon(self._wake_up)  # when what is pending has begun
        except GeneratorExit:  # the loop is torn down
            self._wake = None
            raise
        except BaseException as error:
            if not self.is_cancelled:
                self._fail(error)
        finally:
            if worker.holds_lead:
                worker.holds_lead = self._is_led = False
            del self._workers[worker]
            self._wake_up()

    def _wake_up(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            wake.callback(None)


def _keep_in(results: list[Any]) -> Callable[[Any], Any]:
    """Return what appends a result to *results*, and passes it on."""

    def keep(result: Any) -> Any:
        results.append(result)
        return result

    return keep


def _discard(pending: Any) -> None:
    """Cancel *pending*, which nobody waits for."""
    if type(pending) is _COROUTINE:
        pending.close()
    elif pending is not None:
        to_deferred(pending).addErrback(lambda _: None).cancel()


class Coiterators(Iteration):
    """An iteration with the outcomes of *count* coiterators that share the *source*.

    The formulation is *count* coiterators of one shared generator on a Twisted ``Cooperator``
    (J.-P. Calderone, "Limiting concurrency"). Which of them makes a call is the same here, but
    they are numbers: a call that raises ends the source, a pending result that fails ends its
    coiterator.
    """

    def __init__(self, source: Any, count: int, call: Callback) -> None:
        if hasattr(source, "__aiter__"):
            work: Any = aiter(source)
            super().__init__(work, count, lambda element: self._note(call(element)))
        else:
            work = (call(element) for element in source)
            super().__init__(work, count, self._note)
        self.outcomes: list[tuple[bool, Any]] = [(True, work)] * count
        self._idle = list(range(count))
        self._late: list[int] = []
        self._is_on_asyncio: bool | None = None
        self._rotation = iter(self._idle)
        self._number: int | None = None
        self._choose()

    async def results(self) -> list[tuple[bool, Any]]:
        """Make all calls; return the outcomes."""
        self._is_on_asyncio = uses_asyncio()
        await self.next()
        return self.outcomes

    def _note(self, result: Any) -> Any:
        """Let the coiterator whose turn it is have *result*; return what has to be waited for."""
        number = self._whose_turn() if self._number is None else self._number
        self._number = self._element = None
        if type(result) is _COROUTINE or is_pending(result):
            self._idle.remove(number)
            result = self._watch(result, number)
        else:
            result = None
        if self._element is None or self._is_on_asyncio:
            self._choose()
        # Elsewhere a coroutine has begun, and may have ended, before it is somebody's turn.
        return result

    def _choose(self) -> None:
        # The list changes meanwhile, as the Cooperator's does: that decides who is next.
        self._number = next(self._rotation, None)
        if self._number is None and self._idle:
            self._rotation = iter(self._idle)
            self._number = next(self._rotation)

    def _whose_turn(self) -> int:
        if self._number is None:
            if not self._idle:
                self._idle.extend(self._late)
                self._late.clear()
            self._choose()
        assert self._number is not None
        return self._number

    def _watch(self, pending: Any, number: int) -> Any:
        if type(pending) is _COROUTINE or not isinstance(pending, Deferred):
            self._element = number
            return pending
        return pending.addBoth(self._end_call, number, self._idle)

    def _end(self, element: Any, result: Any) -> Any:
        if element is None:
            return
        # On asyncio a Cooperator would hear of it later, when all are occupied.
        idle = self._late if self._is_on_asyncio else self._idle
        if isinstance(result, Failure):
            self._end_call(result, element, idle)
        else:
            idle.append(element)

    def _end_call(self, result: Any, number: int, idle: list[int]) -> None:
        if not isinstance(result, Failure):
            idle.append(number)
            return
        self.outcomes[number] = (False, result)
        self.count -= 1
        if not self.count:
            self.stop()

    def _fail(self, error: BaseException) -> None:
        self.outcomes[self._whose_turn()] = (False, Failure(error))
        self.stop()


class CoiteratorsInTurns(Coiterators):
    """Coiterators that wait for Deferreds alone, and go on in a turn of the loop of their own."""

    def __init__(self, source: Any, count: int, call: Callback) -> None:
        super().__init__(source, count, call)
        self._going_on: list[Gate] = []

    def start(self) -> Deferred[list[tuple[bool, Any]]]:
        """Make all calls, none of them before this returns; return a Deferred of the outcomes."""
        running: list[Deferred[Any]] = []

        def deliver(outcome: Any) -> None:
            if not self.is_cancelled:
                result.callback(outcome if isinstance(outcome, Failure) else self.outcomes)

        def begin() -> None:
            if not self.is_cancelled:
                running.append(start(self.next).addBoth(deliver))

        def cancel(_: Deferred[Any]) -> None:
            self.cancel()  # what begins just now is not among those that run
            for deferred in running:
                deferred.cancel()

        result: Deferred[list[tuple[bool, Any]]] = Deferred(cancel)
        call_soon(begin)
        return result

    def _watch(self, pending: Any, number: int) -> Any:
        deferred = to_deferred(pending)
        gate = Gate([deferred])
        ended = []

        def end(result: Any) -> None:
            ended.append(gate)
            self._end_call(result, number, self._idle)
            if is_waited_for:
                self._go_on_soon(gate)

        is_waited_for = False
        deferred.addBoth(end)
        is_waited_for = not ended
        return gate.deferred if is_waited_for else deferred

    def _go_on_soon(self, gate: Gate) -> None:
        if not self._going_on:
            call_soon(self._go_on)
        self._going_on.append(gate)

    def _go_on(self) -> None:
        ended, self._going_on = self._going_on, []
        for gate in ended:
            gate.open()


class Outstanding:
    """Counts what is under way, and lets others wait until there is none."""

    def __init__(self) -> None:
        self.number = 0
        self._none: Gate | None = None

    def begin(self) -> None:
        """Count one more."""
        self.number += 1

    def end(self) -> None:
        """Count one less."""
        self.number -= 1
        if not self.number and self._none is not None:
            none, self._none = self._none, None
            none.open()

    async def until_none(self) -> None:
        """Wait until there is none; returns at once if there is none now."""
        while self.number:
            if self._none is None:
                self._none = Gate([])
            await resolve(shield(self._none.deferred))


async def resolve(value: Any) -> Any:
    """Give *value* once it is no longer pending; raise it where it is a Failure."""
    while is_pending(value):
        value = await COROUTINE.wait(value)
    return _raised(value) if isinstance(value, Failure) else value


async def ordered(
    source: AsyncIterator[Any], count: int, call: Callable[[Any], Any]
) -> AsyncGenerator[Any, None]:
    """Give the results of *call* over *source*, in its order and lazily.

    At most *count* elements have been taken and not given; while one is pending, the next are
    taken. Ending the iteration early cancels what is outstanding.
    """
    async for element in source:
        result = call(element)
        if is_pending(result):
            break
        yield result
    else:
        return
    room = DeferredSemaphore(count)
    results: DeferredQueue[tuple[Any, ...]] = DeferredQueue()
    outstanding: dict[Deferred[Any], None] = {}  # in order

    def put(result: Any) -> None:
        if is_pending(result):
            result = to_deferred(result)
            outstanding[result] = None
        results.put((result,))

    async def take() -> None:
        await granted(room.acquire(), room.release)
        put(result)
        await granted(room.acquire(), room.release)
        async for element in source:
            put(call(element))
            await granted(room.acquire(), room.release)

    def end(outcome: Any) -> Any:
        results.put(())
        return outcome

    taking: Deferred[Any] = to_deferred(take()).addBoth(end)
    try:
        while taken := await resolve(results.get()):
            outstanding.pop(taken[0], None)
            yield await resolve(taken[0])
            room.release()
        await resolve(taking)
    finally:
        for deferred in (taking, *outstanding):
            deferred.addErrback(lambda _: None).cancel()
