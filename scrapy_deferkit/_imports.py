"""Heavy libraries, imported in a thread when they are first needed."""

from __future__ import annotations

import importlib
import sys

from ._engine import resolve
from ._runtime import WorkerThread, uses_asyncio


async def import_in_thread(*names: str) -> None:
    """Import the modules *names* without blocking the event loop.

    If they are imported already, no thread is started and nothing is awaited.
    """
    missing = [name for name in names if not _is_imported(name)]
    if not missing:
        return
    if uses_asyncio() is None:  # no event loop to block, nor one to come back to
        _import(missing)
        return
    thread = WorkerThread("deferkit-import")
    try:
        await resolve(thread.call(_import, missing))
    finally:
        thread.close()


def _is_imported(name: str) -> bool:
    # A module that another thread is importing is in sys.modules too: importing it would block.
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def _import(names: list[str]) -> None:
    for name in names:
        importlib.import_module(name)
