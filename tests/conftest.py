"""Run the suite on whichever runtime this pytest was started for, and let nothing go unheard."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import nullcontext
from typing import Any

import hypothesis
import pytest
import scrapy
from scrapy.utils.defer import deferred_from_coro
from scrapy.utils.reactor import is_reactor_installed
from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

import scrapy_deferkit

from .marks import no_runtime_is_touched
from .scale import third_of

hypothesis.settings.register_profile(
    "deferkit",
    deadline=None,
    max_examples=third_of(100),
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("deferkit")

KEPT_TOGETHER = ("test_runtimes.py", "test_real_site.py")
"""Files whose tests share what takes long to make."""


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


def pytest_collection_finish() -> None:
    """Keep what there is now out of every collection of garbage that a test asks for."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """Say what is tested: the installed package, not the checkout beside the tests."""
    return f"scrapy-deferkit: {scrapy_deferkit.__file__}, Scrapy {scrapy.__version__}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker one test after the other, and the files that are kept together first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file.endswith(KEPT_TOGETHER) else nodeid

    return Scheduling(config, log)


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """What a test measures, for the end of the run: ``tell("3 kills, nothing lost")``."""
    return lambda text: request.node.user_properties.append(("told", text))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show what tests have told."""
    reports = [it for some in terminalreporter.stats.values() for it in some]
    told = [
        text
        for it in reports
        if getattr(it, "when", None) == "call"
        for name, text in it.user_properties
        if name == "told"
    ]
    if told:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(told))


@pytest.fixture(autouse=True)
def as_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let no runtime be touched by a test that is marked so."""
    is_marked = request.node.get_closest_marker("no_runtime") is not None
    with no_runtime_is_touched() if is_marked else nullcontext():
        yield


@pytest.fixture(scope="session")
def runtime() -> str:
    """Tell which runtime this is: ``"asyncio"``, ``"twisted"`` or ``"none"``."""
    if not is_reactor_installed():
        return "none"
    from scrapy.utils.reactor import is_asyncio_reactor_installed

    return "asyncio" if is_asyncio_reactor_installed() else "twisted"


@pytest.fixture(autouse=True)
def unhandled() -> Iterator[list[str]]:
    """Fail the test whose Deferreds or tasks failed with nobody to hear it; yield what was told."""
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
    yield heard
    globalLogPublisher.removeObserver(observe)
    logging.getLogger("asyncio").removeHandler(handler)
    assert not heard, "\n".join(heard)
