"""The report that programs read."""

from __future__ import annotations

import json
from dataclasses import replace

from pytest_trainloop.lint.outcome import Report
from pytest_trainloop.lint.report import write_report


def test_json_is_an_array_with_one_object_for_each_problem(report: Report) -> None:
    """The keys are a promise: these, in this order, and no others."""
    assert json.loads(write_report(report, "json"), object_pairs_hook=list) == [
        [
            ("rule", "kept-loss-graph"),
            ("path", "explore.ipynb"),
            ("line", 2),
            ("column", 5),
            ("end_line", 4),
            ("end_column", 2),
            ("message", "`history` keeps the graph of every `loss`; append `loss.item()`"),
            ("fixable", True),
            ("cell", 3),
        ],
        [
            ("rule", "missing-zero-grad"),
            ("path", "src/train.py"),
            ("line", 4),
            ("column", 9),
            ("end_line", 4),
            ("end_column", 24),
            (
                "message",
                f"{report.problems[1].message}; call `opt.zero_grad()` after `opt.step()`",
            ),
            ("fixable", True),
            ("cell", None),
        ],
    ]


def test_a_problem_without_a_fix_is_not_fixable(report: Report) -> None:
    """`fixable` is true or false, never missing."""
    unfixable = replace(report.problems[0], fix=None)
    (entry,) = json.loads(write_report(Report((unfixable,)), "json"))
    assert entry["fixable"] is False


def test_json_of_a_clean_run_is_an_empty_array() -> None:
    """Not an empty text, which is no JSON."""
    assert write_report(Report(files=3), "json") == "[]\n"


def test_json_can_be_printed_anywhere(report: Report) -> None:
    """A path that is not UTF-8 does not break the output."""
    odd = replace(report.problems[0], path="\udcff.py")
    assert write_report(Report((odd,)), "json").encode("ascii")
