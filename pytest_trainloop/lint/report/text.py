"""For people: place, rule, cause, the source line with a caret, what to write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trainloop.lint.report._terminal import laid_out, painted, printable, width
from pytest_trainloop.lint.report._wording import counted, error_place, fixable, place

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import Problem, Report

# A longer line (a table, minified code) is cut to this many columns around the caret.
_LONGEST_LINE = 160


def write(report: Report) -> str:
    """Each problem in a paragraph of its own, then what could not be linted, then the count."""
    paragraphs = [paragraph(problem, color=report.color) for problem in report.problems]
    paragraphs += [
        f"{painted(error_place(error), 'bold', report.color)}: {printable(error.message)}\n"
        for error in report.errors
    ]
    return "\n".join([*paragraphs, summary(report)])


def summary(report: Report) -> str:
    """How many problems there are, in how many files, and how many can be fixed."""
    files = counted(report.files, "file")
    if not report.problems:
        found = f"no problems in {files}"
    else:
        hit = len({problem.path for problem in report.problems})
        found = f"{counted(len(report.problems), 'problem')} in {hit} of {files}"
    unread = f"; {counted(len(report.errors), 'error')}" if report.errors else ""
    return f"{found}{fixable(report.problems)}{unread}\n"


def paragraph(problem: Problem, *, color: bool) -> str:
    """One problem in full: place, rule, cause, the source line with a caret, advice."""
    where = painted(place(problem), "bold", color)
    rule = painted(problem.rule, "red", color)
    lines = [f"{where}: {rule}: {printable(problem.message)}"]
    if problem.source_line.strip():
        lines += _excerpt(problem, color)
    if problem.advice:
        offer = {"safe": " (`--fix` does it)", "unsafe": " (`--unsafe-fixes` does it)", None: ""}
        lines.append(f"  help: {printable(problem.advice)}{offer[problem.fixable]}")
    return "\n".join(lines) + "\n"


def _excerpt(problem: Problem, color: bool) -> list[str]:
    """The source line, and below it carets under the problem's part of it."""
    line = problem.source_line
    begin = min(problem.column - 1, len(line))
    end = problem.end_column - 1 if problem.end_line == problem.line else len(line.rstrip())
    cells = laid_out(line)
    before, under, after = cells[:begin], cells[begin:end], cells[end:]
    lead = max(0, width("".join(before)) - _LONGEST_LINE // 2)
    shown_before = _without_lead("".join(before), lead)
    shown_under = _cut("".join(under), _LONGEST_LINE - width(shown_before))
    room = _LONGEST_LINE - width(shown_before) - width(shown_under)
    shown_after = _cut("".join(after).rstrip(), room)
    number = str(problem.line)
    bar = painted("|", "dim", color)
    carets = painted("^" * max(1, width(shown_under)), "red", color)
    return [
        f"  {painted(number, 'cyan', color)} {bar} {shown_before}{shown_under}{shown_after}",
        f"  {' ' * len(number)} {bar} {' ' * width(shown_before)}{carets}",
    ]


def _without_lead(text: str, columns: int) -> str:
    if not columns:
        return text
    while text and columns > 0:
        columns -= width(text[0])
        text = text[1:]
    return f"… {text}"


def _cut(text: str, columns: int) -> str:
    if width(text) <= columns:
        return text
    while width(text) > columns - 2 and text:
        text = text[:-1]
    return f"{text} …"
