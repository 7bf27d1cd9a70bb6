"""Every setting of this package, read once into one frozen object."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .exceptions import StackConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scrapy.settings import BaseSettings


@dataclass(frozen=True)
class Config:
    """The ``DEFERKIT_`` settings; ``None`` stands for one that is not set."""

    chain: tuple[Any, ...] | None
    tolerant: tuple[Any, ...] | None
    parallel: tuple[Any, ...] | None
    each: tuple[dict[str, Any], ...] | None
    stack: Any
    spider_stack: Any
    spider_concurrency: int
    request_chain: tuple[Any, ...] | None
    response_chain: tuple[Any, ...] | None

    @classmethod
    def from_settings(cls, settings: BaseSettings) -> Config:
        """Read *settings*.

        Raises :exc:`~scrapy_deferkit.exceptions.StackConfigError` where a value has the wrong
        shape; what is in a stack or a list is looked at when it is built.
        """
        return cls(
            chain=_processors(settings, "DEFERKIT_CHAIN"),
            tolerant=_processors(settings, "DEFERKIT_TOLERANT"),
            parallel=_processors(settings, "DEFERKIT_PARALLEL"),
            each=_each(settings),
            stack=settings.get("DEFERKIT_STACK"),
            spider_stack=settings.get("DEFERKIT_SPIDER_STACK"),
            spider_concurrency=_at_least_one(settings, "DEFERKIT_SPIDER_CONCURRENCY", 16),
            request_chain=_processors(settings, "DEFERKIT_REQUEST_CHAIN"),
            response_chain=_processors(settings, "DEFERKIT_RESPONSE_CHAIN"),
        )


@contextmanager
def blaming(setting: str) -> Iterator[None]:
    """Let a :exc:`StackConfigError` that rises in the block begin with the *setting*."""
    try:
        yield
    except StackConfigError as error:
        raise StackConfigError(f"{setting}: {error}") from error


def _processors(settings: BaseSettings, name: str) -> tuple[Any, ...] | None:
    value = settings.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str):  # from the command line, as Scrapy reads lists there
        return tuple(path.strip() for path in value.split(","))
    if not isinstance(value, (list, tuple)):
        raise StackConfigError(
            f"{name} = {value!s} ({type(value).__name__}): a list of processors is expected, as "
            f'in {name} = ["bookshop.processors.clean_title"]; a whole stack goes into '
            "DEFERKIT_STACK, for StackPipeline"
        )
    return tuple(value)


def _each(settings: BaseSettings) -> tuple[dict[str, Any], ...] | None:
    value = settings.get("DEFERKIT_EACH")
    if value is None:
        return None
    entries = value if isinstance(value, (list, tuple)) else [value]
    for entry in entries:
        if not isinstance(entry, dict):
            raise StackConfigError(
                f"DEFERKIT_EACH = {value!s} ({type(entry).__name__}): a dict is expected, or a "
                'list of them, as in {"field": "offers", "processor": "shop.processors.offer"}'
            )
    return tuple(entries)


def _at_least_one(settings: BaseSettings, name: str, default: int) -> int:
    value = settings.get(name, default)
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1 or isinstance(value, (bool, float)):
        raise StackConfigError(f"{name} = {value!r}: a whole number of 1 or more is expected")
    return number
