"""What can go wrong, under one base class, and the step an exception rose in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scrapy.utils.python import global_object_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_STEP = "deferkit_step"
_ITEM = "deferkit_item"
_NOTES = "__notes__"


class DeferKitError(Exception):
    """Base class of every error of this package's own."""


class StackConfigError(DeferKitError, ValueError):
    """A stack or a setting is wrong: what was given, what is allowed, and the fix."""


class NoItemReturned(DeferKitError):
    """A processor or an errback returned ``None`` where an item was due."""


class MergeConflict(DeferKitError):
    """Two branches of a ``Parallel`` changed one field to different values."""


class StepCancelled(DeferKitError):
    """A step ended with a cancellation that nobody above it had asked for."""


class StepAborted(DeferKitError):
    """A step raised what is no ``Exception``, which Scrapy would let pass and lose the item."""


class StepTimeout(DeferKitError, TimeoutError):
    """A step took longer than its ``Timeout`` allows: ``step`` and ``seconds`` tell."""

    def __init__(self, step: str, seconds: float) -> None:
        self.step = step
        self.seconds = seconds
        super().__init__(f"{step} did not end within {seconds:g} s")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.seconds), self.__dict__


class CircuitOpen(DeferKitError):
    """A ``CircuitBreaker`` is open, and its step was not called.

    ``retry_after`` is the time in seconds until it may be tried again, which a ``Retry`` heeds;
    ``None`` while another item is the probe.
    """

    def __init__(self, step: str, key: object, retry_after: float | None) -> None:
        self.step = step
        self.key = key
        self.retry_after = retry_after
        which = "" if key is None else f" for {key!r}"
        when = "a probe is under way" if retry_after is None else f"next try in {retry_after:g} s"
        super().__init__(f"the circuit breaker of {step} is open{which}; {when}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.key, self.retry_after), self.__dict__


class NoRoute(DeferKitError):
    """No entry of a ``Route`` takes the item, and it has no default."""


class ClosingError(DeferKitError):
    """One or more processors failed while a stack was closed.

    ``errors`` holds every failure, in the order in which they happened.
    """

    def __init__(self, stack: str, errors: Sequence[BaseException]) -> None:
        self.errors: tuple[BaseException, ...] = tuple(errors)
        listed = "; ".join(f"{_name_of(error)}: {text_of(error)}" for error in self.errors)
        self.stack = stack
        super().__init__(f"{stack}: {len(self.errors)} failed to close: {listed}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stack, self.errors), self.__dict__


class JobError(DeferKitError):
    """The file of a job cannot be used, or holds what this version cannot read."""


class DeadLettersError(DeferKitError):
    """The dead letters cannot be used: where they are, what happened, and the fix."""


class DeadLettersUnavailable(DeadLettersError):
    """The dead letters cannot be used now, and later they may: trying again makes sense."""


def step_of(error: BaseException) -> str | None:
    """Return the path of the step where *error* rose, such as ``"catalogue/reviews/fetch"``.

    ``None`` for an exception that no stack has seen.
    """
    try:
        step = _attributes_of(error).get(_STEP)
    except Exception:  # as in mark_step()
        return None
    return step if type(step) is str else None


def mark_step(error: BaseException, path: str) -> None:
    """Note on *error* that it rose in the step *path*, for :func:`step_of` and for tracebacks.

    A later call replaces what an earlier one noted, so an exception object that is raised
    again and again does not gather notes.
    """
    _mark(error, _STEP, path, "In the step {}".format)


def mark_item(error: BaseException, origin: str | None) -> None:
    """Note on *error* the *origin* of the item that failed with it, for tracebacks.

    It takes the place of what was noted before; ``None`` takes that away.
    """
    _mark(error, _ITEM, origin, "With an item of {}".format)


def _mark(
    error: BaseException, name: str, value: str | None, note: Callable[[str | None], str]
) -> None:
    try:
        attributes = _attributes_of(error)
        before = attributes.get(name)
        if value is before is None:
            return
        kept = [each for each in attributes.get(_NOTES, ()) if each != note(before)]
        attributes[name] = None if value is None else str.__str__(value)
        attributes[_NOTES] = kept if value is None else [*kept, note(value)]
    except Exception:
        # An exception class may have odd notes, say; the failure itself matters more.
        return


def add_notes(error: BaseException, notes: Iterable[str]) -> None:
    """Add *notes* to what the traceback of *error* shows (from Python 3.11 on)."""
    added = tuple(notes)
    if not added:
        return
    try:
        attributes = _attributes_of(error)
        attributes[_NOTES] = [*attributes.get(_NOTES, ()), *added]
    except Exception:  # as in mark_step()
        return


def text_of(error: BaseException) -> str:
    """Return what *error* says, whatever its class does."""
    try:
        # Scrapy's CloseSpider says nothing by itself.
        return str.__str__(str(error) or str(_attributes_of(error).get("reason") or ""))
    except Exception:
        return f"(a {_name_of(error)} that has no text)"


def repr_of(error: BaseException | None) -> str:
    """Return the ``repr`` of *error*; its type and text if its class has none."""
    try:
        return str.__str__(repr(error))
    except Exception:
        assert error is not None
        return f"<{type_of(error)}: {text_of(error)}>"


def type_of(error: BaseException) -> str:
    """Return the import path of the class of *error*, whatever that does."""
    try:
        return str.__str__(global_object_name(type(error)))
    except Exception:  # a metaclass may do anything
        return "exception without a name"


def _name_of(error: BaseException) -> str:
    return type_of(error).rpartition(".")[2]


def counted(number: int, noun: str) -> str:
    """Return how many of what there are.

    >>> counted(1, "item"), counted(2000, "dead letter")
    ('1 item', '2,000 dead letters')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _attributes_of(error: BaseException) -> dict[str, Any]:
    """Return what *error* has itself: its class may answer to any name, or refuse any."""
    attributes: dict[str, Any] = object.__getattribute__(error, "__dict__")
    return attributes
