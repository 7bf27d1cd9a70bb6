"""The engine: chaining, errbacks, fan-out and bounded iteration, written once.

Each function here is a coroutine that runs until something is pending and only then waits. A value
that is not pending goes straight on: no Deferred, no task, no turn of the loop. How a pending
value is waited for is the *face*'s business:

* ``COROUTINE`` awaits coroutines as they are, and Deferreds as the runtime wants them;
* ``DeferredFace`` waits for Deferreds alone, so :func:`start` can run the coroutine up to its first
  wait and needs no event loop where there are only Deferreds.
"""

from __future__ import annotations

import types
from operator import length_hint
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredQueue,
    DeferredSemaphore,
    fail,
    succeed,
)
from twisted.internet.task import Cooperator
from twisted.python.failure import Failure

from ._runtime import (
    CANCELLED,
    call_soon,
    is_awaitable,
    monotonic,
    to_awaitable,
    to_deferred,
    turn,
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
        Sequence,
    )

    Callback = Callable[..., Any]

# What a value means to the engine. Falsy: an ordinary value. From _GENERATOR on: perhaps pending.
_VALUE, _NOTHING, _FAILURE, _GENERATOR, _PENDING = range(5)


# The kind of each type met so far. An exact dict, and looked up in place: that is a fifth of what
# a step costs.
_KINDS: dict[type, int] = {}


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


def is_pending(value: object) -> bool:
    """Tell whether *value* stands for a result that is awaited: a Deferred or any awaitable."""
    kind = _kind_of(value)
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
    """How a pending value is waited for, and how a Failure leaves the engine."""

    @property
    def is_cancelled(self) -> bool:
        """Whether what runs has been cancelled, and goes no further."""
        ...

    @property
    def cancelled(self) -> tuple[type[BaseException], ...]:
        """Exceptions that mean the work itself is cancelled: nothing may catch them."""
        ...

    def wait(self, pending: Any) -> Awaitable[Any]:
        """Give what the engine awaits for *pending*: its result, or a Failure."""

    def leave(self, failure: Failure) -> Any:
        """Return *failure* as the result, or raise it."""


class _CoroutineFace:
    cancelled = CANCELLED
    is_cancelled = False  # its cancellation is an exception where it waits

    def wait(self, pending: Any) -> Awaitable[Any]:
        return _settle(pending, to_awaitable) if isinstance(pending, Deferred) else pending

    def leave(self, failure: Failure) -> Any:
        if isinstance(failure.value, StopIteration):
            raise not_stopping(failure.value) from failure.value
        failure.raiseException()


class DeferredFace:
    """Waits for Deferreds alone; made anew for each run, which :func:`start` starts."""

    # Here a cancelled callback is a failure like another, as in a chain of Deferreds: cancelling
    # the whole is start()'s, which runs nothing further.
    cancelled: tuple[type[BaseException], ...] = ()

    is_cancelled = False

    def wait(self, pending: Any) -> Awaitable[Any]:
        """Wait for *pending*; cancel it where its own callback has cancelled what runs."""
        deferred: Deferred[Any] = to_deferred(pending)
        if self.is_cancelled:
            deferred.cancel()
        return _settle(deferred, _as_it_is)

    def leave(self, failure: Failure) -> Any:
        return failure


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
    except BaseException:
        return fail(Failure())
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
    left: Iterator[Callback],
    value: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    face: Face | None = None,
) -> tuple[Any, int]:
    """Call one callback after the other while they return ordinary values, each with the last one.

    Gives the last result and its kind: falsy when all that was *left* has been called. Raises
    ``CancelledError`` in the place of the next callback once *face* is cancelled.
    """
    extra = bool(args or kwargs)
    for callback in left:
        if face is not None and face.is_cancelled:
            raise CancelledError
        value = callback(value, *args, **kwargs) if extra else callback(value)
        try:
            kind = _KINDS[type(value)]
        except KeyError:
            kind = _learn(type(value))
        if kind:
            return value, kind
    return value, _VALUE


