"""One line a problem."""

from __future__ import annotations

from dataclasses import replace

from pytest_trainloop.lint.outcome import Report
from pytest_trainloop.lint.report import write_report


def test_concise_is_one_line_a_problem_and_the_count(report: Report) -> None:
    """The lines begin with a place that editors can jump to."""
    assert write_report(report, "concise") == (
        "explore.ipynb:cell 3:2:5: kept-loss-graph: `history` keeps the graph of every `loss`;"
        " append `loss.item()`\n"
        "src/train.py:4:9: missing-zero-grad: the gradients of `net` are never cleared between"
        " two calls of `opt.step()`; call `opt.zero_grad()` after `opt.step()`\n"
        "src/broken.py:7: it holds a nul byte\n"
        "2 problems in 2 of 3 files (1 fixable with `--fix`, 1 fixable with `--unsafe-fixes`);"
        " 1 error\n"
    )


def test_a_line_end_in_a_path_does_not_split_the_line(report: Report) -> None:
    """A reader that takes line by line gets whole problems."""
    odd = replace(report.problems[1], path="a\nb.py")
    assert len(write_report(Report((odd,), files=1), "concise").splitlines()) == 2
