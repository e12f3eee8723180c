"""The pages of rules and checks in `docs/` are those that their files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_trainloop.checks._pages import check_pages
from pytest_trainloop.lint.pages import rule_pages
from pytest_trainloop.pages import write_all

DOCS = Path(__file__).parents[1] / "docs"
COMMAND = "python -m pytest_trainloop.pages"
PAGES = {
    DOCS / folder / name: text
    for folder, pages in (("rules", rule_pages()), ("checks", check_pages()))
    for name, text in pages.items()
}


def shown(path: Path) -> str:
    return str(path.relative_to(DOCS))


@pytest.mark.parametrize("path", list(PAGES), ids=shown)
def test_a_page_is_current(path: Path) -> None:
    """It says what the file of its rule or check says now."""
    assert path.exists(), f"write it: {COMMAND}"
    assert path.read_text(encoding="utf-8") == PAGES[path], f"write it anew: {COMMAND}"


@pytest.mark.parametrize("folder", ["rules", "checks"])
def test_no_page_is_left_of_what_is_gone(folder: str) -> None:
    left = {path for path in (DOCS / folder).iterdir() if path not in PAGES}
    assert left == set(), f"take them away: {COMMAND}"


def test_the_indexes_lead_to_every_page() -> None:
    for folder in ("rules", "checks"):
        linked = re.findall(r"\]\((\S+\.md)\)", PAGES[DOCS / folder / "index.md"])
        names = {path.name for path in PAGES if path.parent.name == folder} - {"index.md"}
        assert set(linked) == names
        assert len(linked) == len(names)


def test_one_command_writes_all_pages(tmp_path: Path) -> None:
    """The second time there is nothing to do."""
    written = write_all(tmp_path)
    assert {path.relative_to(tmp_path) for path in written} == {
        path.relative_to(DOCS) for path in PAGES
    }
    assert write_all(tmp_path) == []
