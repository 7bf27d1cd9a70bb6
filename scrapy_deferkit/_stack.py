"""The base of all stacks: a description, its running copies, their life and their steps' names."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from scrapy.exceptions import CloseSpider, DropItem
from scrapy.http import Request, Response
from twisted.internet.defer import DeferredLock

from ._crawl import count, crawl_of, current_visit
from ._engine import Steps, granted
from ._runtime import CANCELLED, is_asked_for
from .defer import process_chain_async
from .exceptions import (
    ClosingError,
    DeferKitError,
    NoItemReturned,
    StackConfigError,
    StepAborted,
    StepCancelled,
    mark_step,
    step_of,
    text_of,
)
from .processor import (
    Step,
    check,
    is_coroutine_function,
    is_stack,
    make_step,
    name_of,
    needs_crawler,
    refuse_unless_taking,
    release,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from scrapy.crawler import Crawler
    from twisted.python.failure import Failure

    Self = TypeVar("Self", bound="Stack")

PASSING: tuple[type[BaseException], ...] = (DropItem, CloseSpider, *CANCELLED)
"""What is no failure: it passes through every stack untouched."""

_ERRORS: tuple[type[BaseException], ...] = (Exception, *CANCELLED)

logger = logging.getLogger(__name__)


class Stack:
    """A processor made of processors: an immutable description, and what runs it.

    A stack may stand at module level, in settings, and in several spiders at once: it is never
    changed, and copies to itself. :meth:`bind` gives the copy that runs in one crawler. A stack
    of plain callables can also be awaited as it is: ``item = await stack(item)``.
    """

    needs_results = True
    """Whether a step that returns ``None`` has failed."""

    returns = "the item to go on with (is a `return item` missing?), or raises DropItem"
    """What a processor does, for who returns nothing; the outermost stack says it."""

    steps: tuple[Step, ...] | None = None
    """The steps as they are called; ``None`` as long as some of them need a crawler."""

    def __init__(self, processors: Iterable[Any], name: str | None) -> None:
        self.name = type(self).__name__ if name is None else name
        self.__qualname__ = self.name  # Scrapy asks for it before from_crawler(), which refuses
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            raise StackConfigError(
                f"{type(self).__name__}(name={name!r}): a name is text without a slash"
            )
        self._processors = tuple(processors)
        self._description: Stack = self
        self._crawler: Crawler | None = None
        self._parent: Stack | None = None
        self._place = self.name
        self._opened = 0
        self._is_binding = False
        self._lock = DeferredLock()
        for processor in self._processors:
            check(processor, str(self))
        self._begin()
        if not any(needs_crawler(processor) for processor in self._processors):
            self._set_up(None)

    def __copy__(self: Self) -> Self:
        return self

    def __deepcopy__(self: Self, memo: object) -> Self:
        return self

    def __str__(self) -> str:
        kind = type(self).__name__
        return kind if self.name == kind else f"{kind} {self.name!r}"

    def __call__(self, item: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Process *item*: give, once awaited, the item to go on with.

        The extra arguments go to every processor and errback, but not to Scrapy pipelines.
        Raises what a processor raises; :func:`~scrapy_deferkit.exceptions.step_of` tells where.
        """
        raise NotImplementedError

    @property
    def path(self) -> str:
        """The names from the outermost stack to this one; the first place of a shared one."""
        return self.name if self._parent is None else f"{self._parent.path}/{self._place}"

    def nothing_returned(self, part: str, more: str = "") -> NoItemReturned:
        """Return the exception for *part* of the stack, which returned ``None``."""
        outermost = self
        while outermost._parent is not None:
            outermost = outermost._parent
        return nothing_returned(f"{self.name}/{part}", outermost.returns, more)

    def _count(self, what: str) -> None:
        """Count *what* in the crawl's stats, under this stack's path."""
        if self._crawler is not None:
            count(self._crawler, f"{self.path}/{what}")

    def _log(
        self, level: int, message: str, *args: object, exc_info: BaseException | None = None
    ) -> None:
        """Log *message*, after this stack's path, as Scrapy logs what belongs to a spider."""
        extra = {"spider": getattr(self._crawler, "spider", None)}
        text = "%s: " + message
        logger.log(level, text, self.path, *args, exc_info=exc_info, extra=extra)

    def _begin(self) -> None:
        """Make what a running copy has of its own: slots, breakers, buffers."""

    def _arrange(self) -> None:
        """Prepare calls from ``self.steps``, which have just been made."""

    def bind(self: Self, crawler: Crawler) -> Self:
        """Give the copy of this stack that runs in *crawler*, ready to be opened.

        Import paths are loaded and components built. There is one copy per crawler and stack
        object, wherever in the crawler the object is used.

        Raises :exc:`~scrapy_deferkit.exceptions.StackConfigError` where that cannot be done.
        """
        if self._crawler is crawler:
            return self
        description = self._description
        running: dict[int, Self] = crawl_of(crawler).stacks
        bound = running.get(id(description))
        if bound is None:
            bound = object.__new__(type(self))
            vars(bound).update(vars(description))
            bound._crawler = crawler
            bound._lock = DeferredLock()
            bound._parent = None
            if description._is_binding:
                raise StackConfigError(f"{self} contains itself, by the import path of a stack")
            description._is_binding = True
            try:
                bound._begin()
                bound._set_up(crawler)
            except BaseException:
                bound._release_claims()
                raise
            finally:
                description._is_binding = False
            running[id(description)] = bound
        return bound

    def _set_up(self, crawler: Crawler | None) -> None:
        taken: set[str] = set()
        steps = []
        observers = () if crawler is None else crawl_of(crawler).observers
        for processor in self._processors:
            step = make_step(processor, crawler)
            name, number = step.name, 1
            while name in taken:
                number += 1
                name = f"{step.name}#{number}"
            taken.add(name)
            call = step.call
            for observe in observers:
                call = observe(self, name, call)
            steps.append(Step(name, call, step.source, step.takes_item_only))
            if crawler is not None and is_stack(step.source) and step.source._parent is None:
                step.source._parent, step.source._place = self, name
        self.steps = tuple(steps)
        self._arrange()

    def _release_claims(self) -> None:
        """Let component instances go that have not been opened."""
        for processor in (*self._processors, *(step.source for step in self.steps or ())):
            if not is_stack(processor):
                release(processor)
            elif processor is not self:
                processor._release_claims()

    def from_crawler(*_: Any) -> Any:
        """Refuse to be a component of Scrapy's settings."""
        raise StackConfigError(
            "a stack is not a component: put scrapy_deferkit.StackPipeline into ITEM_PIPELINES, "
            "and the stack into DEFERKIT_STACK or the attribute `stack` of a subclass"
        )

    async def open(self) -> None:
        """Open every component in the stack, in order; the first of several calls does it.

        When one fails, those already open are closed again, and its exception is raised.
        """
        crawler = self._crawler
        if crawler is None:
            raise DeferKitError(f"{self} is not bound: open stack.bind(crawler), not the stack")
        await granted(self._lock.acquire(), self._lock.release)
        try:
            if not self._opened:
                await self._open_steps(crawler)
            self._opened += 1
        finally:
            self._lock.release()

    async def _open_steps(self, crawler: Crawler) -> None:
        opened: list[Step] = []
        for step in self.steps or ():
            try:
                await step.open(crawler)
            except BaseException as error:
                self._mark(step, error)
                self._release_claims()
                for failure in await _close(opened, crawler):
                    logger.error(
                        "%s: closing after %s could not be opened: %r", self, step.name, failure
                    )
                raise
            opened.append(step)

    async def close(self) -> None:
        """Close every component in the stack, the last one first; the last of the calls does it.

        All are closed, whatever one of them does. Raises one
        :exc:`~scrapy_deferkit.exceptions.ClosingError` that carries every failure.
        """
        if self._crawler is None:
            raise DeferKitError(f"{self} is not bound: close stack.bind(crawler), not the stack")
        await granted(self._lock.acquire(), self._lock.release)
        try:
            if not self._opened:
                return
            self._opened -= 1
            errors = [] if self._opened else await _close(self.steps or (), self._crawler)
        finally:
            self._lock.release()
        if errors:
            raise ClosingError(str(self), errors)

    def refuse_unless_taking(self, *arguments: str) -> None:
        """Raise :exc:`StackConfigError` at a step that cannot be called as the stack is.

        The *arguments* of the stack are given by their names, as in ``("item", "response")``.
        """
        for position, step in enumerate(self.steps or ()):
            given = self._arguments_of(position, arguments)
            if is_stack(step.source):
                step.source.refuse_unless_taking(*given)
            else:
                step.refuse_unless_taking(given, f"{self.path}/{step.name}")

    def _arguments_of(self, position: int, arguments: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of what the step at *position* gets, if the stack gets *arguments*."""
        return arguments

    def _own(self, part: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the stack's own, such as its ``copy``: what it raises has a path."""
        try:
            return function(*args)
        except Exception as error:
            mark_step(error, f"{self.name}/{part}")
            raise

    def _mark(self, step: Step, error: BaseException) -> None:
        """Note on *error*, which came out of *step*, the path of the step where it rose."""
        holds_stack = is_stack(step.source) or is_stack(getattr(step.source, "bound", None))
        inner = step_of(error) if holds_stack else None
        below = f"/{inner.partition('/')[2]}" if inner and "/" in inner else ""
        mark_step(error, f"{self.name}/{step.name}{below}")

    def _runner(self, step: Step) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Give what calls *step* alone, with the stack's rules for what it returns and raises."""
        calls = StepCalls.of(self, [step])

        def run(item: Any, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
            if args or kwargs:
                return process_chain_async(calls, item, *args, **kwargs)
            return process_chain_async(calls, item)

        return run

    def _handle(
        self, step: Step, failure: Failure, item: Any, /, *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Call the errback *step*; *failure*, raised again, stays where it rose."""

        def call(item: Any, /, *args: Any, **kwargs: Any) -> Any:
            return step.call(failure, item, *args, **kwargs)

        calls = StepCalls.of(self, [Step(step.name, call, step.source)])
        calls.handled = failure.value
        return process_chain_async(calls, item, *args, **kwargs)

    def _not_ready(self) -> DeferKitError:
        paths = [str(processor) for processor in self._processors if needs_crawler(processor)]
        return DeferKitError(
            f"{self} is not bound to a crawler, and needs one for {', '.join(paths)}: "
            "use stack.bind(crawler), or one of the pipelines, which does it"
        )


class Policy(Stack):
    """A stack with one processor, and rules for calling it."""

    def _arrange(self) -> None:
        (step,) = self.steps or ()
        self._step = step
        self._calls = StepCalls.of(self, [step])
        self._run = self._runner(step)

    def _require_ready(self) -> None:
        if self.steps is None:
            raise self._not_ready()


class StepCalls(Steps):
    """The calls of a stack's steps, for the engine."""

    stack: Stack
    steps: tuple[Step, ...]
    handled: BaseException | None = None

    @classmethod
    def of(cls, stack: Stack, steps: Iterable[Step]) -> StepCalls:
        """Give the calls of *steps*, which belong to *stack*."""
        steps = tuple(steps)
        calls = cls(step.call for step in steps)
        calls.stack, calls.steps = stack, steps
        return calls

    def failed(self, position: int, error: Exception) -> None:
        """Note on *error* the path of the step where it rose."""
        if error is not self.handled:
            self.stack._mark(self.steps[position], error)

    def path_of(self, position: int) -> str:
        """Give the path of the step at *position*."""
        return f"{self.stack.path}/{self.steps[position].name}"

    def nothing_returned(self, position: int) -> Exception:
        """Say which step returned no item."""
        return self.stack.nothing_returned(self.steps[position].name)


def naming(item: Any, args: Iterable[Any]) -> str:
    """Return what log lines call *item*, which came with *args*: it is named by its page."""
    if isinstance(item, (Request, Response)):
        return str(item)
    page = next((value.url for value in args if isinstance(value, (Request, Response))), None)
    visit = current_visit.get()
    # A visit of another page is that of the item before this one, in the same task.
    if visit is not None and page in (None, visit.page_url):
        page = visit.origin
    return "the item" if page is None else f"the item of {page}"


def cancelled_from_within(error: BaseException | None) -> StepCancelled:
    """Make a failure of a cancellation that nobody above the step has asked for.

    Passed on, it would look as if the item were cancelled, and Scrapy would lose it unheard.
    """
    replacement = StepCancelled("the step was cancelled from within")
    replacement.__cause__ = error
    if error is not None and (path := step_of(error)) is not None:
        mark_step(replacement, path)
    return replacement


def contained(error: BaseException) -> Exception | None:
    """Give the failure that *error*, from a step, is to its item; ``None`` where it has to pass.

    What has to pass is a cancellation that was asked for, and what ends the process or the
    coroutine. All else that is no ``Exception`` Scrapy would let through, and lose the item.
    """
    if isinstance(error, CANCELLED):
        return None if is_asked_for(error) else cancelled_from_within(error)
    if isinstance(error, Exception):
        return error
    if isinstance(error, (GeneratorExit, KeyboardInterrupt, SystemExit)):
        return None
    aborted = StepAborted(f"the step raised {type(error).__name__}: {text_of(error)}")
    aborted.__cause__ = error
    return aborted


def refuse_passing(on: Any, owner: str) -> None:
    """Raise :exc:`StackConfigError` where *on* names what passes through every stack."""
    for cls in on if isinstance(on, tuple) else (on,):
        if issubclass(cls, PASSING):
            raise StackConfigError(
                f"{owner}(on={cls.__name__}): it passes through every stack untouched, and is "
                "never handled; name failures"
            )


def check_function(value: Any, argument: str, meaning: str, of: str = "item") -> None:
    """Raise :exc:`StackConfigError` if *value* is not a plain function of one argument, *of*."""
    if not callable(value):
        raise StackConfigError(f"{argument}={value!r}: {meaning}")
    refuse_unless_taking(value, (of,), argument)
    if is_coroutine_function(value):
        raise StackConfigError(
            f"{argument}={name_of(value)}: {meaning}; {name_of(value)} is a coroutine function"
        )


def is_number_above_zero(value: Any) -> bool:
    """Tell whether *value* is an int or a float above 0, and finite."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
    )


def pair_of(step: Any, owner: str) -> tuple[Any, ...]:
    """Give *step*, a processor or a pair ``(processor, errback)``, as a tuple of one or two."""
    if not isinstance(step, (tuple, list)):
        return (step,)
    if len(step) != 2:
        raise StackConfigError(
            f"{owner}: a step is a processor or a pair (processor, errback); got {shown(step)}, "
            f"which has {len(step)} part{'' if len(step) == 1 else 's'}"
        )
    return tuple(step)


def nothing_returned(path: str, returns: str = Stack.returns, more: str = "") -> NoItemReturned:
    """Return the exception for a processor that returned ``None``, with *more* to say of it."""
    return NoItemReturned(f"{path} returned None; a processor returns {returns}{more}")


async def _close(steps: Iterable[Step], crawler: Crawler) -> list[BaseException]:
    errors: list[BaseException] = []
    for step in reversed(tuple(steps)):
        try:
            await step.close(crawler)
        except ClosingError as error:
            errors.extend(error.errors)
        except _ERRORS as error:
            errors.append(error)
    return errors
