"""Statements on their way to a new place in the text."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_trainloop.lint.document import split_lines
from pytest_trainloop.lint.fix.layout import Layout, is_compound, lines_inside_strings
from pytest_trainloop.lint.fix.parsed import parse

_UNIT_OF_EDITS = "    "


@dataclass(frozen=True)
class Piece:
    """Some statements: lines without line ends."""

    lines: list[str]
    #: Lines, counted from 1, that begin inside a string and stay as they are.
    fixed: set[int]
    #: The indentation that the statements have had so far.
    indent: str = ""
    #: Whether they may stand beside another statement, after a semicolon.
    fits_in_line: bool = False
    #: Whether deeper lines are indented as the code of an edit is, not as the file is.
    is_new: bool = False

    def placed(self, indent: str, unit: str) -> list[str]:
        """The lines for a block with this indentation, in a file with this unit of it."""
        first = indent + self.lines[0].lstrip()
        rest = enumerate(self.lines[1:], 2)
        return [first, *(self._placed(line, number, indent, unit) for number, line in rest)]

    def _placed(self, line: str, number: int, indent: str, unit: str) -> str:
        if number in self.fixed or not line.strip() or not line.startswith(self.indent):
            return line
        line = line[len(self.indent) :]
        if self.is_new:
            text = line.lstrip(" ")
            levels, extra = divmod(len(line) - len(text), len(_UNIT_OF_EDITS))
            line = unit * levels + " " * extra + text
        return indent + line


def piece_of_code(code: str) -> Piece:
    """The statements that an edit brings.

    Raises:
        CannotFixError: `code` is not Python.
    """
    body = parse(code).body
    lines = split_lines(code)
    fits = len(lines) == 1 and len(body) == 1 and not is_compound(body[0])
    return Piece(lines, lines_inside_strings(code + "\n"), fits_in_line=fits, is_new=True)


def piece_of_statement(layout: Layout) -> Piece:
    """A statement that stands in the text, with the comments that are about it.

    Raises:
        CannotFixError: its strings cannot be told from its code.
    """
    text, start, end = layout.parsed.text, layout.start, layout.end
    if layout.has_lines:
        start, end = layout.lines_start, layout.parsed.line_end(layout.end)
    source = text[start:end]
    lines = split_lines(source)
    has_comment = bool(text[start : layout.start].strip() or text[layout.end : end].strip(" \t\f;"))
    fits = len(lines) == 1 and not layout.is_compound and not has_comment
    if fits:
        lines = [layout.source]
    return Piece(lines, lines_inside_strings(source + "\n"), layout.indent or "", fits)
