"""What can go wrong, under one base class, and the step an exception rose in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_STEP = "deferkit_step"


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


class ClosingError(DeferKitError):
    """One or more processors failed while a stack was closed.

    ``errors`` holds every failure, in the order in which they happened.
    """

    def __init__(self, stack: str, errors: Sequence[BaseException]) -> None:
        self.errors: tuple[BaseException, ...] = tuple(errors)
        listed = "; ".join(f"{type(error).__name__}: {error}" for error in self.errors)
        super().__init__(f"{stack}: {len(self.errors)} failed to close: {listed}")


def step_of(error: BaseException) -> str | None:
    """Give the path of the step where *error* rose, such as ``"catalogue/reviews/fetch"``.

    ``None`` for an exception that no stack has seen.
    """
    step: str | None = getattr(error, _STEP, None)
    return step


def mark_step(error: BaseException, path: str) -> None:
    """Note on *error* that it rose in the step *path*, for :func:`step_of` and for tracebacks.

    A later call replaces what an earlier one noted, so an exception object that is raised
    again and again does not gather notes.
    """
    notes = getattr(error, "__notes__", [])
    kept = [note for note in notes if note != _note(step_of(error))]
    try:
        setattr(error, _STEP, path)
        error.__notes__ = [*kept, _note(path)]
    except (AttributeError, TypeError):
        # An exception class may refuse new attributes; the failure itself matters more.
        return


def _note(path: str | None) -> str:
    return f"In the step {path}"
