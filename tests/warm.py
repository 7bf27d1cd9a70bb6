"""Programs that start at once: forks of one process that has imported what they all import.

``run`` and ``start`` are ``subprocess.run`` and ``subprocess.Popen`` for Python programs: a script,
or ``-m`` and a module. What is imported beforehand knows no runtime, so each program still chooses
its own. For what begins with the start of an interpreter, use ``subprocess`` itself.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

from scrapy import commands, downloadermiddlewares, extensions, spidermiddlewares

import scrapy_deferkit

EXAMPLE = str(Path(__file__).parent.parent / "example_project")
IMPORTED = [
    "aiohttp.web",
    "httpx",
    "pydantic",
    "requests",
    "rich.progress",
    "rich.table",
    "scrapy.cmdline",
    "scrapy.core.downloader.handlers.datauri",
    "scrapy.core.downloader.handlers.file",
    "scrapy.core.downloader.handlers.http11",
    "scrapy.core.downloader.handlers.s3",
    "scrapy.core.engine",
    "scrapy.crawler",
    "scrapy.dupefilters",
    "scrapy.http",
    "scrapy.logformatter",
    "scrapy.pqueues",
    "scrapy.squeues",
    "scrapy.statscollectors",
    "scrapy_deferkit.commands",
    "scrapy_deferkit.deadletters",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "tenacity",
    "tldextract",
]
"""What is not installed is left out."""
for package in (commands, downloadermiddlewares, extensions, spidermiddlewares):
    IMPORTED += [
        it.name
        for it in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        if it.name != "scrapy.extensions.statsmailer"  # deprecated, and says so
    ]


# Of two threads that ask how one process ended, multiprocessing would tell one.
_ONE_AT_A_TIME = threading.Lock()


class Program:
    """A program that runs, with what tests need of a ``subprocess.Popen``."""

    def __init__(
        self,
        arguments: tuple[str, ...],
        cwd: Path,
        env: dict[str, str],
        outputs: tuple[Path, Path],
        measured: bool,
    ) -> None:
        self.args = arguments
        plan = (arguments, str(cwd), env, tuple(map(str, outputs)), measured)
        names = {"PLAN": plan, "TESTED": scrapy_deferkit.__file__}
        with _ONE_AT_A_TIME:
            self._process = _server().Process(
                target=runpy.run_path, args=(__file__, names, "__main__")
            )
            self._process.start()

    def poll(self) -> int | None:
        with _ONE_AT_A_TIME:
            return self._process.exitcode

    returncode = property(poll)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    *arguments: str,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    stdout: Path = Path(os.devnull),
    stderr: Path = Path(os.devnull),
    measured: bool = False,
) -> Program:
    """Start a program; its output is appended to files.

    What is *measured* adds to the coverage, and takes twice the time when that is asked for.
    """
    cwd = Path.cwd() if cwd is None else cwd
    env = dict(os.environ if env is None else env)
    return Program(arguments, cwd, env, (stdout, stderr), measured)


def run(
    *arguments: str,
    cwd: Path,
    env: dict[str, str] | None = None,
    timeout: float = 120,
    measured: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and return its exit code and its output."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        program = start(
            *arguments, cwd=cwd, env=env, stdout=stdout, stderr=stderr, measured=measured
        )
        try:
            code = program.wait(timeout)
        finally:
            program.kill()
            program.wait()
        texts = [path.read_text("utf-8") if path.exists() else "" for path in (stdout, stderr)]
    return subprocess.CompletedProcess(arguments, code, *texts)


def _server() -> Any:
    """Return the means to fork, and see that the server runs.

    It may look for what it imports where it is started, and that is not to be the checkout.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    here = Path.cwd()
    os.chdir(sys.prefix)
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(here)
    return context


def _play(
    arguments: tuple[str, ...],
    cwd: str,
    env: dict[str, str],
    outputs: tuple[str, str],
    measured: bool,
) -> None:
    """Be the program, in the fork."""
    if not measured and "coverage" in sys.modules:
        running = sys.modules["coverage"].Coverage.current()
        if running is not None:
            running.stop()
    assert "twisted.internet.reactor" not in sys.modules, "what is imported chose a reactor"
    gc.freeze()  # what was imported is shared memory as long as no collection looks at it
    for number, path in enumerate(outputs, 1):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))
    is_module = arguments[0] == "-m"
    sys.argv = list(arguments[is_module:])
    first = cwd if is_module else str(Path(arguments[0]).parent)
    added = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:] = [first, *added, *(path for path in sys.path if path not in ("", EXAMPLE))]
    try:
        if is_module:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
    finally:  # as at the end of an interpreter: what is found to be wrong then is said
        gc.collect()
        atexit._run_exitfuncs()


if __name__ == "__main__":
    assert scrapy_deferkit.__file__ == TESTED, scrapy_deferkit.__file__  # noqa: F821
    _play(*PLAN)  # noqa: F821
