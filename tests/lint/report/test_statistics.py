"""How many problems each rule has."""

from __future__ import annotations

from dataclasses import replace

from pytest_trainloop.lint.outcome import Report
from pytest_trainloop.lint.report._statistics import statistics


def test_each_rule_has_a_line_with_how_much_of_it_can_be_fixed(report: Report) -> None:
    """Most problems first; of as many, in alphabetical order."""
    kept, stale = report.problems
    unfixable = replace(stale, fix=None)
    found = Report((stale, kept, stale, unfixable, replace(unfixable, rule="discarded-result")))
    assert statistics(found) == (
        "     3  missing-zero-grad (2 fixable with `--fix`)\n"
        "     1  discarded-result\n"
        "     1  kept-loss-graph (1 fixable with `--unsafe-fixes`)\n"
    )


def test_a_clean_run_has_no_statistics() -> None:
    assert statistics(Report(files=3)) == ""
