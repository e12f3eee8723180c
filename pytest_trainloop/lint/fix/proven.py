"""The splices that make a fix, proven to do what it says and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import islice, product
from typing import TYPE_CHECKING

from pytest_trainloop.lint.fix.expected import expected_tree, same_tree
from pytest_trainloop.lint.fix.expressions import expression_splices
from pytest_trainloop.lint.fix.parsed import Parsed, parse
from pytest_trainloop.lint.fix.splices import CannotFixError, Splice, spliced
from pytest_trainloop.lint.fix.statements import statement_splices

if TYPE_CHECKING:
    from pytest_trainloop.rules import Edit, Fix
    from pytest_trainloop.source.facts import Place

_OF_EXPRESSIONS = {"append", "replace", "add-argument"}
# Ways to write a fix that are tried: five for an edit of an expression, at most two for one
# of statements, and few fixes have more than two edits.
_MOST_WAYS = 100


def splices_of(parsed: Parsed, fix: Fix, barriers: Collection[int] = ()) -> tuple[Splice, ...]:
    """The changes of a text that make `fix`; `barriers` are lines that no edit may cross.

    Raises:
        CannotFixError: it cannot be made without touching something else.
    """
    first, last = _window(parsed, fix.edits)
    begin, end = parsed.line_starts[first - 1], parsed.line_starts[last]
    text = parsed.text[begin:end]
    edits = [_moved(edit, 1 - first) for edit in fix.edits]
    splices = _proven(Parsed(text, parsed.unit), edits, {line + 1 - first for line in barriers})
    return tuple(Splice(s.start + begin, s.end + begin, s.text) for s in splices)


def _window(parsed: Parsed, edits: Iterable[Edit]) -> tuple[int, int]:
    """The lines that a fix is about: whole statements of the module, and their neighbours.

    What they mean does not depend on the lines around them, so a proof for them is one for
    the program, and does not take longer in a longer file.
    """
    places = [place for edit in edits for place in (edit.place, edit.to) if place is not None]
    top = min(place.line for place in places)
    bottom = max(place.end_line for place in places)
    lines = [tuple(map(parsed.line_of, parsed.span(node))) for node in parsed.tree.body]
    above = [end for _, end in lines if end < top]
    below = [start for start, _ in lines if start > bottom]
    # From behind the last but one statement above to before the last but one below.
    first = above[-2] + 1 if len(above) > 1 else 1
    last = below[1] - 1 if len(below) > 1 else len(parsed.line_starts) - 1
    # Statements that share a line with their neighbours stay together.
    for start, end in reversed(lines):
        first = start if start < first <= end else first
    for start, end in lines:
        last = end if start <= last < end else last
    return first, last


def _moved(edit: Edit, lines: int) -> Edit:
    def moved(place: Place) -> Place:
        return replace(place, line=place.line + lines, end_line=place.end_line + lines)

    return replace(edit, place=moved(edit.place), to=edit.to and moved(edit.to))


def _proven(parsed: Parsed, edits: list[Edit], barriers: Collection[int]) -> tuple[Splice, ...]:
    expected = expected_tree(parsed.text, edits)
    ways = [_ways(parsed, edit, barriers) for edit in edits]
    for way in islice(product(*ways), _MOST_WAYS):
        splices = tuple(splice for part in way for splice in part)
        try:
            if same_tree(parse(spliced(parsed.text, splices)), expected):
                return splices
        except CannotFixError:
            continue
    raise CannotFixError("no way to write the fix does just that")


def _ways(parsed: Parsed, edit: Edit, barriers: Collection[int]) -> list[tuple[Splice, ...]]:
    if edit.kind in _OF_EXPRESSIONS:
        return list(dict.fromkeys(expression_splices(parsed, edit)))
    return list(statement_splices(parsed, edit, barriers))
