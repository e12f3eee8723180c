"""Edits of statements: whole lines where they have lines of their own, else beside a semicolon."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.lint.fix.layout import Layout, indent_unit, lines_inside_strings
from pytest_trainloop.lint.fix.pieces import Piece, piece_of_code, piece_of_statement
from pytest_trainloop.lint.fix.splices import CannotFixError, Splice

if TYPE_CHECKING:
    from pytest_trainloop.lint.fix.parsed import Parsed
    from pytest_trainloop.rules import Edit
    from pytest_trainloop.source.facts import Place


def statement_splices(
    parsed: Parsed, edit: Edit, barriers: Collection[int]
) -> Iterator[tuple[Splice, ...]]:
    """The ways to write the edit, plainest first; which of them mean it is for the tree to say.

    Raises:
        CannotFixError: the statements do not lie so that it can be written.
    """

    def lying(place: Place) -> Layout:
        return Layout(parsed, parsed.slot_at(place), barriers)

    if edit.kind == "decorate":
        yield (_decorated(parsed, edit),)
        return
    here = lying(edit.place)
    there = lying(edit.to) if edit.to else here
    if edit.kind == "wrap":
        yield tuple(_wrapped(here, there, edit.code))
    elif edit.kind.startswith("insert"):
        yield (_inserted(here, piece_of_code(edit.code), after=edit.kind == "insert-after"),)
    else:
        for deletion in _deletions(here):
            if edit.kind == "delete":
                yield (deletion,)
            else:
                piece = piece_of_statement(here)
                yield deletion, _inserted(there, piece, after=edit.kind == "move-after")


def _inserted(there: Layout, piece: Piece, *, after: bool) -> Splice:
    if not after and _must_stay_first(there):
        raise CannotFixError("nothing may stand before that statement")
    indent = there.indent
    if indent is not None and (there.closes_line if after else there.opens_line):
        return _inserted_lines(there, piece, indent, after=after)
    if not piece.fits_in_line or (after and there.is_compound):
        raise CannotFixError("the statement has no line of its own")
    if after:
        return Splice(there.end, there.end, f"; {piece.lines[0].strip()}")
    return Splice(there.start, there.start, f"{piece.lines[0].strip()}; ")


def _inserted_lines(there: Layout, piece: Piece, indent: str, *, after: bool) -> Splice:
    parsed = there.parsed
    newline = parsed.newline_at(there.start)
    lines = newline.join(piece.placed(indent, indent_unit(parsed, indent)))
    at = there.footer_end() if after else there.comments_start()
    if after and at == len(parsed.text) and not parsed.text.endswith(("\n", "\r")):
        return Splice(at, at, newline + lines)
    return Splice(at, at, lines + newline)


def _must_stay_first(there: Layout) -> bool:
    """Whether a statement before this one would take its meaning: a docstring, `__future__`."""
    node = there.slot.node
    if isinstance(node, ast.ImportFrom) and node.module == "__future__":
        return True
    is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return there.slot.index == 0 and is_text


def _deletions(here: Layout) -> Iterator[Splice]:
    """The ways to take a statement away: a block must not be left empty."""
    if len(here.slot.block) == 1 and here.slot.block is not here.parsed.tree.body:
        yield _passed(here)
    if here.has_lines:
        yield _deleted_lines(here)
        return
    following, previous = here.neighbour(1), here.neighbour(-1)
    if following is not None and here.next_line > following.start:
        yield Splice(here.start, following.start, "")
    elif previous is not None:
        yield Splice(previous.end, here.end, "")


def _passed(here: Layout) -> Splice:
    if not here.has_lines:
        return Splice(here.start, here.end, "pass")
    end = here.parsed.line_end(here.end)
    return Splice(here.lines_start, end, f"{here.indent}pass")


def _deleted_lines(here: Layout) -> Splice:
    text = here.parsed.text
    start, end = here.lines_start, here.next_line
    if end == len(text) and not text.endswith(("\n", "\r")):
        # The line before becomes the last one, which has no line end.
        start = len(text[:start].removesuffix("\n").removesuffix("\r"))
    return Splice(start, end, "")


def _wrapped(first: Layout, last: Layout, code: str) -> Iterator[Splice]:
    parsed, indent = first.parsed, first.indent
    if indent is None or not first.opens_line or not last.closes_line:
        raise CannotFixError("the statements have no lines of their own")
    start, end = first.line_start, last.footer_end()
    top = parsed.line_of(start)
    source = parsed.text[start:end]
    fixed = lines_inside_strings(source)
    unit = indent_unit(parsed, indent)
    yield Splice(start, start, f"{indent}{code}{parsed.newline_at(start)}")
    for number, line in enumerate(re.split(r"(?<=\n)|(?<=\r)(?!\n)", source), 1):
        if top + number - 1 in first.barriers:
            raise CannotFixError("the statements stand in several cells")
        if line.strip() and number not in fixed:
            leading = len(line) - len(line.lstrip(" \t\f"))
            counted = line[:leading].rpartition("\f")[2]
            depth = leading - len(counted) + (len(indent) if counted.startswith(indent) else 0)
            at = parsed.line_starts[top + number - 2] + depth
            yield Splice(at, at, unit)


def _decorated(parsed: Parsed, edit: Edit) -> Splice:
    start = parsed.own_start(parsed.function_at(edit.place))
    line_start = parsed.line_start(start)
    indent = parsed.text[line_start:start]
    decorator = "@" + edit.code.strip().removeprefix("@")
    return Splice(line_start, line_start, f"{indent}{decorator}{parsed.newline_at(start)}")
