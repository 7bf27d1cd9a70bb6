"""What the documents show works."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

import scrapy_deferkit
from scrapy_deferkit import StackPipeline
from scrapy_deferkit.testing import mock_crawler, run_stack

ROOT = Path(__file__).parent.parent
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
async def test_the_python_in_a_document_runs_and_its_tests_pass(document: Path) -> None:
    shown: dict[str, Any] = {}
    for block in PYTHON.findall(document.read_text()):
        exec(compile(block, document.name, "exec"), shown)
    for name, test in list(shown.items()):
        if name.startswith("test_"):
            result = test()
            if inspect.isawaitable(result):
                await result


async def test_the_readme_does_what_it_says_around_its_code() -> None:
    shown: dict[str, Any] = {}
    text = (ROOT / "README.md").read_text()
    for block in PYTHON.findall(text)[:-1]:
        exec(compile(block, "README.md", "exec"), shown)
    assert isinstance(shown["deferred"], Deferred)
    assert shown["deferred"].result == {"title": "Emma", "price": 9.5}
    crawler = mock_crawler({"DEFERKIT_STACK": shown["DEFERKIT_STACK"]})
    StackPipeline.from_crawler(crawler)
    run = await run_stack(shown["DEFERKIT_STACK"], [{"title": 3}])
    assert [failed.step for failed in run.failed] == ["shop/clean_title"]


def examples_in_docstrings() -> Iterator[doctest.DocTest]:
    for module in pkgutil.walk_packages(scrapy_deferkit.__path__, "scrapy_deferkit."):
        found = doctest.DocTestFinder().find(importlib.import_module(module.name))
        yield from (it for it in found if it.examples)


@pytest.mark.parametrize("examples", [*examples_in_docstrings()], ids=lambda it: it.name)
def test_the_examples_in_a_docstring_run(examples: doctest.DocTest) -> None:
    runner = doctest.DebugRunner()  # it raises what goes wrong
    assert runner.run(examples).attempted == len(examples.examples)


@pytest.mark.no_runtime
def test_the_first_two_sh_blocks_are_the_two_commands() -> None:
    blocks = SHELL.findall((ROOT / "README.md").read_text())
    crawl, test = blocks[:2]
    assert crawl.count("\n") == test.count("\n") == 1
    assert crawl.endswith("scrapy crawl books\n")
    assert test.endswith("python -m tests\n")


@pytest.mark.no_runtime
def test_every_public_name_is_in_the_documents() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    missing = [name for name in scrapy_deferkit.__all__ if name not in text]
    assert not missing


@pytest.mark.no_runtime
def test_every_setting_is_in_the_documents() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    source = (ROOT / "scrapy_deferkit" / "_config.py").read_text()
    settings = set(re.findall(r"DEFERKIT_[A-Z_]+", source))
    assert settings
    assert not [name for name in settings if name not in text]
