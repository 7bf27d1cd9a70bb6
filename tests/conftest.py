"""Run the suite on whichever runtime this pytest was started for, and let nothing go unheard."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import hypothesis
import pytest
from scrapy.utils.defer import deferred_from_coro
from scrapy.utils.reactor import is_reactor_installed
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

hypothesis.settings.register_profile(
    "deferkit", deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("deferkit")


HANGS_AFTER = 60
"""Seconds of a test after which nothing more will come."""


def run(function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine function on this runtime, from a test that is none."""
    if not is_reactor_installed():
        return asyncio.run(asyncio.wait_for(function(), HANGS_AFTER))
    import pytest_twisted
    from twisted.internet import reactor

    ended: Deferred[Any] = Deferred()

    def begin() -> None:
        deferred_from_coro(function()).addBoth(ended.callback)

    reactor.callLater(0, begin)
    return pytest_twisted.blockon(ended.addTimeout(HANGS_AFTER, reactor))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that are coroutines, under hypothesis too; leave others as they are."""
    by_hypothesis = getattr(pyfuncitem.obj, "hypothesis", None)
    if by_hypothesis is not None:
        inner = by_hypothesis.inner_test
        if inspect.iscoroutinefunction(inner):

            @functools.wraps(inner)
            def call(*args: Any, **kwargs: Any) -> Any:
                return run(functools.partial(inner, *args, **kwargs))

            by_hypothesis.inner_test = call
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    if by_hypothesis is None and inspect.iscoroutinefunction(pyfuncitem.obj):
        run(functools.partial(pyfuncitem.obj, **arguments))
    else:
        pyfuncitem.obj(**arguments)
    return True


@pytest.fixture(scope="session")
def runtime() -> str:
    """Tell which runtime this is: ``"asyncio"``, ``"twisted"`` or ``"none"``."""
    if not is_reactor_installed():
        return "none"
    from scrapy.utils.reactor import is_asyncio_reactor_installed

    return "asyncio" if is_asyncio_reactor_installed() else "twisted"


@pytest.fixture(autouse=True)
def nothing_goes_unheard() -> Iterator[None]:
    """Fail the test whose Deferreds or tasks failed with nobody to hear it."""
    heard: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if "log_failure" in event:
            heard.append(f"{event.get('log_format')}: {event['log_failure']}")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    handler = Handler(logging.ERROR)
    globalLogPublisher.addObserver(observe)
    logging.getLogger("asyncio").addHandler(handler)
    yield
    globalLogPublisher.removeObserver(observe)
    logging.getLogger("asyncio").removeHandler(handler)
    assert not heard, "\n".join(heard)
