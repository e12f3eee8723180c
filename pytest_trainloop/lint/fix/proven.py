"""The splices that make a fix, proven to do what it says and nothing else."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice, product
from typing import TYPE_CHECKING

from pytest_trainloop.lint.fix.expected import expected_tree, same_tree
from pytest_trainloop.lint.fix.expressions import expression_splices
from pytest_trainloop.lint.fix.parsed import Parsed, parse
from pytest_trainloop.lint.fix.splices import CannotFixError, Splice, spliced
from pytest_trainloop.lint.fix.statements import statement_splices

if TYPE_CHECKING:
    from pytest_trainloop.rules import Edit, Fix

_OF_EXPRESSIONS = {"append", "replace", "add-argument"}
# Ways to write a fix that are tried: five for an edit of an expression, at most two for one
# of statements, and few fixes have more than two edits.
_MOST_WAYS = 100


def splices_of(text: str, fix: Fix, barriers: Collection[int] = ()) -> tuple[Splice, ...]:
    """The changes of `text` that make `fix`; `barriers` are lines that no edit may cross.

    Raises:
        CannotFixError: it cannot be made without touching something else.
    """
    expected = expected_tree(text, fix.edits)
    parsed = Parsed(text)
    ways = [_ways(parsed, edit, barriers) for edit in fix.edits]
    for way in islice(product(*ways), _MOST_WAYS):
        splices = tuple(splice for part in way for splice in part)
        try:
            if same_tree(parse(spliced(text, splices)), expected):
                return splices
        except CannotFixError:
            continue
    raise CannotFixError("no way to write the fix does just that")


def _ways(parsed: Parsed, edit: Edit, barriers: Collection[int]) -> list[tuple[Splice, ...]]:
    if edit.kind in _OF_EXPRESSIONS:
        return list(dict.fromkeys(expression_splices(parsed, edit)))
    return list(statement_splices(parsed, edit, barriers))