async def chain(
    callbacks: Iterable[Callback],
    value: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    face: Face,
) -> Any:
    """Call one callback after the other, each with the result of the one before it.

    The formulation is a Deferred with ``addCallback``: a Failure, given or returned, ends it.
    """
    if isinstance(value, Failure):
        return face.leave(value)
    left = iter(callbacks)
    waited: Face | None = None
    try:
        while True:
            value, kind = advance(left, value, args, kwargs, waited)
            if not kind:
                return value
            while kind == _PENDING or (kind == _GENERATOR and is_awaitable(value)):
                waited = face  # before it, nobody could cancel
                value = await face.wait(value)
                kind = _KINDS[type(value)] if type(value) in _KINDS else _learn(type(value))
            if kind == _FAILURE:
                return face.leave(value)
            if kind == _NOTHING and isinstance(callbacks, Steps):
                raise callbacks.nothing_returned(_position(callbacks, left))
    except StopIteration as stop:
        if not face.cancelled:
            return Failure()
        error = not_stopping(stop)
        if isinstance(callbacks, Steps):
            callbacks.failed(_position(callbacks, left), error)
        raise error from stop
    except Exception as error:
        if isinstance(callbacks, Steps):
            callbacks.failed(_position(callbacks, left), error)
        raise


def _position(steps: Steps, left: Iterator[Callback]) -> int:
    """Tell which of *steps* was called last, where those in *left* have not been called."""
    return len(steps) - length_hint(left) - 1


def step_within(awaitable: object) -> str | None:
    """Give the path of the innermost step that *awaitable*, a suspended coroutine, waits in.

    Seen are the steps of the task that it runs in, not those of other tasks that it waits for;
    ``None`` where no step of a stack is among them.
    """
    path = None
    while awaitable is not None:
        frame = getattr(awaitable, "cr_frame", None)
        if frame is not None and frame.f_code is chain.__code__:
            callbacks = frame.f_locals["callbacks"]
            if isinstance(callbacks, Steps):
                path = callbacks.path_of(_position(callbacks, frame.f_locals["left"]))
        awaitable = getattr(awaitable, "cr_await", None)
    return path


def not_stopping(_: StopIteration) -> RuntimeError:
    """Make an exception that a coroutine may raise of one that would end it."""
    return RuntimeError("a callback raised StopIteration (from a next() without a default?)")


async def chain_both(
    callbacks: Sequence[Callback | None],
    errbacks: Sequence[Callback | None],
    value: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    face: Face,
) -> Any:
    """Call the callback or the errback of one pair after the other; ``None`` passes through.

    The formulation is a Deferred with ``addCallbacks``: an errback handles failures of the pairs
    before its own.
    """
    for callback, errback in zip(callbacks, errbacks, strict=True):
        if face.is_cancelled:
            raise CancelledError
        handler = errback if isinstance(value, Failure) else callback
        if handler is None:
            continue
        value = await _call(handler, value, args, kwargs, face)
    return face.leave(value) if isinstance(value, Failure) else value


async def _call(
    handler: Callback, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any], face: Face
) -> Any:
    """Call *handler* and wait for its result; every failure but a cancellation is a Failure."""
    try:
        result = handler(value, *args, **kwargs)
    except face.cancelled:
        raise
    except BaseException:
        return Failure()
    while is_pending(result):
        try:
            result = await face.wait(result)
        except GeneratorExit:
            raise
        except face.cancelled:
            raise
        except BaseException:
            return Failure()
    if face.cancelled and isinstance(result, Failure) and result.check(*face.cancelled):
        result.raiseException()
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


async def fan_out(
    callbacks: Iterable[Callback],
    value: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    face: Face,
) -> Any:
    """Call every callback with *value*; give the results in order, or the first failure.

    The formulation is a ``DeferredList`` with ``fireOnOneErrback`` and ``consumeErrors``: all are
    called, the first failure is delivered as itself, and the others go on unheard.
    """
    if isinstance(value, Failure):
        return face.leave(value) if any(True for _ in callbacks) else []
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
                outcome = to_deferred(outcome)
        outcomes.append(outcome)
    if special:
        failure = await face.wait(_all_or_first_failure(outcomes))
        if failure is not None:
            return face.leave(failure)
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


