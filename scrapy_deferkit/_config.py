"""Every setting of this package, read once into one frozen object."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scrapy.utils.misc import load_object

from ._secrets import SECRETS, without_secrets
from .exceptions import StackConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scrapy.settings import BaseSettings


SETTINGS = (
    "DEFERKIT_CHAIN",
    "DEFERKIT_CONCURRENT_ITEMS",
    "DEFERKIT_DEAD_LETTERS",
    "DEFERKIT_DEAD_LETTERS_KEY",
    "DEFERKIT_DEAD_LETTERS_MAX",
    "DEFERKIT_DEAD_LETTERS_URL",
    "DEFERKIT_EACH",
    "DEFERKIT_ENABLED",
    "DEFERKIT_FALLBACK_ITEM_PROCESSOR",
    "DEFERKIT_ITEM_CLASSES",
    "DEFERKIT_ITEM_TIMEOUT",
    "DEFERKIT_JOB_FSYNC",
    "DEFERKIT_MAX_DEATHS",
    "DEFERKIT_MAX_FAILED_ITEMS",
    "DEFERKIT_NONE_IS_FAILURE",
    "DEFERKIT_PARALLEL",
    "DEFERKIT_REPLAY",
    "DEFERKIT_REPORT",
    "DEFERKIT_REQUEST_CHAIN",
    "DEFERKIT_RESPONSE_CHAIN",
    "DEFERKIT_SECRETS",
    "DEFERKIT_SPIDER_CONCURRENCY",
    "DEFERKIT_SPIDER_STACK",
    "DEFERKIT_STACK",
    "DEFERKIT_STEP_STATS",
    "DEFERKIT_TOLERANT",
)
"""Every setting there is."""

COMPACT = "compact"
"""The ``DEFERKIT_STEP_STATS`` with which the stats have six figures of all items."""

WINDOW = 1000
"""Of how many last items ``DEFERKIT_MAX_FAILED_ITEMS`` is a percentage."""


@dataclass(frozen=True)
class FailureLimit:
    """How many items may fail: of all, or of the last :data:`WINDOW`."""

    items: int
    of_last: int | None


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
    enabled: bool
    fallback_item_processor: Any
    concurrent_items: int
    item_timeout: float
    max_failed_items: FailureLimit | None
    none_is_failure: bool
    step_stats: bool | str
    report: bool
    dead_letters: bool
    dead_letters_url: str | None
    dead_letters_max: int
    dead_letters_key: tuple[str, ...]
    secrets: re.Pattern[str]
    job_fsync: bool
    max_deaths: int

    @classmethod
    def from_settings(cls, settings: BaseSettings) -> Config:
        """Read *settings*.

        Raises :exc:`~scrapy_deferkit.exceptions.StackConfigError` where a value has the wrong
        shape; what is in a stack or a list is looked at when it is built.
        """
        return cls(
            chain=_processors(settings, "DEFERKIT_CHAIN"),
            tolerant=_pairs(settings, "DEFERKIT_TOLERANT"),
            parallel=_processors(settings, "DEFERKIT_PARALLEL"),
            each=_each(settings),
            stack=value_of(settings, "DEFERKIT_STACK"),
            spider_stack=value_of(settings, "DEFERKIT_SPIDER_STACK"),
            spider_concurrency=_whole_number(settings, "DEFERKIT_SPIDER_CONCURRENCY", 16, least=1),
            request_chain=_processors(settings, "DEFERKIT_REQUEST_CHAIN"),
            response_chain=_pairs(settings, "DEFERKIT_RESPONSE_CHAIN"),
            enabled=_flag(settings, "DEFERKIT_ENABLED", default=True),
            fallback_item_processor=settings.get("DEFERKIT_FALLBACK_ITEM_PROCESSOR"),
            concurrent_items=_whole_number(settings, "DEFERKIT_CONCURRENT_ITEMS", 100, least=0),
            item_timeout=_seconds(settings, "DEFERKIT_ITEM_TIMEOUT", 3600.0),
            max_failed_items=_failure_limit(settings, "DEFERKIT_MAX_FAILED_ITEMS"),
            none_is_failure=_flag(settings, "DEFERKIT_NONE_IS_FAILURE", default=True),
            step_stats=_step_stats(settings, "DEFERKIT_STEP_STATS"),
            report=_flag(settings, "DEFERKIT_REPORT", default=False),
            dead_letters=_flag(settings, "DEFERKIT_DEAD_LETTERS", default=False),
            dead_letters_url=_text(settings, "DEFERKIT_DEAD_LETTERS_URL"),
            dead_letters_max=_whole_number(settings, "DEFERKIT_DEAD_LETTERS_MAX", 0, least=0),
            dead_letters_key=_fields(settings, "DEFERKIT_DEAD_LETTERS_KEY"),
            secrets=_pattern(settings, "DEFERKIT_SECRETS", SECRETS),
            job_fsync=_flag(settings, "DEFERKIT_JOB_FSYNC", default=False),
            max_deaths=_whole_number(settings, "DEFERKIT_MAX_DEATHS", 4, least=2),
        )


_COMPONENTS = (
    "ADDONS",
    "DOWNLOADER_MIDDLEWARES",
    "EXTENSIONS",
    "ITEM_PIPELINES",
    "SPIDER_MIDDLEWARES",
)


def refuse_elsewhere(settings: BaseSettings, cls: type, setting: str) -> None:
    """Raise :exc:`StackConfigError` if *cls* is among the components of another *setting*."""
    for other in _COMPONENTS:
        for key, priority in settings.getdict(other).items():
            is_named = isinstance(key, str) and key.rpartition(".")[2] == cls.__name__
            found = load_object(key) if is_named else key
            if found is cls and priority is not None and other != setting:
                raise StackConfigError(
                    f"{other} holds {cls.__name__}, which does nothing there: it belongs into "
                    f"{setting}"
                )


@contextmanager
def blaming(setting: str) -> Iterator[None]:
    """Let a :exc:`StackConfigError` that rises in the block begin with the *setting*."""
    try:
        yield
    except StackConfigError as error:
        raise StackConfigError(f"{setting}: {error}") from error


def value_of(settings: BaseSettings, name: str) -> Any:
    """Return the value of the setting *name*; ``None`` if it is not set, or to nothing."""
    value = settings.get(name)
    return None if isinstance(value, str) and not value.strip() else value


def list_of(settings: BaseSettings, name: str) -> Any:
    """Return the value of a setting that takes a list or a dict.

    Text, from the command line, is JSON, or import paths between commas, as Scrapy has it there.
    """
    value = value_of(settings, name)
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith(("[", "{")):
        return [path.strip() for path in value.split(",")]
    try:
        return json.loads(value)
    except ValueError as error:
        raise StackConfigError(f"{name} = {value!r}: this is not JSON: {error}") from None


def _pairs(settings: BaseSettings, name: str) -> tuple[Any, ...] | None:
    value = settings.get(name)
    if (
        isinstance(value, tuple)
        and len(value) == 2
        and not any(isinstance(part, (tuple, list)) for part in value)
    ):
        raise StackConfigError(
            f"{name} = {value!s}: this may be one pair (processor, errback), or two processors; "
            "write [(processor, errback)], or [processor, processor]"
        )
    return _processors(settings, name)


def _shown(value: Any) -> str:
    return str(getattr(value, "__name__", value))  # of a function, not where it is in memory


def _processors(settings: BaseSettings, name: str) -> tuple[Any, ...] | None:
    value = list_of(settings, name)
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        raise StackConfigError(
            f"{name} = {_shown(value)} ({type(value).__name__}): a list of processors is expected, "
            f'as in {name} = ["bookshop.processors.tidy_title"]; a whole stack goes into '
            "DEFERKIT_STACK, for StackPipeline"
        )
    return tuple(value)


def _each(settings: BaseSettings) -> tuple[dict[str, Any], ...] | None:
    value = list_of(settings, "DEFERKIT_EACH")
    if value is None:
        return None
    entries = value if isinstance(value, (list, tuple)) else [value]
    for entry in entries:
        if not isinstance(entry, dict):
            raise StackConfigError(
                f"DEFERKIT_EACH = {_shown(value)} ({type(entry).__name__}): a dict is expected, or "
                'a list of them, as in {"field": "reviews", '
                '"processor": "bookshop.processors.check_review"}'
            )
    return tuple(entries)


def _whole_number(settings: BaseSettings, name: str, default: int, *, least: int) -> int:
    value = settings.get(name, default)
    number = _as_number(value, int)
    if number is None or number < least:
        raise StackConfigError(f"{name} = {value!r}: a whole number of {least} or more is expected")
    return int(number)


def _seconds(settings: BaseSettings, name: str, default: float) -> float:
    value = settings.get(name, default)
    number = _as_number(value, float)
    if number is None or not 0 <= number < float("inf"):
        raise StackConfigError(
            f"{name} = {value!r}: a time in seconds is expected, such as 600; 0 is no limit"
        )
    return number


def _failure_limit(settings: BaseSettings, name: str) -> FailureLimit | None:
    value = settings.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().endswith("%"):
        percent = _as_number(value.strip()[:-1], float)
        if percent is not None and 0 < percent <= 100:
            return FailureLimit(max(1, round(WINDOW * percent / 100)), WINDOW)
    else:
        number = _as_number(value, int)
        if number is not None and number >= 0:
            return FailureLimit(int(number), None) if number else None
    raise StackConfigError(
        f"{name} = {value!r}: a number of items is expected, such as 50, or a share of the last "
        f'{WINDOW:,}, such as "5%"; 0 is no limit'
    )


def _flag(settings: BaseSettings, name: str, *, default: bool) -> bool:
    value = settings.get(name)
    if value is None or value == "":
        return default
    try:
        return settings.getbool(name)
    except ValueError:
        raise StackConfigError(f"{name} = {value!r}: True or False is expected") from None


def _step_stats(settings: BaseSettings, name: str) -> bool | str:
    value = settings.get(name)
    if value == COMPACT:
        return COMPACT
    try:
        return _flag(settings, name, default=True)
    except StackConfigError:
        expected = f'True, False or "{COMPACT}" is expected'
        raise StackConfigError(f"{name} = {value!r}: {expected}") from None


def _text(settings: BaseSettings, name: str) -> str | None:
    value = settings.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise StackConfigError(
            f"{name} = {without_secrets(repr(value))} ({type(value).__name__}): a URL is expected, "
            "such as sqlite:///letters.sqlite"
        )
    return value


def _fields(settings: BaseSettings, name: str) -> tuple[str, ...]:
    value = settings.get(name)
    fields = list_of(settings, name) or ()
    if not isinstance(fields, (list, tuple)) or not all(isinstance(it, str) for it in fields):
        raise StackConfigError(
            f'{name} = {value!r}: the name of a field is expected, such as "sku", or a list of them'
        )
    stripped = tuple(field.strip() for field in fields)
    if not all(stripped):
        raise StackConfigError(f"{name} = {value!r}: a field has no name")
    return stripped


def _pattern(settings: BaseSettings, name: str, default: str) -> re.Pattern[str]:
    value = settings.get(name)
    pattern = value.pattern if isinstance(value, re.Pattern) else value
    try:
        if isinstance(pattern, bytes):
            raise TypeError("this is one of bytes")
        return re.compile(default if pattern is None or pattern == "" else pattern, re.IGNORECASE)
    except (TypeError, re.error) as error:
        raise StackConfigError(
            f'{name} = {value!r}: a regular expression is expected, such as "token|password" '
            f"({error})"
        ) from None


def _as_number(value: Any, kind: type[int] | type[float]) -> float | None:
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        return None
    try:
        return kind(value)
    except (TypeError, ValueError):
        return None
