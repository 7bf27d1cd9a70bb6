"""What keeps the mark ``no_runtime`` honest: a marked test that touches a runtime fails."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest
import twisted.internet

from scrapy_deferkit import _runtime

# All that the package knows of loops and reactors, it asks of these.
ASKED_OF_SCRAPY = (
    "scrapy_call_later",
    "is_asyncio_available",
    "deferred_from_coro",
    "maybe_deferred_to_future",
)


class RuntimeTouched(BaseException):
    """Is no Exception, so that nothing recovers from it."""


def _refuse(what: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeTouched(f"a test that is marked `no_runtime` touches {what}")

    return refuse


def _refuse_a_loop(loop: Any, *_: object) -> None:
    loop._closed = True  # or its end complains
    _refuse("an event loop")()


class _Reactor:
    """Stands for the reactor, if there is one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # hypothesis looks through all modules
            raise AttributeError(name)
        _refuse(f"the reactor's {name}")()


class _NoReactor:
    """Finds the module of the reactor before anybody can import it, and so install one."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "twisted.internet.reactor":
            _refuse("the reactor")()


@contextmanager
def no_runtime_is_touched() -> Iterator[None]:
    """Let whatever needs a loop or a reactor raise, or depends on which there is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ASKED_OF_SCRAPY:
            patch.setattr(_runtime, name, _refuse(f"_runtime.{name}"))
        patch.setattr(asyncio.BaseEventLoop, "__init__", _refuse_a_loop)
        patch.setattr(sys, "meta_path", [_NoReactor(), *sys.meta_path])
        if "twisted.internet.reactor" in sys.modules:
            patch.setitem(sys.modules, "twisted.internet.reactor", _Reactor())
            patch.setattr(twisted.internet, "reactor", _Reactor())
        yield
