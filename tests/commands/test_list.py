"""``dead-letters list`` and ``show``: everything is seen, whatever is in the table."""

from __future__ import annotations

import io
import json
import re
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from _pytest.capture import CaptureIO

from scrapy_deferkit import commands

from ..deadletters.failures import run_sql
from .conftest import Letters
from .project import failed

pytestmark = pytest.mark.no_runtime

HOUR = 3600.0


def test_the_list_is_the_default_and_a_pipe_gets_it_plain_and_whole(letters: Letters) -> None:
    letters.store.put([failed("a" * 40 + "-1", error="x" * 500, spider_args='{"site": "y"}')])
    output = letters()
    assert output.out == letters("list").out
    header, row = output.out.splitlines()
    assert header.split("\t")[:4] == ["id", "spider", "arguments", "step"]
    cells = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    assert cells["id"] == "a" * 40 + "-1"
    assert cells["error"] == "ValueError: " + "x" * 500
    assert cells["arguments"] == "site=y"
    assert (cells["attempts"], cells["page"]) == ("1", "https://example.com/1")
    assert datetime.fromisoformat(cells["failed"])
    assert row.isascii()


def test_what_a_page_has_put_into_an_error_neither_moves_the_cursor_nor_adds_cells(
    letters: Letters,
) -> None:
    letters.store.put([failed("a", error="red \x1b[31m\tone\nsecond line", page_url="http://x/\r")])
    (row,) = letters().out.splitlines()[1:]
    assert "red \\x1b[31m\\tone\t" in row
    assert row.split("\t")[7] == "http://x/\\r"
    shown = letters("show", "a").out
    assert "\x1b" not in shown
    assert "second line" in shown


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ((), ["a-1", "b-2", "c-3", "d-4"]),
        (("--spider", "films"), ["d-4"]),
        (("--spider", "nobody"), []),
        (("--step", "shop"), ["b-2", "c-3"]),
        (("--step", "shop/check"), ["c-3"]),
        (("--error", "timeout"), ["c-3"]),
        (("--error", "ask US"), ["a-1", "b-2", "d-4"]),
        (("--older-than", "90m"), ["a-1", "b-2"]),
        (("--newer-than", "1.5h"), ["c-3", "d-4"]),
        (("--older-than", "1d"), ["a-1"]),
        (("--older-than", "2000-01-01"), []),
        (("--newer-than", "2000-01-01T12:30"), ["a-1", "b-2", "c-3", "d-4"]),
        (("--newer-than", "2999-01-01T00:00Z"), []),
        (("--id", "b"), ["b-2"]),
        (("--id", "d", "--id", "a-1"), ["a-1", "d-4"]),
        (("--limit", "3"), ["a-1", "b-2", "c-3"]),
        (("--step", "shop", "--limit", "1"), ["b-2"]),
        (("--step", "shop", "--id", "a"), []),
    ],
    ids=" ".join,
)
def test_a_filter_narrows_the_list(
    letters: Letters, filters: tuple[str, ...], expected: list[str]
) -> None:
    letters.store.put(
        [
            failed("a-1", age=48 * HOUR),
            failed("b-2", age=2 * HOUR, step="shop/price"),
            failed(
                "c-3", age=HOUR, step="shop/check", error_type="builtins.TimeoutError", error=""
            ),
            failed("d-4", age=60, spider="films"),
        ]
    )
    assert letters.ids(*filters) == expected


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("list", "--older-than", "soon"), "'soon': an age such as 30m, 12h or 7d"),
        (("list", "--older-than", "9" * 400 + "d"), "an age such as"),
        (("list", "--limit", "0"), "'0': a whole number of 1 or more is expected"),
        (("list", "--limit", "many"), "'many': a whole number"),
        (("list", "extra"), "list takes options only; what is 'extra'?"),
        (("list", "--all"), "--all does not go with list"),
        (("lost",), "there is no dead-letters lost; there are list, show, edit, delete"),
        (("show",), "show needs one ID"),
        (("show", "a", "b"), "show needs one ID"),
        (("show", "a", "--step", "x"), "show takes an ID and no filters"),
        (("edit", "a", "--json"), "--json does not go with edit"),
        (("delete",), "delete what? Give a filter, or --all"),
        (("delete", "--limit", "3"), "delete what?"),
        (
            ("delete", "--error", ""),
            "argument --error: it is empty: leave it out, or see whether a",
        ),
        (("delete", "--step", " "), "argument --step: it is empty"),
        (("delete", "--id", ""), "argument --id: it is empty"),
        (("delete", "--spider", "", "--all"), "argument --spider: it is empty"),
        (("delete", "--url", "", "--all"), "argument --url: it is empty"),
        (("delete", "--id", "a", ""), "dead-letters is given an empty argument: leave it out"),
        (("show", ""), "dead-letters is given an empty argument"),
        (("list", "--sipder", "x"), "there is no option --sipder here"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value)[:30],
)
def test_a_wrong_command_says_what_is_wrong_and_ends_with_2(
    letters: Letters, arguments: tuple[str, ...], reason: str
) -> None:
    letters.store.put([failed("a")])
    assert reason in letters(*arguments, code=2).err
    assert letters.store.count() == 1


