"""For GitHub Actions: workflow commands, which mark the lines of a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trainloop.lint.report._wording import in_file, posix, sentences

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import FileError, Problem, Report


def write(report: Report) -> str:
    """One `::error` a line for each problem, and for each file that could not be linted."""
    lines = [_problem(problem) for problem in report.problems]
    lines += [_error(error) for error in report.errors]
    return "".join(f"{line}\n" for line in lines)


def _problem(problem: Problem) -> str:
    properties: dict[str, object] = {"title": problem.rule, "file": posix(problem.path)}
    if problem.cell is not None:
        properties |= _json_line(problem)
    else:
        properties["line"] = problem.line
        # GitHub takes columns only where a problem begins and ends on one line.
        if problem.line == problem.end_line:
            properties |= {"col": problem.column, "endColumn": problem.end_column}
        else:
            properties["endLine"] = problem.end_line
    return _command(properties, in_file(problem, sentences(problem)))


def _error(error: FileError) -> str:
    properties: dict[str, object] = {"title": "trainloop-lint", "file": posix(error.path)}
    if error.cell is not None:
        properties |= _json_line(error)
    elif error.line is not None:
        properties["line"] = error.line
    return _command(properties, error.message)


def _json_line(place: Problem | FileError) -> dict[str, object]:
    """A notebook's file is its JSON: that is what a pull request shows the lines of."""
    return {} if place.json_line is None else {"line": place.json_line}


def _command(properties: dict[str, object], message: str) -> str:
    told = ",".join(f"{key}={_escaped_property(str(value))}" for key, value in properties.items())
    return f"::error {told}::{_escaped_data(message)}"


def _escaped_data(text: str) -> str:
    """GitHub decodes these three in a message, and no others."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escaped_property(text: str) -> str:
    return _escaped_data(text).replace(":", "%3A").replace(",", "%2C")
