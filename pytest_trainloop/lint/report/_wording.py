"""The words that several formats share: places, messages, counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pytest_trainloop.lint.report._terminal import printable

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import FileError, Problem


def place(problem: Problem) -> str:
    """`path:line:column`, which editors and terminals make a link of."""
    cell = "" if problem.cell is None else f"cell {problem.cell}:"
    return f"{printable(problem.path)}:{cell}{problem.line}:{problem.column}"


def error_place(error: FileError) -> str:
    """As much of a place as is known of what cannot be linted."""
    cell = "" if error.cell is None else f":cell {error.cell}"
    line = "" if error.line is None else f":{error.line}"
    return f"{printable(error.path)}{cell}{line}"


def sentences(problem: Problem) -> str:
    """Cause and advice as running text, for the formats that have one field for both."""
    return f"{problem.message}; {problem.advice}" if problem.advice else problem.message


def counted(number: int, noun: str) -> str:
    """`1 problem`, `3 problems`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fixable(problems: Iterable[Problem]) -> str:
    """How many of the problems can be fixed by which option, in parentheses; empty if none can."""
    kinds = [problem.fixable for problem in problems]
    offers = [
        f"{kinds.count(kind)} fixable with `{option}`"
        for kind, option in (("safe", "--fix"), ("unsafe", "--unsafe-fixes"))
        if kind in kinds
    ]
    return f" ({', '.join(offers)})" if offers else ""


def in_file(problem: Problem, text: str) -> str:
    """The text with the place in a notebook, for formats that know files and lines only."""
    if problem.cell is None:
        return text
    return f"cell {problem.cell}, line {problem.line}: {text}"


def posix(path: str) -> str:
    """The path with slashes, as reports that travel to other machines have it."""
    # Late: it takes as long to load as a small run from the cache.
    from pathlib import PurePath

    return PurePath(path).as_posix()