def test_json_has_an_object_per_line_with_the_item_in_it(letters: Letters) -> None:
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    letters.store.put([failed("a", {"title": "Ä", "when": {"$date": "2020-01-01"}}, age=0)])
    letters.store.put([failed("b", age=0, spider_args='{"site": "x"}', missing="price: a socket")])
    first, second = letters.listed()
    assert first["item"] == {"title": "Ä", "when": {"$date": "2020-01-01"}}
    assert (first["problem"], first["missing"], first["unreadable"]) == (None, None, None)
    assert (first["attempts"], first["step"], first["stage"]) == (1, "Price", "pipelines")
    assert datetime.fromisoformat(first["failed_at"]) >= before
    assert second["spider_args"] == {"site": "x"}
    assert second["missing"] == "price: a socket"
    assert "traceback" not in first
    shown = json.loads(letters("show", "a", "--json").out)
    assert shown.pop("traceback").endswith("ValueError: ask us\n")
    assert shown == first


ROT: dict[str, tuple[dict[str, Any], str, str]] = {
    "no JSON": ({"item": "{not json"}, "unreadable", "the text is not JSON"),
    "NaN": ({"item": '{"a": NaN}'}, "unreadable", "not JSON"),
    "too deep": ({"item": "[" * 100_000}, "unreadable", "nested too deeply"),
    "class gone": ({"item": '{"$item": "nowhere.Book"}'}, "unreadable", "may not be built"),
    "class refused": (
        {"item": '{"$item": "subprocess.Popen", "fields": {"args": "touch x"}}'},
        "unreadable",
        "may not be built",
    ),
    "missing": (
        {"item": '{"a": {"$unstorable": "socket.socket", "repr": "<s>"}}'},
        "missing",
        "socket",
    ),
    "nonsense": (
        {"attempts": "many", "failed_at": "yesterday"},
        "problem",
        "attempts is 'many'",
    ),
    "bytes": ({"error": b"\xff\xfe", "spider_args": b"\xff"}, "problem", "error is b"),
}


@pytest.mark.parametrize("rot", ROT)
def test_a_rotten_row_is_marked_and_stops_no_other(letters: Letters, rot: str) -> None:
    changes, mark, says = ROT[rot]
    letters.store.put([failed("a"), failed("rotten"), failed("z")])
    import sqlite3

    connection = sqlite3.connect(letters.path)
    for column, value in changes.items():
        connection.execute(
            f"UPDATE deferkit_dead_letters SET {column} = ? WHERE id = 'rotten'", (value,)
        )
    connection.commit()
    connection.close()
    listed = {letter["id"]: letter for letter in letters.listed()}
    assert set(listed) == {"a", "rotten", "z"}
    assert says in listed["rotten"][mark]
    assert [listed[each][mark] for each in "az"] == [None, None]
    (row,) = [line for line in letters().out.splitlines() if line.startswith("rotten")]
    assert f"{mark}: " in row.split("\t")[-1]
    assert f"{mark}:" in letters("show", "rotten").out


def test_show_gives_everything(letters: Letters) -> None:
    letters.store.put([failed("a", {"title": "A", "tags": ["x"]}, missing="b: a socket")])
    shown = letters("show", "a").out
    for part in ("a", "books", "Price", "ValueError", "https://example.com/1", "b: a socket"):
        assert part in shown
    assert '    "title": "A",\n' in shown
    assert 'File "price.py", line 7, in parse' in shown
    assert "could not convert string to float: 'ask us'" in shown


def test_an_id_may_be_shortened_as_long_as_it_means_one(letters: Letters) -> None:
    run, other = "3fa0c1" + "0" * 26, "3fa0ff" + "0" * 26
    letters.store.put([failed(f"{run}-1"), failed(f"{run}-11"), failed(f"{other}-2")])
    assert json.loads(letters("show", "3fa0f", "--json").out)["id"] == f"{other}-2"
    assert json.loads(letters("show", f"{run}-1", "--json").out)["id"] == f"{run}-1"
    assert json.loads(letters("show", "3fa0c1-11", "--json").out)["id"] == f"{run}-11"
    assert "several" in letters("show", "3fa0", code=1).err
    assert "There is no dead letter 3fa0c1-3" in letters("show", "3fa0c1-3", code=1).err
    assert "There is no dead letter b" in letters("list", "--id", "b", code=1).err


def test_looking_creates_no_file(letters: Letters) -> None:
    output = letters("list")
    assert (output.out, output.err) == ("", "There are no dead letters.\n")
    assert letters("list", "--json").out == ""
    assert letters("delete", "--all").out == "0 dead letters deleted.\n"
    assert not list(letters.path.parent.iterdir())


