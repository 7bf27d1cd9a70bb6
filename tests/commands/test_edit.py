"""``dead-letters edit``: a text that is read again, or a row that stays as it was."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from .conftest import Letters
from .project import failed

pytestmark = pytest.mark.no_runtime

EDITOR = """
import sys
from pathlib import Path

path = Path(sys.argv[-1])
text = path.read_text(encoding="utf-8")
{code}
path.write_text(text, encoding="utf-8")
"""


BEFORE = """{
  "title": "a",
  "price": "ask us"
}
"""


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Give what sets the editor to a program."""
    monkeypatch.delenv("VISUAL", raising=False)

    def set_to(code: str, variable: str = "EDITOR") -> None:
        path = tmp_path / "an editor.py"
        path.write_text(EDITOR.format(code=code))
        monkeypatch.setenv(variable, f"{sys.executable} '{path}' --wait")

    return set_to


def named_in(error: str) -> Path:
    (name,) = re.findall(r"Your text is in (\S+)", error)
    return Path(name)


@pytest.mark.parametrize("variable", ["EDITOR", "VISUAL"])
def test_an_item_is_edited_as_pretty_json(letters: Letters, editor, variable: str) -> None:
    letters.store.put([failed("a-1", {"title": "Ä", "price": "ask us"}, missing="b: a socket")])
    if variable == "VISUAL":
        editor("text = 'EDITOR was called'")
    editor(
        """assert '  "title": "Ä",\\n' in text; text = text.replace('ask us', '9.5')""", variable
    )
    assert "The dead letter a-1 is corrected." in letters("edit", "a").err
    (letter,) = letters.listed()
    assert letter["item"] == {"title": "Ä", "price": "9.5"}
    assert letter["missing"] is None


def test_an_unchanged_text_changes_nothing(letters: Letters, editor) -> None:
    letters.store.put([failed("a")])
    editor(f"assert text == {BEFORE!r}; Path('seen').write_text(str(path))")
    assert letters("edit", "a").err == "Nothing changed.\n"
    assert json.loads(letters.store.get("a").item) == {"title": "a", "price": "ask us"}
    assert not Path(Path("seen").read_text()).exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("text = text[:-5]", "the text is not JSON"),
        ("text = ''", "the text is not JSON"),
        ("text = text.replace('\"title\"', '\"$title\"')", "has no known tag"),
        (
            """text = '{"$item": "subprocess.Popen", "fields": {"args": "x"}}'""",
            "may not be built",
        ),
        ("text += ' '; path.write_text(text); sys.exit(3)", "ended with 3"),
    ],
    ids=["cut off", "empty", "unknown tag", "refused class", "failed editor"],
)
def test_a_bad_text_is_kept_and_the_row_stays_as_it_was(
    letters: Letters, editor, code: str, reason: str
) -> None:
    letters.store.put([failed("a")])
    before = letters.store.get("a")
    assert before is not None
    editor(code)
    error = letters("edit", "a", code=1).err
    assert reason in error
    assert letters.store.get("a") == before
    kept = named_in(error)
    assert kept.read_text() != BEFORE
    kept.unlink()


def test_an_editor_that_is_not_there_is_told_of(letters: Letters, monkeypatch) -> None:
    monkeypatch.setenv("VISUAL", "/nowhere/editor")
    letters.store.put([failed("a")])
    error = letters("edit", "a", code=1).err
    assert "the editor /nowhere/editor does not run" in error
    assert "set VISUAL or EDITOR" in error
    named_in(error).unlink()


def test_a_text_that_is_no_json_can_be_repaired(letters: Letters, editor) -> None:
    letters.store.put([failed("a", '{"title": "A"')])
    editor("""assert text == '{"title": "A"\\n'; text += '}'""")
    letters("edit", "a")
    assert letters.listed()[0]["item"] == {"title": "A"}


def test_lone_surrogates_come_through_the_editor(letters: Letters, editor) -> None:
    letters.store.put([failed("a", {"title": "\ud83d", "price": "1"})])
    editor("text = text.replace('\"1\"', '\"2\"')")
    letters("edit", "a")
    assert json.loads(letters.store.get("a").item) == {"title": "\ud83d", "price": "2"}


def test_a_letter_that_a_replay_holds_is_left_alone(letters: Letters, editor) -> None:
    from scrapy_deferkit.deadletters import Selection

    letters.store.put([failed("a")])
    letters.store.take(Selection(), 1, "somebody", 300)
    editor("text = text.replace('ask us', '9.5')")
    error = letters("edit", "a", code=1).err
    assert "is being replayed by somebody" in error
    assert "9.5" in named_in(error).read_text()
    named_in(error).unlink()
    assert letters.listed()[0]["leased_by"] == "somebody"
