"""A replay that would be an ordinary crawl never begins."""

from __future__ import annotations

import pytest

from .project import Project, failed

pytestmark = pytest.mark.crawl

OWN = """
from scrapy.pipelines import ItemPipelineManager


class Own(ItemPipelineManager):
    pass
"""
NO_GATE = 'SPIDER_MIDDLEWARES["scrapy_deferkit.gate.ItemGate"] = None'


def refused(project: Project, *options: str) -> str:
    """Give why a replay is refused; nothing has run then."""
    project.put(failed("a"))
    before = project.kept()
    ended = project.replay("books", *options, code=2)
    assert "Traceback" not in ended.stderr
    assert not project.has("start")
    assert not project.has("process_start")
    assert not project.sunk
    assert project.kept() == before
    return ended.stderr


def test_without_the_add_on(project: Project) -> None:
    project.add_settings("ADDONS = {}")
    assert "the add-on is not in its settings; add ADDONS = {" in refused(project)


def test_where_the_spider_takes_the_add_on_out(project: Project) -> None:
    path = project.folder / "shop/spiders/books.py"
    text = path.read_text().replace(
        '    name = "books"', '    name = "books"\n    custom_settings = {"ADDONS": {}}'
    )
    path.write_text(text)
    assert "the add-on is not in its settings" in refused(project)


def test_with_another_item_processor(project: Project) -> None:
    project.write("shop/own.py", OWN)
    project.add_settings('ITEM_PROCESSOR = "shop.own.Own"')
    assert "books has ITEM_PROCESSOR = 'shop.own.Own', which keeps no items" in refused(project)


def test_where_the_gate_is_disabled(project: Project) -> None:
    project.add_settings(NO_GATE)
    assert "has no ItemGate in SPIDER_MIDDLEWARES" in refused(project)


def test_with_a_setting_that_is_wrong(project: Project) -> None:
    assert "DEFERKIT_CONCURRENT_ITEMS = 'x'" in refused(
        project, "-s", "DEFERKIT_CONCURRENT_ITEMS=x"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("replay",), "replay needs one SPIDER"),
        (("replay", "books", "films"), "replay needs one SPIDER"),
        (("replay", "films"), "there is no spider 'films' in this project; there are: "),
        (("replay", "books", "--lease", "0"), "'0': a number of seconds, from 1"),
        (("replay", "books", "--lease", "nan"), "'nan': a number of seconds"),
        (("replay", "books", "-o", "a.jl", "-O", "b.jl"), "only one of -o"),
        (("replay", "books", "--nosuch"), "there is no option --nosuch here"),
        ((), "dead-letters"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_wrong_command_ends_with_2(
    project: Project, arguments: tuple[str, ...], reason: str
) -> None:
    ended = project.scrapy("deferkit", *arguments, code=2)
    assert reason in ended.stderr + ended.stdout
    assert not project.has("start")


def test_outside_a_project_a_url_is_needed(project: Project) -> None:
    outside = project.folder.parent
    assert "say where with --url" in project.letters(code=2, cwd=outside).stderr
    project.put(failed("a"))
    assert "a\tbooks\t" in project.letters("--url", project.url(), cwd=outside).stdout


def test_dead_letters_that_are_switched_off_can_still_be_replayed(project: Project) -> None:
    project.add_settings("DEFERKIT_DEAD_LETTERS = False")
    project.write("repaired", "")
    project.put(failed("a"))
    assert "1 delivered" in project.replay("books").stderr
    assert not project.has("process_start")


@pytest.mark.parametrize(
    "change",
    [
        '"ITEM_PROCESSOR", "scrapy.pipelines.ItemPipelineManager"',
        '"DEFERKIT_DEAD_LETTERS", False',
    ],
)
def test_settings_that_change_as_the_spider_is_built_let_nothing_be_crawled(
    project: Project, change: str
) -> None:
    path = project.folder / "shop/spiders/books.py"
    path.write_text(
        path.read_text()
        + f"""
    @classmethod
    def from_crawler(cls, crawler, *args, **kwargs):
        crawler.settings.set({change}, "cmdline")
        return super().from_crawler(crawler, *args, **kwargs)
"""
    )
    project.put(failed("a"))
    ended = project.replay("books", code=1)
    assert "dead letters were to be replayed, and items are not kept in this crawl" in ended.stderr
    assert not project.has("start")
    assert not project.has("process_start")
    assert [letter.id for letter in project.kept()] == ["a"]
