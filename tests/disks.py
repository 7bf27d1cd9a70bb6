"""A disk that is soon full. A folder imports the fixture in its `conftest.py` or in a test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m", "none", str(path))
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def mount(*arguments: str) -> None:
    """Mount something, or skip the test."""
    try:
        mounted = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")


def fill(disk: Path) -> Path:
    """Fill *disk* by a file, which is returned."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler
