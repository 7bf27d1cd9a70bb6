"""Where the dead letters are, and what writes nothing at all."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from scrapy_deferkit.deadletters import DeadLetters

from .project import Project, failed, titles

pytestmark = pytest.mark.crawl

FILMS = """
import scrapy


class Films(scrapy.Spider):
    name = "films"
    custom_settings = {"DEFERKIT_DEAD_LETTERS_URL": "sqlite:///films.sqlite"}
"""


def test_the_letters_of_all_spiders_are_listed_wherever_they_are(project: Project) -> None:
    project.write("shop/spiders/films.py", FILMS)
    project.put(failed("a"))
    project.put(failed("b", spider="renamed/1"), spider="renamed%2F1")
    DeadLetters(f"sqlite:///{project.folder}/films.sqlite").put([failed("c", spider="films")])
    assert sorted(titles(project.listed())) == ["a", "b", "c"]
    assert titles(project.listed("--spider", "films")) == ["c"]
    assert titles(project.listed("--spider", "renamed/1")) == ["b"]
    assert titles(project.listed("--url", project.url())) == ["a"]
    assert "id:              c\n" in project.letters("show", "c").stdout
    assert project.letters("delete", "--all").stdout == "3 dead letters deleted.\n"


def test_one_database_of_all_spiders_is_listed_once(project: Project) -> None:
    project.write("shop/spiders/films.py", FILMS.replace("films.sqlite", "all.sqlite"))
    project.add_settings('DEFERKIT_DEAD_LETTERS_URL = "sqlite:///all.sqlite"')
    store = DeadLetters(f"sqlite:///{project.folder}/all.sqlite")
    store.put([failed("a"), failed("b", spider="films")])
    assert titles(project.listed()) == ["a", "b"]
    assert titles(project.listed("--spider", "films")) == ["b"]
    project.write("repaired", "")
    assert "1 delivered" in project.replay("books").stderr
    assert titles(project.listed()) == ["b"]


def test_letters_are_read_where_a_spider_does_not_import(project: Project) -> None:
    project.write("shop/spiders/films.py", FILMS)
    project.write("shop/spiders/broken.py", "NameError_here\n")
    project.write("shop/spiders/abroad/__init__.py", "import nowhere\n")
    project.put(failed("a"))
    project.put(failed("b", spider="broken"), spider="broken")
    DeadLetters(f"sqlite:///{project.folder}/films.sqlite").put([failed("c", spider="films")])
    ended = project.letters("list", "--json")
    assert [json.loads(line)["id"] for line in ended.stdout.splitlines()] == ["a", "b", "c"]
    assert "Traceback" not in ended.stderr
    assert "Cannot import shop.spiders.broken, so the" in ended.stderr
    assert "settings say: NameError: name 'NameError_here'" in ended.stderr
    assert "Cannot import shop.spiders.abroad, so" in ended.stderr


def test_looking_writes_nothing(project: Project) -> None:
    before = project.files
    assert project.letters().stderr == "There are no dead letters.\n"
    project.letters("show", "a", code=1)
    project.letters("delete", "--all")
    project.replay("books")
    assert project.files == before


@pytest.mark.parametrize("jobdir", [(), ("-s", "JOBDIR=job")], ids=["no job", "a job"])
@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("check",),
        ("parse", "--pipelines", "--spider", "books"),
        ("shell",),
        ("crawl", "books", "-s", "ADDONS={}"),
    ],
    ids=lambda command: command[0],
)
def test_what_is_no_crawl_with_the_add_on_writes_nothing(
    project: Project, command: tuple[str, ...], jobdir: tuple[str, ...]
) -> None:
    page = project.write("page.txt", "books").as_uri()
    # With a job, Scrapy's shell waits for ever for the page that it has put into a queue on disk.
    takes_page = command[0] == "parse" or (command[0] == "shell" and not jobdir)
    code = ("-c", "response.text" if takes_page else "1") if command[0] == "shell" else ()
    project.scrapy(*command, *code, *jobdir, *([page] if takes_page else []))
    assert project.databases == []


def test_a_crawl_with_the_add_on_writes_its_file(project: Project) -> None:
    """Show that the commands above would have had something to write."""
    project.scrapy("crawl", "books", "-s", "JOBDIR=job")
    assert project.databases == [".scrapy/deferkit/books.sqlite", "job/deferkit.sqlite"]


@pytest.mark.parametrize("url", ["letters.sqlite", "mysql://user:secret@host/name"])
def test_a_wrong_url_is_refused_before_anything_is_crawled(project: Project, url: str) -> None:
    said = project.scrapy("crawl", "books", "-s", f"DEFERKIT_DEAD_LETTERS_URL={url}", code=1).stderr
    assert "StackConfigError: DEFERKIT_DEAD_LETTERS_URL = " in said
    assert "secret" not in said
    assert not project.has("start")


def test_a_project_without_scrapy_cfg_keeps_its_letters(project: Project) -> None:
    (project.folder / "scrapy.cfg").unlink()
    project.scrapy("crawl", "books", SCRAPY_SETTINGS_MODULE="shop.settings")
    assert len(project.kept()) == 2


def test_scrapys_other_commands_do_not_wait_for_what_is_slow_to_import(project: Project) -> None:
    code = "import scrapy_deferkit.commands, sys; print([*sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=project.folder
    )
    assert "'scrapy_deferkit.commands'" in ended.stdout
    for slow in ("sqlalchemy", "rich", "tenacity", "twisted.internet.reactor"):
        assert f"'{slow}'" not in ended.stdout
    assert "deferkit " in project.scrapy("-h").stdout