def test_a_file_that_is_no_database_is_told_of(letters: Letters) -> None:
    letters.path.write_text("no database " * 100)
    output = letters("list", code=1)
    assert "Error: The dead letters at sqlite:///" in output.err
    assert "Traceback" not in output.err


def test_delete_takes_what_the_filters_mean(letters: Letters) -> None:
    letters.store.put([failed(f"{n}-{n}", age=1000 - n, step=f"s{n % 2}") for n in range(10)])
    assert letters("delete", "--step", "s1", "--limit", "2").out == "2 dead letters deleted.\n"
    assert letters.ids("--step", "s1") == ["5-5", "7-7", "9-9"]
    assert letters("delete", "--id", "5", "7-7").out == "2 dead letters deleted.\n"
    assert letters("delete", "--spider", "books", "--step", "s0").out == "5 dead letters deleted.\n"
    assert letters.ids() == ["9-9"]
    assert letters("delete", "--all").out == "1 dead letter deleted.\n"
    assert run_sql(letters.url, "SELECT count(*) FROM deferkit_tracebacks") == [(0,)]


def test_more_letters_than_a_statement_can_take_are_deleted(letters: Letters) -> None:
    letters.store.put([failed(f"{n}-{n}") for n in range(1200)])
    assert letters("delete", "--all", "--limit", "1100").out == "1,100 dead letters deleted.\n"
    assert letters.store.count() == 100


@pytest.mark.parametrize(
    "filters",
    [("--spider", "nobody"), ("--step", "nowhere"), ("--step", "nowhere", "--id", "a")],
    ids=" ".join,
)
def test_filters_that_match_nothing_do_not_say_that_nothing_is_there(
    letters: Letters, filters: tuple[str, ...]
) -> None:
    letters.store.put([failed("a"), failed("b", spider="films")])
    said = "None match: there are 2 dead letters.\n"
    assert letters("list", *filters).err == said
    deleted = letters("delete", *filters)
    assert (deleted.out, deleted.err) == ("0 dead letters deleted.\n", said)


@pytest.fixture
def terminal(letters: Letters, monkeypatch: pytest.MonkeyPatch) -> Letters:
    """The commands on a terminal of 80 columns and 24 lines."""
    monkeypatch.setattr(CaptureIO, "isatty", lambda _: True)
    for name, value in (("COLUMNS", "80"), ("LINES", "24"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    return letters


def drawn(output: str) -> list[str]:
    """Return the lines of a table, without its head."""
    return [line for line in re.sub(r"\x1b\[[\d;]*m", "", output).splitlines() if line.strip()][2:]


def test_a_terminal_shows_the_first_screenful_a_line_each_and_says_how_many_there_are(
    terminal: Letters,
) -> None:
    changes = {"step": "s" * 99, "missing": "a socket " * 9, "error": "wrong " * 99}
    terminal.store.put(
        failed(f"{'3fa0c1' * 5}-{number}", age=9000 - number, **changes) for number in range(1200)
    )
    output = terminal("list")
    lines = drawn(output.out)
    assert [line.split()[0] for line in lines] == [f"3fa0c1-{number}" for number in range(18)]
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert all("2h ago" in line and "ValueError: wrong" in line for line in lines)
    assert output.err == "1,200 dead letters; 18 are shown, --limit N shows more\n"
    assert len(output.out.splitlines()) < 23


def test_a_terminal_gets_as_many_as_it_asks_for_in_tables_of_bounded_size(
    terminal: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_TABLE", 20)
    terminal.store.put(failed(f"a-{number}", age=99 - number) for number in range(45))
    output = terminal("list", "--limit", "41").out
    assert re.findall(r"\ba-\d+", output) == [f"a-{number}" for number in range(41)]
    assert output.count("attempts") == 3
    assert terminal("list", "--limit", "45").err == "45 dead letters\n"
    assert terminal("list", "--id", "a-3").err == "1 dead letter\n"


def test_a_terminal_shows_an_error_without_its_module(terminal: Letters) -> None:
    terminal.store.put([failed("a-1", error_type="a.long.module.Broken", error="no price")])
    (line,) = drawn(terminal("list").out)
    assert " Broken: no price " in line


@pytest.mark.parametrize("columns", [12, 20, 40, 60, 79, 100, 400])
def test_a_letter_is_one_line_however_narrow_the_terminal(
    terminal: Letters, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal.store.put(failed(f"{n}-1", error="日本" * 50, missing="x") for n in range(5))
    assert len(drawn(terminal("list").out)) == 5


def test_a_terminal_without_the_letters_gets_escapes(
    letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters.store.put([failed("a", {"title": "Ä"}, error="Größe", age=0)])
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    for arguments in (("show", "a"), ("list",), ("list", "--json")):
        letters(*arguments)
    monkeypatch.setattr(out, "isatty", lambda: True)
    letters("list")
    written = out.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert written.count("Gr\\xf6\\xdfe") == 3
    assert '"title": "\\xc4"' in written
