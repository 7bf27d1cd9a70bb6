"""The stacks: processors in a chain, error-tolerant, in parallel, and per element.

Each is a processor itself, so they nest: ``Chain(clean, Parallel(stock, reviews), store)``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, get_origin

from scrapy.exceptions import CloseSpider, DropItem
from twisted.python.failure import Failure

from ._engine import (
    Iteration,
    cancel_and_wait,
    cancel_once,
    is_pending,
    is_special,
    not_stopping,
    note_wait,
    resolve,
)
from ._runtime import CANCELLED, to_deferred
from ._stack import (
    PASSING,
    Stack,
    StepCalls,
    cancelled_from_within,
    check_function,
    naming,
    pair_of,
    refuse_passing,
)
from .defer import (
    process_chain_async,
    process_chain_both_async,
    process_parallel_async,
)
from .exceptions import (
    DeferKitError,
    NoRoute,
    StackConfigError,
    add_notes,
    mark_step,
    repr_of,
)
from .merge import copy_item, field_of, is_changed, keep_item, merge_changes, set_fields
from .processor import name_of, refuse_unless_taking, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from twisted.internet.defer import Deferred

    from .processor import Step


class Chain(Stack):
    """One processor after the other, each with the item that the one before it returned.

    Runs on :func:`~scrapy_deferkit.defer.process_chain_async`.
    """

    _calls: StepCalls | None = None

    def __init__(self, *processors: Any, name: str | None = None) -> None:
        super().__init__(processors, name)

    def _arrange(self) -> None:
        self._calls = StepCalls.of(self, self.steps or ())

    def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        if self._calls is None:
            raise self._not_ready()
        if args or kwargs:
            return process_chain_async(self._calls, item, *args, **kwargs)
        return process_chain_async(self._calls, item)  # what pipelines do, and a third cheaper


class _Before:
    """The item as it was before the step that is running."""

    __slots__ = ("item",)

    item: Any


class Tolerant(Stack):
    """One processor after the other, with errbacks that handle what fails.

    A step is a processor ``p``, or a pair ``(p, errback)``. ``errback(failure, item, *args)``
    runs when its own ``p`` fails, or when an earlier failure is still unhandled; it gets the item
    as it was before the step that failed, a fresh copy each time, and returns the item to go on
    with, or raises. An errback that handles an earlier failure takes the place of its own ``p``,
    which does not run.

    ``on`` (an exception class or a tuple of them) narrows what the errbacks handle;
    ``DropItem``, ``CloseSpider`` and cancellation are never handled. ``copy`` is how an item is
    copied: :func:`~scrapy_deferkit.merge.copy_item`.

    Runs on :func:`~scrapy_deferkit.defer.process_chain_both_async`, each errback in a pair of its
    own behind its callback.
    """

    _callbacks: Sequence[Callable[..., Any] | None] | None = None
    _errbacks: Sequence[Callable[..., Any] | None] = ()

    def __init__(
        self,
        *steps: Any,
        on: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        copy: Callable[[Any], Any] = copy_item,
        name: str | None = None,
    ) -> None:
        pairs = [pair_of(step, "Tolerant") for step in steps]
        classes = on if isinstance(on, tuple) else (on,)
        if not classes or not all(
            isinstance(each, type) and issubclass(each, BaseException) for each in classes
        ):
            raise StackConfigError(
                f"Tolerant(on={on!r}): on= is an exception class, or a tuple of them"
            )
        refuse_passing(classes, "Tolerant")
        check_function(copy, "Tolerant: copy", "copy= is a function of the item")
        self._on = classes
        self._copy = copy
        self._roles = [role for pair in pairs for role in ("callback", "errback")[: len(pair)]]
        super().__init__([processor for pair in pairs for processor in pair], name)

    def _arguments_of(self, position: int, arguments: tuple[str, ...]) -> tuple[str, ...]:
        return ("failure", *arguments) if self._roles[position] == "errback" else arguments

    def _arrange(self) -> None:
        callbacks: list[Callable[..., Any] | None] = []
        errbacks: list[Callable[..., Any] | None] = []
        last = max((i for i, role in enumerate(self._roles) if role == "errback"), default=-1)
        for position, (step, role) in enumerate(zip(self.steps or (), self._roles, strict=True)):
            if role == "callback":
                callbacks.append(self._callback(step, is_watched=position < last))
                errbacks.append(None)
            else:
                callbacks.append(None)
                errbacks.append(self._errback(step))
        self._callbacks, self._errbacks = callbacks, errbacks

    def _callback(self, step: Step, is_watched: bool) -> Callable[..., Any]:
        run = self._runner(step)

        def callback(item: Any, before: _Before, /, *args: Any, **kwargs: Any) -> Any:
            if is_watched:
                before.item = item  # should the copy fail
                before.item = self._own("copy", self._copy, item)
            return run(item, *args, **kwargs)

        return callback

    def _errback(self, step: Step) -> Callable[..., Any]:
        def errback(failure: Failure, before: _Before, /, *args: Any, **kwargs: Any) -> Any:
            if failure.check(*PASSING) or not failure.check(*self._on):
                return failure

            copied = self._own("copy", self._copy, before.item)
            return self._handle(step, failure, copied, *args, **kwargs)

        return errback

    def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        if self._callbacks is None:
            raise self._not_ready()
        return process_chain_both_async(
            self._callbacks, self._errbacks, item, _Before(), *args, **kwargs
        )


class Parallel(Stack):
    """Every branch gets a copy of the item; ``merge(item, results)`` makes one item of theirs.

    ``merge`` is :func:`~scrapy_deferkit.merge.merge_changes` (what each branch changed),
    :func:`~scrapy_deferkit.merge.keep_item` (ignore the results), or your own, which may be a
    coroutine function; *results* are in the order of the branches. A branch that changed nothing
    may return ``None``; one that changed its copy has forgotten its ``return`` then, and fails,
    unless its result is ignored.
    On the first failure the branches that still run are cancelled and waited for, and then the
    item fails. Media pipelines are not cancelled: other items may wait for the same download.

    Runs on :func:`~scrapy_deferkit.defer.process_parallel_async`.
    """

    needs_results = False

    def __init__(
        self,
        *branches: Any,
        merge: Callable[[Any, list[Any]], Any] = merge_changes,
        copy: Callable[[Any], Any] = copy_item,
        name: str | None = None,
    ) -> None:
        if not callable(merge):
            raise StackConfigError(
                f"Parallel(merge={merge!r}): merge= is a function of the item and the list of "
                "the branches' results, such as merge_changes or keep_item"
            )
        refuse_unless_taking(merge, ("item", "results"), "Parallel: merge")
        check_function(copy, "Parallel: copy", "copy= is a function of the item")
        self._merge = merge
        self._copy = copy
        super().__init__(branches, name)

    def _arrange(self) -> None:
        self._calls = [StepCalls.of(self, [step]) for step in self.steps or ()]

    async def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.steps is None:
            raise self._not_ready()
        running: list[Deferred[Any]] = []
        failed: list[Step] = []
        branches = [partial(self._start, calls, running, failed) for calls in self._calls]
        try:
            results = await process_parallel_async(branches, item, *args, **kwargs)
        except GeneratorExit:  # nothing can be waited for any more
            for deferred in running:
                cancel_once(deferred)
            raise
        except BaseException:
            await cancel_and_wait(running)
            raise
        return await self._merged(item, results)

    def _start(
        self,
        calls: StepCalls,
        running: list[Deferred[Any]],
        failed: list[Step],
        item: Any,
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        (step,) = calls.steps

        def fail(failure: Failure) -> Failure:
            if failed:  # nobody hears of it, and it may carry the first one's exception
                return failure
            failed.append(step)
            failure = _as_failure(failure)
            self._mark(step, _error_of(failure))
            return failure

        def check(result: Any) -> Any:
            if result is not None or not self._is_forgotten(copied, item):
                return result
            more = "; it has changed its copy of the item, and None says that nothing has changed"
            return fail(Failure(self.nothing_returned(step.name, more)))

        if failed:  # the item fails anyway: start nothing more
            return None
        try:
            copied = self._own("copy", self._copy, item)
        except Exception:
            failed.append(step)
            return Failure()
        try:
            result = step.call(copied, *args, **kwargs)
        except BaseException:
            return fail(Failure())
        if is_pending(result):
            result = to_deferred(result).addCallbacks(check, fail)
            if (forget := note_wait(calls)) is not None:
                result.addBoth(forget)
            running.append(result)
        if result is None:
            return check(result)
        return fail(result) if isinstance(result, Failure) else result

    def _is_forgotten(self, copied: Any, item: Any) -> bool:
        """Check whether a branch has changed *copied*, where its result matters."""
        return (
            self._merge is not keep_item
            and is_changed(copied, item)
            # Where no copy is equal to its original, nobody can tell.
            and not is_changed(self._own("copy", self._copy, item), item)
        )

    async def _merged(self, item: Any, results: list[Any]) -> Any:
        path = f"{self.name}/merge"
        try:
            merged = await resolve(self._merge(item, results))
        except Exception as error:
            mark_step(error, path)
            raise
        if merged is None:
            nothing = self.nothing_returned("merge")
            mark_step(nothing, path)
            raise nothing
        return merged


class Each(Stack):
    """A processor over the elements of the list in *field*, at most *concurrency* at once.

    The results take the elements' places, in order; ``DropItem`` removes an element. A field that
    is missing or ``None`` has no elements. What becomes of an element that fails is *on_error*'s:
    ``"raise"`` fails the item with the first such failure, the others in its notes;
    ``"drop"`` removes the element, logs and counts it; an errback, called as
    ``errback(failure, element, *args)`` with the element as it was, returns another in its place,
    or raises. In each case all the elements are processed.

    An element that is pending takes no task of its own, but one of at most *concurrency*.
    """

    def __init__(
        self,
        field: str,
        processor: Any,
        *,
        concurrency: int = 8,
        on_error: Any = "raise",
        name: str | None = None,
    ) -> None:
        if not isinstance(field, str) or not field:
            raise StackConfigError(f"Each({field!r}, ...): the field is a name, such as 'offers'")
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise StackConfigError(
                f"Each({field!r}, concurrency={concurrency!r}): concurrency is the number of "
                "elements at once, 1 or more"
            )
        if isinstance(on_error, str) and on_error not in ("raise", "drop") and "." not in on_error:
            raise StackConfigError(
                f"Each({field!r}, on_error={on_error!r}): on_error is 'raise', 'drop', or an "
                "errback (or its import path)"
            )
        self._field = field
        self._concurrency = concurrency
        self._drops = on_error == "drop"
        errbacks = [] if on_error in ("raise", "drop") else [on_error]
        super().__init__([processor, *errbacks], name)

    def _arguments_of(self, position: int, arguments: tuple[str, ...]) -> tuple[str, ...]:
        return (*("failure",) * position, "element", *arguments[1:])

    def _arrange(self) -> None:
        step, *errbacks = self.steps or ()
        self._step = step
        self._errback = errbacks[0] if errbacks else None
        self._calls = StepCalls.of(self, [step])

    async def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Any:
        if self.steps is None:
            raise self._not_ready()
        try:
            value = field_of(item, self._field)
            if not isinstance(value, (list, tuple, type(None))):
                raise DeferKitError(
                    f"{self.name}: the field {self._field!r} holds {value!r} "
                    f"({type(value).__name__}); Each works on a list or a tuple"
                )
        except DeferKitError as error:
            mark_step(error, self.name)
            raise
        if value is None:
            return item
        elements = _Elements(self, value, args, kwargs)
        kept = await elements.processed()
        if elements.is_failing:
            kept = list(self._kept(kept, naming(item, args)))
        return self._own(self._field, set_fields, item, {self._field: _like(value, kept)})

    def _kept(self, outcomes: list[Any], item: str) -> Iterator[Any]:
        """Give the elements that go on, or raise what fails the *item*, which is named so."""
        failures = []
        for position, outcome in enumerate(outcomes):
            if not isinstance(outcome, Failure):
                continue
            if outcome.check(CloseSpider) or not outcome.check(Exception):
                outcome.raiseException()
            if not outcome.check(DropItem):
                failures.append((position, outcome))
        if failures and not self._drops:
            (_, first), *others = failures
            notes = [f"Element {at} failed too: {repr_of(_error_of(it))}" for at, it in others]
            add_notes(_error_of(first), notes)
            first.raiseException()
        for position, failure in failures:
            self._count_dropped(position, failure, item)
        return (outcome for outcome in outcomes if not isinstance(outcome, Failure))

    def _count_dropped(self, position: int, failure: Failure, item: str) -> None:
        self._log(
            logging.WARNING,
            "element %d of the field %r of %s failed and was dropped: %s",
            position,
            self._field,
            item,
            repr_of(_error_of(failure)),
        )
        self._count("elements_dropped")


class _Elements(Iteration):
    """The elements of one field, and what has become of each."""

    def __init__(self, each: Each, elements: Any, args: Any, kwargs: Any) -> None:
        self.outcomes: list[Any] = list(elements)
        super().__init__(range(len(self.outcomes)), each._concurrency, self._process)
        self._each = each
        self._step_call = each._step.call
        self._args = args
        self._kwargs = kwargs
        self._copies = each._errback is not None
        self._before: dict[int, Any] = {}
        self._handled: set[int] = set()
        self.is_failing = False
        self._is_noted = False
        self._forget: Callable[[Any], Any] | None = None

    async def processed(self) -> list[Any]:
        """Process all; return what each has become, or its Failure."""
        try:
            await self.run()
        finally:
            if self._forget is not None:
                self._forget(None)
        return self.outcomes

    def _process(self, position: int) -> Any:
        """Call the processor; return what has to be awaited where there is something."""
        element = self.outcomes[position]
        if self._copies:
            self._before[position] = copy_item(element)
        try:
            result = self._step_call(element, *self._args, **self._kwargs)
        except BaseException:
            result = Failure()
        if type(result) is not CoroutineType:  # what is pending mostly is
            if not is_special(result):
                self.outcomes[position] = result
                return None
            if not is_pending(result):
                return self._failed(position, result)
        if not self._is_noted:
            self._is_noted = True
            self._forget = note_wait(self._each._calls)
        return result

    def _end(self, position: int, result: Any) -> Any:
        if self._handled and position in self._handled:
            if is_pending(result):
                return result
            if isinstance(result, Failure):
                self._fail_element(position, _as_failure(result))
            else:
                self.outcomes[position] = result
            return None
        if not is_special(result):
            self.outcomes[position] = result
            return None
        return result if is_pending(result) else self._failed(position, result)

    def _failed(self, position: int, result: Any) -> Any:
        """Take a Failure, or the ``None`` of a processor; return what the errback has begun."""
        each = self._each
        if result is None:
            result = Failure(each.nothing_returned(each._step.name))
        if isinstance(result, Failure):
            result = _as_failure(result)
            each._mark(each._step, _error_of(result))
            if (
                each._errback is not None
                and result.check(Exception)
                and not result.check(DropItem, CloseSpider)
            ):
                self._handled.add(position)
                before = self._before[position]
                return each._handle(each._errback, result, before, *self._args, **self._kwargs)
            self._fail_element(position, result)
        else:  # a generator, which is no more than a value
            self.outcomes[position] = result
        return None

    def _fail_element(self, position: int, failure: Failure) -> None:
        self.outcomes[position] = failure
        self.is_failing = True


class Route(Stack):
    """Give each item to the stack for its kind.

    *routes* is a dict: a class takes the items of that class, the nearest superclass first; any
    other key is a predicate, a function of the item, and predicates are asked in order after the
    classes. An item that no route takes goes to *default*: a processor, ``"pass"`` (the item goes
    on as it is) or ``"drop"``; without one it fails with
    :exc:`~scrapy_deferkit.exceptions.NoRoute`. Counted are items that no processor took, as
    ``unrouted``.
    """

    def __init__(
        self, routes: Mapping[Any, Any], default: Any = None, *, name: str | None = None
    ) -> None:
        if not isinstance(routes, Mapping) or not routes:
            raise StackConfigError(
                f"Route({routes!r}): routes is a dict of processors by item class or predicate"
            )
        for key in routes:
            if not callable(key):
                raise StackConfigError(
                    f"Route: the key {key!r} ({type(key).__name__}) is neither a class nor a "
                    "predicate, a function of the item"
                )
            if get_origin(key) is not None:
                raise StackConfigError(
                    f"Route: the key {key!r} is no class that an item can have; give "
                    f"{get_origin(key).__name__}, or a predicate"
                )
        predicates = [key for key in routes if not isinstance(key, type)]
        for predicate in predicates:
            check_function(predicate, "Route: predicate", "a predicate answers at once")
        if object in routes and (predicates or default is not None):
            unreachable = shown(predicates[0]) if predicates else f"default={shown(default)}"
            raise StackConfigError(
                f"Route: {unreachable} is never reached, since every item is an object; take "
                "out the entry for object, or what comes after the classes"
            )
        if isinstance(default, str) and default not in ("pass", "drop") and "." not in default:
            raise StackConfigError(
                f'Route(default={default!r}): default is a processor (or its import path), "pass" '
                'or "drop"'
            )
        self._keys = list(routes)
        self._default = default
        defaults = [] if default in (None, "pass", "drop") else [default]
        super().__init__([*routes.values(), *defaults], name)

    def _arrange(self) -> None:
        runners = [self._runner(step) for step in self.steps or ()]
        pairs = list(zip(self._keys, runners, strict=False))
        self._by_class = {key: run for key, run in pairs if isinstance(key, type)}
        self._by_predicate = [(key, run) for key, run in pairs if not isinstance(key, type)]
        self._otherwise = runners[-1] if len(runners) > len(pairs) else None

    def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        if self.steps is None:
            raise self._not_ready()
        return self._route_of(item)(item, *args, **kwargs)

    def _route_of(self, item: Any) -> Callable[..., Coroutine[Any, Any, Any]]:
        for cls in type(item).__mro__:
            if cls in self._by_class:
                return self._by_class[cls]
        for cls, run in self._by_class.items():  # abstract classes are in no item's __mro__
            if isinstance(item, cls):
                return run
        for predicate, run in self._by_predicate:
            if self._own(name_of(predicate), predicate, item):
                return run
        return self._otherwise or self._end

    async def _end(self, item: Any, /, *_: Any, **__: Any) -> Any:
        """End an item that no stack takes."""
        self._count("unrouted")
        if self._default == "pass":
            return item
        if self._default == "drop":
            raise DropItem(f"{self.path}: no route takes a {type(item).__name__}")
        keys = ", ".join(name_of(key) for key in self._keys)
        error = NoRoute(
            f"{self.path} has no route for a {type(item).__name__}: it has routes for {keys}; add "
            'one, or a default= (a processor, "pass" or "drop")'
        )
        mark_step(error, self.name)
        raise error


def _as_failure(failure: Failure) -> Failure:
    """Make a failure of a cancellation from within, or of a StopIteration; leave any other."""
    if isinstance(failure.value, StopIteration):
        return Failure(not_stopping(failure.value))
    if not failure.check(*CANCELLED):
        return failure
    return Failure(cancelled_from_within(_error_of(failure)))


def _like(value: Any, elements: list[Any]) -> Any:
    """Give *elements* in a collection of the kind of *value*: a list, a tuple, a named tuple."""
    make = getattr(value, "_make", type(value))
    return make(elements)


def _error_of(failure: Failure) -> BaseException:
    assert failure.value is not None
    return failure.value
