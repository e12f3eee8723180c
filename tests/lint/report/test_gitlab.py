"""The Code Quality report of GitLab."""

from __future__ import annotations

import json
from dataclasses import replace

from pytest_trainloop.lint.outcome import FileError, Report
from pytest_trainloop.lint.report import write_report


def test_each_problem_is_an_issue_with_a_fingerprint(report: Report) -> None:
    """By the fingerprint GitLab tells new problems from old ones whose lines moved."""
    notebook, script, error = json.loads(write_report(report, "gitlab"))
    assert script == {
        "description": (
            "the gradients of `net` are never cleared between two calls of `opt.step()`;"
            " call `opt.zero_grad()` after `opt.step()`"
        ),
        "check_name": "missing-zero-grad",
        "fingerprint": "0123456789abcdef",
        "severity": "major",
        "location": {"path": "src/train.py", "lines": {"begin": 4, "end": 4}},
    }
    assert notebook["description"].startswith("cell 3, line 2: `history` keeps the graph")
    assert notebook["location"] == {"path": "explore.ipynb", "lines": {"begin": 31, "end": 31}}
    assert error["description"] == "it holds a nul byte"
    assert error["location"] == {"path": "src/broken.py", "lines": {"begin": 7, "end": 7}}


def test_files_that_could_not_be_linted_have_fingerprints_of_their_own() -> None:
    """Without a line they stand on the first one."""
    errors = (FileError("a.py", "gone"), FileError("b.py", "gone"), FileError("\udcff", "odd"))
    entries = json.loads(write_report(Report(errors=errors), "gitlab"))
    assert len({entry["fingerprint"] for entry in entries}) == 3
    assert [entry["location"]["lines"]["begin"] for entry in entries] == [1, 1, 1]


def test_a_path_has_no_leading_dot(report: Report) -> None:
    """GitLab matches paths with those of the repository."""
    odd = replace(report.problems[1], path="./src/train.py")
    (entry,) = json.loads(write_report(Report((odd,)), "gitlab"))
    assert entry["location"]["path"] == "src/train.py"
