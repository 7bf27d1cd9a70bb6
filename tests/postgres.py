"""A real PostgreSQL server for tests, run from the binaries that Debian's `postgresql` has.

A folder that needs it imports the fixture in its `conftest.py`: `from ..postgres import postgres`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

STARTED_WITHIN = 60


class Postgres:
    """A server that listens on a socket in *folder* alone."""

    def __init__(self, binaries: Path, folder: Path, user: str | None) -> None:
        self._binaries = binaries
        self._folder = folder
        self._user = user
        self._numbers = count(1)
        self._run("initdb", "--username=deferkit", "--encoding=UTF8", "--no-locale", "--no-sync")

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        # What is written reaches the kernel, and so outlives a server that is killed.
        options = f"-k {self._folder} -c listen_addresses= -c fsync=off"
        self._control("start", "--options", options, "--log", str(self._folder / "log"))

    def stop(self) -> None:
        """Stop the server as a crash would."""
        self._control("stop", "--mode=immediate")

    def restart(self) -> None:
        """Let the server crash, and start it again: every connection is lost."""
        self._control("restart", "--mode=immediate", "--log", str(self._folder / "log"))

    def create_schema(self) -> str:
        """Make an empty schema, and give a URL that leads to it: much faster than a database."""
        import psycopg

        name = f"test_{next(self._numbers)}"
        with psycopg.connect(
            host=str(self._folder), user="deferkit", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"postgresql://deferkit@/postgres?host={self._folder}&options=-csearch_path%3D{name}"

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", *arguments, "--wait", f"--timeout={STARTED_WITHIN}")

    def _run(self, program: str, *arguments: str) -> None:
        # To a file: a server that inherits a pipe keeps it open.
        with (self._folder / "output").open("w+") as output:
            ended = subprocess.run(
                [self._binaries / program, "--pgdata", self._folder / "data", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env={"PATH": os.defpath, "LC_ALL": "C"},
                user=self._user,
                group=None if self._user is None else _group_of(self._user),
                extra_groups=None if self._user is None else [],
                timeout=2 * STARTED_WITHIN,
                check=False,
            )
            output.seek(0)
            assert ended.returncode == 0, output.read()


def _group_of(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid


@functools.cache
def find_binaries() -> Path | None:
    """Give the folder of the newest `initdb` and `pg_ctl` of this machine."""
    found = sorted(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")),
        key=lambda folder: [int(digits) for digits in re.findall(r"\d+", str(folder))],
    )
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.insert(0, Path(on_path).resolve().parent)
    return next((each for each in reversed(found) if (each / "pg_ctl").exists()), None)


def _server_user() -> str | None:
    """Give whom the server runs as: it refuses to be root's."""
    if os.geteuid() != 0:
        return None
    import pwd

    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server that is this session's own; skips where there can be none."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed (pip install 'scrapy-deferkit[postgres]')")
    # Sockets have short paths, so this is not pytest's own temporary folder.
    folder = Path(tempfile.mkdtemp(prefix="deferkit-pg-"))
    try:
        user = _server_user()
        if user is not None:
            shutil.chown(folder, user)
        server = Postgres(binaries, folder, user)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
