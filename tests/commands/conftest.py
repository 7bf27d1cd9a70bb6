"""The project of these tests, the command in this process, and a PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scrapy.cmdline import execute
from scrapy.settings import Settings

from scrapy_deferkit.deadletters import DeadLetters

from ..postgres import postgres as postgres  # noqa: PLC0414
from .project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


class Letters:
    """``scrapy deferkit dead-letters --url`` in this process, outside any project."""

    def __init__(self, folder: Path, read: Callable[[], Any]) -> None:
        self.path = folder / "letters.sqlite"
        self.url = f"sqlite:///{self.path}"
        self.store = DeadLetters(self.url)
        self._read = read

    def __call__(self, *arguments: str, code: int = 0) -> Any:
        """Run a command that is to end with *code*; give its output and what it said."""
        with pytest.raises(SystemExit) as ended:
            execute(
                ["scrapy", "deferkit", "dead-letters", *arguments, "--url", self.url], Settings()
            )
        output = self._read()
        assert (ended.value.code or 0) == code, output
        return output

    def listed(self, *filters: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self("list", "--json", *filters).out.splitlines()]

    def ids(self, *filters: str) -> list[str]:
        return [letter["id"] for letter in self.listed(*filters)]


@pytest.fixture
def letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Letters:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCRAPY_SETTINGS_MODULE", raising=False)
    return Letters(tmp_path, capsys.readouterr)
