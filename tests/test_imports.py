"""What is heavy is imported when it is first needed, in a thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scrapy_deferkit import _imports
from scrapy_deferkit._imports import import_in_thread
from scrapy_deferkit._runtime import call_soon, to_awaitable, to_deferred, turn

HEAVY = "deferkit_test_heavy"


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Write the code of a module that nobody has imported yet."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code: str) -> None:
        (tmp_path / f"{HEAVY}.py").write_text(f"import threading\n{code}")

    yield write
    sys.modules.pop(HEAVY, None)


class Gate:
    """What the module tells of its import, and waits for before it is imported."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.allowed = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(threading, "gate", gate, raising=False)
    return gate


WAITS = "threading.gate.begun.set()\nassert threading.gate.allowed.wait(30)\n"


async def test_a_module_is_imported_while_the_loop_goes_on(
    heavy: Callable[[str], None], gate: Gate
) -> None:
    heavy(WAITS + "thread = threading.current_thread()")
    call_soon(gate.allowed.set)
    await import_in_thread(HEAVY)
    assert sys.modules[HEAVY].thread is not threading.current_thread()


async def test_whoever_comes_during_an_import_waits_for_its_end(
    heavy: Callable[[str], None], gate: Gate
) -> None:
    heavy(WAITS + "is_whole = True")
    first = to_deferred(import_in_thread(HEAVY))
    while not gate.begun.is_set():
        await turn()
    assert HEAVY in sys.modules
    second = to_deferred(import_in_thread(HEAVY))
    for _ in range(5):
        await turn()
    assert not second.called
    gate.allowed.set()
    await to_awaitable(second)
    assert sys.modules[HEAVY].is_whole
    await to_awaitable(first)


async def test_what_an_import_raises_is_raised_here(heavy: Callable[[str], None]) -> None:
    heavy("raise ZeroDivisionError")
    with pytest.raises(ZeroDivisionError):
        await import_in_thread(HEAVY)


@pytest.mark.no_runtime
def test_what_is_imported_already_takes_no_thread_and_no_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_imports, "WorkerThread", None)
    with pytest.raises(StopIteration):
        import_in_thread("json", "sys").send(None)
