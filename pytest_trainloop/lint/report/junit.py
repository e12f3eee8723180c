"""For whatever shows test results: JUnit XML, one suite for each file with problems."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from pytest_trainloop.lint.report._terminal import printable
from pytest_trainloop.lint.report._wording import counted, error_place, place
from pytest_trainloop.lint.report.text import paragraph

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import FileError, Problem, Report

# Characters that no XML may hold, not even escaped, besides those made printable.
_FORBIDDEN = re.compile("[\ufffe\uffff]")


def write(report: Report) -> str:
    """Each problem is a failed test, each file that could not be linted an error."""
    problems, errors = len(report.problems), len(report.errors)
    suites = [
        _suite(path, "failures", [_failure(problem) for problem in group])
        for path, group in groupby(report.problems, key=lambda problem: problem.path)
    ]
    suites += [_suite(error.path, "errors", [_error(error)]) for error in report.errors]
    if not suites:
        # A report without any test counts as broken with many readers.
        name = _attribute(f"no problems in {counted(report.files, 'file')}")
        case = f"<testcase name={name} classname={_attribute('trainloop-lint')} />"
        suites = [_suite("trainloop-lint", "failures", [case], failed=0)]
    tests = max(1, problems + errors)
    head = f'tests="{tests}" failures="{problems}" errors="{errors}"'
    return "\n".join(
        [
            '<?xml version="1.0" encoding="utf-8"?>',
            f'<testsuites name="trainloop-lint" {head}>',
            *suites,
            "</testsuites>",
            "",
        ]
    )


def _suite(name: str, kind: str, cases: list[str], failed: int | None = None) -> str:
    counts = {"failures": 0, "errors": 0, kind: len(cases) if failed is None else failed}
    told = " ".join(f'{key}="{count}"' for key, count in counts.items())
    lines = [f'  <testsuite name={_attribute(name)} tests="{len(cases)}" {told}>']
    lines += [f"    {case}" for case in cases]
    return "\n".join([*lines, "  </testsuite>"])


def _failure(problem: Problem) -> str:
    name = _attribute(f"{place(problem)}: {problem.rule}")
    path = _attribute(problem.path)
    where = f'classname={path} file={path} line="{problem.line}"'
    told = _text(paragraph(problem, color=False))
    return (
        f"<testcase name={name} {where}>"
        f"<failure type={_attribute(problem.rule)} message={_attribute(problem.message)}>"
        f"{told}</failure></testcase>"
    )


def _error(error: FileError) -> str:
    name = _attribute(error_place(error))
    return (
        f"<testcase name={name} classname={_attribute(error.path)}>"
        f'<error type="trainloop-lint" message={_attribute(error.message)} /></testcase>'
    )


def _attribute(text: str) -> str:
    return quoteattr(_allowed(printable(text)))


def _text(text: str) -> str:
    return "\n".join(escape(_allowed(printable(line))) for line in text.split("\n"))


def _allowed(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
