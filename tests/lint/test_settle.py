"""From what each file gave to what is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_trainloop.lint.config import Settings
from pytest_trainloop.lint.outcome import FileError, Problem
from pytest_trainloop.lint.result import FileResult
from pytest_trainloop.lint.settle import Settling
from pytest_trainloop.lint.suppress import find_suppressions
from pytest_trainloop.rules import Finding
from pytest_trainloop.source.facts import Place

RULE = "missing-zero-grad"
TEXT = "first = 1\nsecond = 2\nthird = 3  # trainloop: ignore[missing-zero-grad]\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text(TEXT)


def finding(path: str, line: int, message: str = "cause") -> Finding:
    return Finding(RULE, Place(path, line, 1, line, 6), message, "advice")


def result(path: str, *findings: Finding, errors: tuple[FileError, ...] = ()) -> FileResult:
    comments = tuple(find_suppressions(TEXT))
    return FileResult(path, findings, comments, errors, digest="x")


def settle(*results: FileResult) -> list[tuple[str, int, str]]:
    return [(p.path, p.line, p.rule) for p in problems(*results)]


def problems(*results: FileResult) -> tuple[Problem, ...]:
    return Settling(Settings("."), [RULE], root=".").problems(results)


@pytest.mark.usefixtures("files")
def test_a_place_that_several_files_lead_to_is_reported_once() -> None:
    a = result("a.py", finding("b.py", 1, "from a"), finding("b.py", 3))
    b = result("b.py", finding("b.py", 1, "from b"), finding("b.py", 3))
    assert settle(a, b) == [("a.py", 3, "unused-suppression"), ("b.py", 1, RULE)]
    assert problems(a, b)[1].message == "from a"


@pytest.mark.usefixtures("files")
def test_a_comment_counts_where_the_problem_stands_whoever_found_it() -> None:
    used = result("b.py")
    assert settle(result("a.py", finding("b.py", 3), finding("a.py", 3)), used) == []


@pytest.mark.usefixtures("files")
def test_nothing_is_called_unused_where_a_rule_crashed() -> None:
    assert settle(result("a.py", errors=(FileError("a.py", "crashed"),))) == []


@pytest.mark.usefixtures("files")
def test_problems_stand_in_the_order_of_their_places() -> None:
    found = settle(
        result("b.py", finding("b.py", 2), finding("b.py", 3), finding("b.py", 1)),
        result("a.py", finding("a.py", 2), finding("a.py", 3)),
    )
    assert found == [("a.py", 2, RULE), ("b.py", 1, RULE), ("b.py", 2, RULE)]


@pytest.mark.usefixtures("files")
def test_fingerprints_tell_problems_apart_and_outlive_moved_lines() -> None:
    before = problems(result("a.py", finding("a.py", 1), finding("a.py", 2)))
    Path("a.py").write_text(f"# moved\n\n\n{TEXT}")
    after = problems(result("a.py", finding("a.py", 4), finding("a.py", 5)))
    prints = [p.fingerprint for p in before if p.rule == RULE]
    assert len(set(prints)) == 2
    assert [p.fingerprint for p in after if p.rule == RULE] == prints


@pytest.mark.usefixtures("files")
def test_a_file_that_is_gone_says_nothing_more() -> None:
    Path("a.py").unlink()
    assert settle(result("a.py", finding("a.py", 1))) == []
