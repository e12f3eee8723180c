"""A small report that holds one of everything a format has to show."""

from __future__ import annotations

import pytest

from pytest_trainloop.lint.outcome import FileError, Problem, Report
from pytest_trainloop.rules import Edit, Fix
from pytest_trainloop.source.facts import Place


@pytest.fixture
def stale() -> Problem:
    """A problem with a safe fix."""
    where = Place("train.py", 4, 9, 4, 24)
    return Problem(
        path="src/train.py",
        line=4,
        column=9,
        end_line=4,
        end_column=24,
        cell=None,
        rule="missing-zero-grad",
        message="the gradients of `net` are never cleared between two calls of `opt.step()`",
        advice="call `opt.zero_grad()` after `opt.step()`",
        fix=Fix((Edit("insert-after", where, "opt.zero_grad()"),), safe=True),
        source_line="        loss.backward()",
        fingerprint="0123456789abcdef",
    )


@pytest.fixture
def kept() -> Problem:
    """A problem in a notebook, over several lines, with an unsafe fix."""
    where = Place("explore.ipynb", 12, 5, 14, 2)
    return Problem(
        path="explore.ipynb",
        line=2,
        column=5,
        end_line=4,
        end_column=2,
        cell=3,
        rule="kept-loss-graph",
        message="`history` keeps the graph of every `loss`",
        advice="append `loss.item()`",
        fix=Fix((Edit("append", where, ".item()"),), safe=False),
        source_line="\thistory.append(loss,",
        fingerprint="fedcba9876543210",
        json_line=31,
    )


@pytest.fixture
def report(stale: Problem, kept: Problem) -> Report:
    """Both problems, and a file that could not be read."""
    error = FileError("src/broken.py", "it holds a nul byte", line=7)
    return Report(problems=(kept, stale), errors=(error,), files=3)
