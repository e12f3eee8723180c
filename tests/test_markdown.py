"""What the pages of rules and checks have in common."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.markdown import code_block, options, page, sections, table, write_pages

DOCSTRING = """What goes wrong.

    At length,
    over two lines.

    Symptom: the loss
    does not fall.

    Still the symptom: it never does.

    What torch does: nothing.

    Options:
        steps: how many
            there are.
        fall: how far.
    """


def test_a_docstring_is_divided_into_its_sections() -> None:
    """A paragraph that begins with a name and a colon opens one, the next ones go on with it."""
    told = sections(DOCSTRING)
    assert list(told) == ["", "Symptom", "Still the symptom", "What torch does", "Options"]
    assert told[""] == "At length,\nover two lines."
    assert told["Symptom"] == "The loss\ndoes not fall."
    assert options(told["Options"]) == "- `steps`: how many\n  there are.\n- `fall`: how far."


def test_a_docstring_of_one_line_has_no_sections() -> None:
    assert sections("What goes wrong.") == {}
    assert sections(None) == {}


@given(st.text(alphabet="`a\n", max_size=20))
def test_a_fence_never_ends_within_its_code(code: str) -> None:
    first, *lines = code_block(code).split("\n")
    fence = first.removesuffix("python")
    assert set(fence) == {"`"}
    assert lines[-1] == fence
    assert fence not in code


def test_a_bar_does_not_divide_a_cell_of_a_table() -> None:
    assert table(("a", "b"), [("1|2", "3")]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |"


def test_parts_of_a_page_that_are_missing_leave_no_gap() -> None:
    assert page("# Title", "", "Text.\n") == "# Title\n\nText.\n"


def test_writing_pages_tells_what_was_not_as_it_should_be(tmp_path: Path) -> None:
    """New pages are written, changed ones too, and those of what is gone are taken away."""
    folder = tmp_path / "rules"
    assert sorted(write_pages(folder, {"a.md": "A\n", "b.md": "B\n"})) == [
        folder / "a.md",
        folder / "b.md",
    ]
    assert write_pages(folder, {"a.md": "A\n", "b.md": "B\n"}) == []
    (folder / "a.md").write_text("old\n", encoding="utf-8")
    assert sorted(write_pages(folder, {"a.md": "A\n"})) == [folder / "a.md", folder / "b.md"]
    assert [path.name for path in folder.iterdir()] == ["a.md"]
