"""For code scanning: SARIF 2.1.0, with fixes and with fingerprints that survive moved lines."""

from __future__ import annotations

import json
import os
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pytest_trainloop import __version__
from pytest_trainloop.lint.report._wording import in_file, posix, sentences

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import FileError, Problem, Replacement, Report

_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_Object = dict[str, Any]


def write(report: Report) -> str:
    """One run with the rules that were broken, their pages, and a result for each problem."""
    names = sorted({problem.rule for problem in report.problems})
    run = {
        "tool": {
            "driver": {
                "name": "trainloop-lint",
                "version": __version__,
                "rules": [_rule(name) for name in names],
            }
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [
            {
                "executionSuccessful": not report.errors,
                "toolExecutionNotifications": [_notification(error) for error in report.errors],
            }
        ],
        "results": [_result(problem, names.index(problem.rule)) for problem in report.problems],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(name: str) -> _Object:
    from pytest_trainloop.lint.explaining import page_of
    from pytest_trainloop.rules import all_rules

    page = page_of(name)
    described: _Object = {
        "id": name,
        "shortDescription": {"text": page.split("\n\n")[1]},
        "help": {"text": page, "markdown": page},
        "defaultConfiguration": {"level": "error"},
    }
    rule = all_rules().get(name)
    if rule is not None:
        described["properties"] = {"tags": ["pytorch", rule.family]}
    return described


def _result(problem: Problem, index: int) -> _Object:
    result: _Object = {
        "ruleId": problem.rule,
        "ruleIndex": index,
        "level": "error",
        "message": {"text": in_file(problem, sentences(problem))},
        "locations": [_location(problem)],
        "partialFingerprints": {"trainloopLint/v1": problem.fingerprint},
    }
    if problem.replacements:
        result["fixes"] = [_fix(problem)]
    return result


def _location(problem: Problem) -> _Object:
    physical: _Object = {"artifactLocation": _artifact(problem.path)}
    if problem.cell is not None:
        # A line of a cell is no line of the file, which is JSON.
        cell = {"name": f"cell {problem.cell}", "kind": "module"}
        if problem.json_line is not None:
            physical["region"] = {"startLine": problem.json_line}
        return {"physicalLocation": physical, "logicalLocations": [cell]}
    physical["region"] = _region(problem)
    return {"physicalLocation": physical}


def _fix(problem: Problem) -> _Object:
    return {
        "description": {"text": problem.advice},
        "artifactChanges": [
            {
                "artifactLocation": _artifact(problem.path),
                "replacements": [
                    {"deletedRegion": _region(change), "insertedContent": {"text": change.text}}
                    for change in problem.replacements
                ],
            }
        ],
    }


def _region(place: Problem | Replacement) -> _Object:
    return {
        "startLine": place.line,
        "startColumn": place.column,
        "endLine": place.end_line,
        "endColumn": place.end_column,
    }


def _notification(error: FileError) -> _Object:
    physical: _Object = {"artifactLocation": _artifact(error.path)}
    line = error.line if error.cell is None else error.json_line
    if line is not None:
        physical["region"] = {"startLine": line}
    return {
        "level": "error",
        "message": {"text": error.message},
        "locations": [{"physicalLocation": physical}],
    }


def _artifact(path: str) -> _Object:
    if os.path.isabs(path):
        return {"uri": PurePath(path).as_uri()}
    return {"uri": quote(posix(path).encode("utf-8", "surrogateescape"))}
