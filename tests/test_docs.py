"""What the documents show works."""

from __future__ import annotations

import argparse
import doctest
import importlib
import inspect
import json
import pkgutil
import re
import shlex
from ast import literal_eval
from collections.abc import Iterator
from importlib.metadata import metadata, requires
from pathlib import Path
from typing import Any

import pytest
from scrapy.commands.crawl import Command as ScrapyCrawlCommand
from scrapy.settings import Settings
from twisted.internet.defer import Deferred

import scrapy_deferkit
from bookshop import settings
from scrapy_deferkit import StackPipeline, StackSpiderMiddleware, step_stats
from scrapy_deferkit._config import SETTINGS, Config
from scrapy_deferkit.commands import Command
from scrapy_deferkit.itemprocessor import DeferKitItemProcessor
from scrapy_deferkit.testing import mock_crawler, run_stack

ROOT = Path(__file__).parent.parent
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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


# ---------------------------------------------------------------------------------- every name


@pytest.mark.no_runtime
def test_every_setting_is_on_the_settings_page_with_its_default() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = re.findall(r"^\| `(DEFERKIT_\w+)` \| `(.*?)`", page, re.MULTILINE)
    assert [name for name, _ in rows] == sorted(SETTINGS)
    config = vars(Config.from_settings(Settings()))
    config["secrets"] = config["secrets"].pattern
    literals = [(name, it.replace("\\|", "|")) for name, it in rows]  # in a table
    defaults = {name.removeprefix("DEFERKIT_").lower(): literal_eval(it) for name, it in literals}
    assert {name: config.get(name, default) for name, default in defaults.items()} == defaults


@pytest.mark.no_runtime
def test_every_other_table_has_the_default_of_the_settings_page() -> None:
    config = vars(Config.from_settings(Settings()))
    row = re.compile(r"^\| `DEFERKIT_(\w+)` \| `?([\d.]+|True|False|None)\b", re.MULTILINE)
    told = [it for document in DOCUMENTS for it in row.findall(document.read_text())]
    assert len(told) > len(SETTINGS)
    wrong = [it for it in told if config.get(it[0].lower(), None) != literal_eval(it[1])]
    assert not wrong


SOURCES = sorted((ROOT / "scrapy_deferkit").glob("**/*.py"))
DOTTED = re.compile(r"\b(?:bookshop|scrapy_deferkit)(?:\.\w+)+")


def resolve(path: str) -> Any:
    """Return what is at *path*: a module, or something in one."""
    first, *others = path.split(".")
    found, module = importlib.import_module(first), first
    for name in others:
        module = f"{module}.{name}"
        if not hasattr(found, name):
            found = importlib.import_module(module)
        else:
            found = getattr(found, name)
    return found


@pytest.mark.no_runtime
@pytest.mark.parametrize("file", [*DOCUMENTS, *SOURCES], ids=lambda path: path.name)
def test_every_name_of_the_package_and_of_the_bookshop_exists(file: Path) -> None:
    for path in set(DOTTED.findall(file.read_text())):
        resolve(path)


@pytest.mark.no_runtime
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_and_every_file_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    assert {*re.findall(r"DEFERKIT_[A-Z][A-Z_]*", text)} <= {*SETTINGS}
    for path in re.findall(r"`((?:docs|benchmarks|example_project|[A-Z]+\.md)[\w/.]*)`", text):
        assert (ROOT / path).exists(), path


def steps_of_the_bookshop() -> set[str]:
    values = {name: value for name, value in vars(settings).items() if name.isupper()}
    crawler = mock_crawler({**values, "ADDONS": {}})
    StackSpiderMiddleware.from_crawler(crawler)
    DeferKitItemProcessor.from_crawler(crawler)
    return {step.path for step in step_stats(crawler)}


async def test_every_step_that_a_document_names_is_one_of_the_bookshop() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"--step ([\w/#]+)", text)) - {"STEP"}
    assert "Chain/FetchTax" in named
    assert named <= steps_of_the_bookshop()


# ---------------------------------------------------------------------------------- every snippet


def commands() -> Iterator[str]:
    """Yield every command of Scrapy's in the documents."""
    for document in DOCUMENTS:
        text = document.read_text()
        for line in "\n".join(SHELL.findall(text)).splitlines():
            for part in re.split(r"[;|]|&&|'", line):
                _, word, rest = part.partition("scrapy ")
                if word:
                    yield f"scrapy {rest.strip()}"


@pytest.mark.no_runtime
@pytest.mark.parametrize("command", sorted({*commands()}))
def test_every_command_has_the_options_that_are_shown(command: str) -> None:
    _, kind, *words = shlex.split(command)
    shown = Command() if kind == "deferkit" else ScrapyCrawlCommand()
    shown.settings = Settings()
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    shown.add_options(parser)
    options, others = parser.parse_known_args(words)
    assert kind in ("deferkit", "crawl")
    assert not [word for word in others if word.startswith("-")]
    if kind == "crawl":
        assert others == ["books"]
    else:
        assert options.what in ("crawl", "dead-letters", "replay", "job")


@pytest.mark.no_runtime
def test_every_block_of_json_is_json() -> None:
    blocks = re.compile(r"^```json\n(.*?)^```", re.MULTILINE | re.DOTALL)
    found = [block for document in DOCUMENTS for block in blocks.findall(document.read_text())]
    assert found
    for block in found:
        json.loads(block)


# ------------------------------------------------------------------------------------ every link


def links(document: Path) -> list[str]:
    text = re.sub(
        r"^```.*?^```|`[^`\n]*`", "``", document.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(document: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.no_runtime
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in links(document):
        path, _, anchor = link.partition("#")
        if not path.startswith("https://"):
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.no_runtime
def test_the_links_of_the_readme_work_on_the_package_index() -> None:
    found = links(ROOT / "README.md")
    assert found
    assert not [link for link in found if not link.startswith(("https://", "#"))]


# -------------------------------------------------------------------------------- the first screen


@pytest.mark.no_runtime
def test_the_first_screen_has_what_a_new_user_looks_for_in_this_order() -> None:
    text = (ROOT / "README.md").read_text()
    places = [
        text.index(what)
        for what in (
            "`pip install scrapy-deferkit`",
            'ADDONS = {"scrapy_deferkit.Addon": 500}',
            "Items of books: ",
            "or two to install",
            "scrapy crawl books\n",
            "five minutes",
            "python -m tests\n",
            "](#",
        )
    ]
    assert places == sorted(places)
    assert text[: places[-1]].count("\n") < 70
    python = metadata("scrapy-deferkit")["Requires-Python"]
    assert f"Python {python.removeprefix('>=')} or later" in text
    (scrapy,) = [it for it in requires("scrapy-deferkit") or () if it.startswith("scrapy>=")]
    assert f"Scrapy {scrapy.removeprefix('scrapy>=')} or later" in text


@pytest.mark.no_runtime
def test_the_two_commands_show_what_they_do() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        for command in SHELL.findall((ROOT / name).read_text())[:2]:
            assert " -q " not in command  # pip would be silent for a minute
