"""How many problems each rule has, for a first look at a large project."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pytest_trainloop.lint.report._wording import fixable

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import Report


def statistics(report: Report) -> str:
    """One line a rule, most problems first, with how many can be fixed."""
    counts = Counter(problem.rule for problem in report.problems)
    lines: list[str] = []
    for rule, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        offers = fixable(problem for problem in report.problems if problem.rule == rule)
        lines.append(f"{count:>6}  {rule}{offers}\n")
    return "".join(lines)
