"""A program's text with its syntax tree: finds nodes by their place, and spans by their node."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_trainloop.lint.fix.splices import CannotFixError

if TYPE_CHECKING:
    from pytest_trainloop.source.facts import Place

_LINE_END = re.compile(r"\r\n|\n|\r")
_BLOCKS = ("body", "orelse", "finalbody")

Span = tuple[int, int]


def parse(text: str) -> ast.Module:
    """The syntax tree of a program.

    Raises:
        CannotFixError: it is not Python, or is nested too deep to be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise CannotFixError("the text cannot be parsed") from error


@dataclass(frozen=True, eq=False)
class Slot:
    """Where a statement stands: in a block (the list that the tree has it in), at an index."""

    block: list[ast.stmt]
    index: int

    @property
    def node(self) -> ast.stmt:
        """The statement."""
        return self.block[self.index]


class Parsed:
    """A text and its tree. Offsets count characters from 0, lines and columns from 1."""

    def __init__(self, text: str, unit: str | None = None) -> None:
        """Parse the text.

        Args:
            text: a program, or some whole lines of one.
            unit: one level of indentation, where the text is too short to show it.

        Raises:
            CannotFixError: it is not Python.
        """
        self.text = text
        self.tree = parse(text)
        self._unit = unit

    @cached_property
    def unit(self) -> str:
        """One level of indentation, as the file has it."""
        return self._unit or _unit_of(self) or "    "

    @cached_property
    def line_starts(self) -> list[int]:
        """The offset of each line, and of the end of the text."""
        starts = [0, *(match.end() for match in _LINE_END.finditer(self.text))]
        return [*starts, len(self.text)]

    def line_of(self, offset: int) -> int:
        """The line, from 1, that holds the character at `offset`."""
        from bisect import bisect_right

        return bisect_right(self.line_starts, offset, 0, len(self.line_starts) - 1)

    def line_start(self, offset: int) -> int:
        """Where the line of `offset` begins."""
        return self.line_starts[self.line_of(offset) - 1]

    def line_end(self, offset: int) -> int:
        """Where the line of `offset` ends, before its line end."""
        match = _LINE_END.search(self.text, offset)
        return match.start() if match else len(self.text)

    def next_line(self, offset: int) -> int:
        """Where the line after that of `offset` begins, or the end of the text."""
        match = _LINE_END.search(self.text, offset)
        return match.end() if match else len(self.text)

    def newline_at(self, offset: int) -> str:
        """The line end of the line of `offset`, or what the file has elsewhere."""
        match = _LINE_END.search(self.text, offset) or _LINE_END.search(self.text)
        return match.group() if match else "\n"

    def span(self, node: ast.stmt | ast.expr) -> Span:
        """The offsets of a node; those of a function or class include its decorators."""
        start = self.own_start(node)
        for decorator in getattr(node, "decorator_list", ()):
            above = self._offset(decorator.lineno, decorator.col_offset)
            start = min(start, self.text.rindex("@", 0, above))
        # Whatever comes from a text has an end; only nodes made by hand have none.
        return start, self._offset(node.end_lineno or node.lineno, node.end_col_offset or 0)

    def own_start(self, node: ast.stmt | ast.expr) -> int:
        """Where a node begins; a function or class at its `def` or `class`."""
        return self._offset(node.lineno, node.col_offset)

    def place_span(self, place: Place) -> Span:
        """The offsets of a place.

        Raises:
            CannotFixError: it lies outside the text.
        """
        if not 1 <= place.line <= place.end_line < len(self.line_starts):
            raise CannotFixError("the place lies outside the text")
        start = self.line_starts[place.line - 1] + place.column - 1
        return start, self.line_starts[place.end_line - 1] + place.end_column - 1

    def expression_at(self, place: Place) -> ast.expr:
        """The expression that fills `place` exactly.

        Raises:
            CannotFixError: there is none.
        """
        self.place_span(place)
        begin = place.line, self._bytes(place.line, place.column - 1)
        end = place.end_line, self._bytes(place.end_line, place.end_column - 1)
        for node in ast.walk(self.slot_at(place).node):
            if (
                isinstance(node, ast.expr)
                and (node.lineno, node.col_offset) == begin
                and (node.end_lineno, node.end_col_offset) == end
            ):
                return node
        raise CannotFixError("no expression stands there")

    def slot_at(self, place: Place) -> Slot:
        """The innermost statement that holds `place`.

        Raises:
            CannotFixError: there is none.
        """
        path = self._path(place)
        if not path:
            raise CannotFixError("no statement stands there")
        return path[-1]

    def function_at(self, place: Place) -> ast.FunctionDef | ast.AsyncFunctionDef:
        """The innermost function definition that holds `place`.

        Raises:
            CannotFixError: there is none.
        """
        for slot in reversed(self._path(place)):
            if isinstance(slot.node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                return slot.node
        raise CannotFixError("no function stands there")

    def _path(self, place: Place) -> list[Slot]:
        start, end = self.place_span(place)
        path: list[Slot] = []
        blocks = [self.tree.body]
        while blocks:
            block = blocks.pop()
            for index, node in enumerate(block):
                begin, stop = self.span(node)
                if begin <= start and end <= stop:
                    path.append(Slot(block, index))
                    blocks = list(blocks_of(node))
                    break
        return path

    def _bytes(self, line: int, characters: int) -> int:
        """How many bytes of UTF-8, which the tree counts in, the line's first characters fill."""
        start = self.line_starts[line - 1]
        return len(self.text[start : start + characters].encode(errors="surrogatepass"))

    def _offset(self, line: int, column: int) -> int:
        """The offset of a place of the tree: `column` counts bytes, from 0."""
        start = self.line_starts[line - 1]
        text = self.text[start : self.line_starts[line]]
        if text.isascii():
            return start + column
        return start + len(text.encode()[:column].decode(errors="replace"))


def counted_indent(parsed: Parsed, node: ast.stmt) -> str:
    """What stands before a statement on its line, from where Python begins to count."""
    start = parsed.span(node)[0]
    return parsed.text[parsed.line_start(start) : start].rpartition("\f")[2]


def _unit_of(parsed: Parsed) -> str | None:
    nodes = (node for node in ast.walk(parsed.tree) if isinstance(node, ast.stmt))
    for node in nodes:
        for block in blocks_of(node):
            outer, inner = (counted_indent(parsed, part) for part in (node, block[0]))
            if inner.startswith(outer) and not inner.strip() and len(inner) > len(outer):
                return inner[len(outer) :]
    return None


def blocks_of(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The blocks of a compound statement, those of its handlers and cases included."""
    for name in _BLOCKS:
        block = getattr(node, name, None)
        if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
            yield block
    for name in ("handlers", "cases"):
        for part in getattr(node, name, ()):
            yield from blocks_of(part)