class Workers:
    """Calls of *call* over the elements of *source*, at most *count* outstanding.

    The formulation is *count* coiterators of one shared generator on a Twisted ``Cooperator``
    (J.-P. Calderone, "Limiting concurrency"): which worker takes which element is the same, but a
    worker costs nothing before its first element is pending. A call that raises ends the source,
    a pending call that fails ends its worker.
    """

    def __init__(self, source: Any, count: int, call: Callback) -> None:
        self._is_async = hasattr(source, "__aiter__")
        self._call = call
        self._work: Any = aiter(source) if self._is_async else (call(element) for element in source)
        self._idle = list(range(count))
        self._running: dict[int, Deferred[Any]] = {}
        self._taking: Deferred[Any] | None = None
        self._wake: Gate | None = None
        self._is_over = False
        self.outcomes: list[tuple[bool, Any]] = [(True, self._work)] * count

    def turns(self) -> Iterator[Deferred[Any] | None]:
        """Do one piece of work at each turn; give ``None``, or what the next turn has to wait for.

        What is given is a Deferred that fails only when it is itself cancelled.
        """
        rotation: Iterator[int] = iter(())
        while True:
            while self._idle:
                for worker in rotation:
                    if self._is_async:
                        taken: list[Any] = []
                        yield self._take(taken)
                        self._work_on_taken(worker, taken[0])
                    else:
                        self._work_on(worker, next, self._work)
                    yield None
                rotation = iter(self._idle)
            if not self._running:
                return
            self._wake = Gate(self._running.values())
            yield self._wake.deferred

    async def drive(self) -> list[tuple[bool, Any]]:
        """Take all turns from a coroutine, and let the loop have its own every 10 ms."""
        until = monotonic() + 0.01
        try:
            for waiting in self.turns():
                if waiting is not None:
                    outcome = await settled(waiting)
                    if isinstance(outcome, Failure):
                        outcome.raiseException()
                elif monotonic() < until:
                    continue
                else:
                    await turn()
                until = monotonic() + 0.01
        except GeneratorExit:  # nothing can be waited for any more
            self.cancel()
            raise
        except BaseException:
            running = tuple(self._running.values())
            self.cancel()
            await cancel_and_wait(running)
            raise
        return self.outcomes

    def cancel(self) -> None:
        """Cancel what is outstanding and take nothing more."""
        self._end()
        if self._taking is not None:
            cancel_once(self._taking)
        for deferred in tuple(self._running.values()):
            cancel_once(deferred)

    def _end(self) -> None:
        self._is_over = True
        self._idle.clear()

    def _take(self, taken: list[Any]) -> Deferred[Any]:
        self._taking = to_deferred(anext(self._work))
        gate = Gate([self._taking])
        self._taking.addBoth(taken.append).addBoth(gate.open)
        return gate.deferred

    def _work_on_taken(self, worker: int, element: Any) -> None:
        self._taking = None
        if not isinstance(element, Failure):
            self._work_on(worker, self._call, element)
            return
        if not self._is_over and not element.check(StopAsyncIteration):
            self.outcomes[worker] = (False, element)
        self._end()

    def _work_on(self, worker: int, work: Callable[[Any], Any], on: Any) -> None:
        if self._is_over:
            return
        try:
            result = work(on)
        except BaseException as error:
            # next() alone ends with StopIteration: the generator makes another of a call's own.
            if work is not next or not isinstance(error, StopIteration):
                self.outcomes[worker] = (False, Failure())
            self._end()
            return
        if not is_pending(result):
            return
        deferred = to_deferred(result)
        if worker not in self._idle:  # the call has cancelled what it is part of
            deferred.addErrback(lambda _: None).cancel()
            return
        self._idle.remove(worker)
        self._running[worker] = deferred
        deferred.addBoth(self._done, worker)

    def _done(self, result: Any, worker: int) -> None:
        del self._running[worker]
        if isinstance(result, Failure):
            self.outcomes[worker] = (False, result)
        elif not self._is_over:
            self._idle.append(worker)
        if self._wake is not None:
            wake, self._wake = self._wake, None
            wake.open()


def cooperate(workers: Workers) -> Deferred[list[tuple[bool, Any]]]:
    """Let *workers* work on a Twisted ``Cooperator`` of this runtime's; give their outcomes."""

    def deliver(outcome: Any) -> None:
        if not result.called:
            result.callback(outcome if isinstance(outcome, Failure) else workers.outcomes)

    result: Deferred[list[tuple[bool, Any]]] = Deferred(lambda _: workers.cancel())
    Cooperator(scheduler=call_soon).coiterate(workers.turns()).addBoth(deliver)
    return result


async def resolve(value: Any) -> Any:
    """Give *value* once it is no longer pending; raise it where it is a Failure."""
    while is_pending(value):
        value = await COROUTINE.wait(value)
    return COROUTINE.leave(value) if isinstance(value, Failure) else value


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
