"""For programs: an array with one object for each problem."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pytest_trainloop.lint.report._wording import sentences

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import Problem, Report


def write(report: Report) -> str:
    """The array, empty when there is no problem; the keys are those of `_entry`, no others.

    Lines and columns count from 1, the end column is exclusive; `message` is cause and
    advice; `fixable` tells whether a fix is offered; `cell` is null outside notebooks.
    """
    return json.dumps([_entry(problem) for problem in report.problems], indent=2) + "\n"


def _entry(problem: Problem) -> dict[str, str | int | bool | None]:
    return {
        "rule": problem.rule,
        "path": problem.path,
        "line": problem.line,
        "column": problem.column,
        "end_line": problem.end_line,
        "end_column": problem.end_column,
        "message": sentences(problem),
        "fixable": problem.fixable is not None,
        "cell": problem.cell,
    }
