"""For GitLab: a Code Quality report."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from pytest_trainloop.lint.report._wording import in_file, posix, sentences

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import FileError, Problem, Report


def write(report: Report) -> str:
    """An array of issues; a file that could not be linted is one too."""
    entries = [_problem(problem) for problem in report.problems]
    entries += [_error(error) for error in report.errors]
    return json.dumps(entries, indent=2) + "\n"


def _problem(problem: Problem) -> dict[str, Any]:
    begin, end = problem.line, problem.end_line
    if problem.cell is not None:
        begin = end = problem.json_line or 1
    return {
        "description": in_file(problem, sentences(problem)),
        "check_name": problem.rule,
        "fingerprint": problem.fingerprint,
        "severity": "major",
        "location": {
            "path": posix(problem.path),
            "lines": {"begin": begin, "end": end},
        },
    }


def _error(error: FileError) -> dict[str, Any]:
    line = (error.line if error.cell is None else error.json_line) or 1
    path = posix(error.path)
    told = f"{path}\0{error.message}".encode("utf-8", "surrogatepass")
    return {
        "description": error.message,
        "check_name": "trainloop-lint",
        "fingerprint": sha256(told).hexdigest()[:16],
        "severity": "major",
        "location": {"path": path, "lines": {"begin": line, "end": line}},
    }
