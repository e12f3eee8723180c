"""One line a problem, for editors, scripts and long lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trainloop.lint.report._terminal import painted, printable
from pytest_trainloop.lint.report._wording import error_place, place, sentences
from pytest_trainloop.lint.report.text import summary

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import Report


def write(report: Report) -> str:
    """`path:line:column: rule: cause; advice`, and the count."""
    lines = [
        f"{painted(place(problem), 'bold', report.color)}: "
        f"{painted(problem.rule, 'red', report.color)}: {printable(sentences(problem))}\n"
        for problem in report.problems
    ]
    lines += [
        f"{painted(error_place(error), 'bold', report.color)}: {printable(error.message)}\n"
        for error in report.errors
    ]
    return "".join(lines) + summary(report)
