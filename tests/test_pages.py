"""The pages of rules and checks in `docs/` are those that their files say."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from pytest_trainloop.checks import check_class, check_names
from pytest_trainloop.checks._pages import check_page, check_pages
from pytest_trainloop.lint.pages import rule_page, rule_pages
from pytest_trainloop.pages import write_all
from pytest_trainloop.rules import all_rules

DOCS = Path(__file__).parents[1] / "docs"
COMMAND = "python -m pytest_trainloop.pages"


@cache
def pages() -> dict[str, dict[str, str]]:
    """The pages of each folder by file name."""
    return {"rules": rule_pages(), "checks": check_pages()}


def read(path: str) -> str:
    file = DOCS / path
    assert file.exists(), f"write it: {COMMAND}"
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(all_rules()))
def test_the_page_of_a_rule_is_current(name: str) -> None:
    """It says what the rule's file says now."""
    assert read(f"rules/{name}.md") == rule_page(all_rules()[name]), f"write it anew: {COMMAND}"


@pytest.mark.parametrize("name", check_names())
def test_the_page_of_a_check_is_current(name: str) -> None:
    """It says what the check's file says now."""
    assert read(f"checks/{name}.md") == check_page(check_class(name)), f"write it anew: {COMMAND}"


@pytest.mark.parametrize("folder", ["rules", "checks"])
def test_an_index_leads_to_every_page_and_no_page_is_left_of_what_is_gone(folder: str) -> None:
    index = read(f"{folder}/index.md")
    assert index == pages()[folder]["index.md"], f"write it anew: {COMMAND}"
    linked = re.findall(r"\]\((\S+\.md)\)", index)
    names = {path.name for path in (DOCS / folder).iterdir()}
    assert sorted(linked) == sorted(names - {"index.md"})
    assert names == set(pages()[folder])


def test_one_command_writes_all_pages(tmp_path: Path) -> None:
    """The second time there is nothing to do."""
    written = write_all(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in written} == {
        f"{folder}/{name}" for folder, texts in pages().items() for name in texts
    }
    assert write_all(tmp_path) == []
