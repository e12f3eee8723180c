"""How statements lie on lines: their indentation, their comments, their neighbours."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Collection
from dataclasses import dataclass

from pytest_trainloop.lint.fix.parsed import Parsed, Slot, blocks_of, counted_indent
from pytest_trainloop.lint.fix.splices import CannotFixError

_REST_OF_LINE = re.compile(r"[ \t\f]*;?[ \t\f]*(?:#[^\r\n]*)?(?=\r|\n|\Z)")
_COMMENT_LINE = re.compile(r"(?P<indent>[ \t\f]*)#[^\r\n]*")
_WORD = re.compile(r"[a-z]{4,}")


@dataclass(frozen=True)
class Layout:
    """One statement as it lies in the text."""

    parsed: Parsed
    slot: Slot
    #: Lines that nothing may cross: the marks between the cells of a notebook.
    barriers: Collection[int]

    @property
    def start(self) -> int:
        """Where the statement begins, decorators included."""
        return self.parsed.span(self.slot.node)[0]

    @property
    def end(self) -> int:
        """Where the statement ends."""
        return self.parsed.span(self.slot.node)[1]

    @property
    def source(self) -> str:
        """The statement's own text."""
        return self.parsed.text[self.start : self.end]

    @property
    def is_compound(self) -> bool:
        """Whether the statement has blocks."""
        return is_compound(self.slot.node)

    @property
    def opens_line(self) -> bool:
        """Whether nothing stands before the statement on its line."""
        return not self.parsed.text[self.parsed.line_start(self.start) : self.start].strip()

    @property
    def closes_line(self) -> bool:
        """Whether nothing but a comment stands behind the statement on its last line."""
        return _REST_OF_LINE.match(self.parsed.text, self.end) is not None

    @property
    def line_start(self) -> int:
        """Where the statement's first line begins."""
        return self.parsed.line_start(self.start)

    @property
    def next_line(self) -> int:
        """Where the line after the statement's last begins, or the end of the text."""
        return self.parsed.next_line(self.end)

    def neighbour(self, distance: int) -> Layout | None:
        """The statement that stands so many places further on in the block (back, if negative)."""
        index = self.slot.index + distance
        if not 0 <= index < len(self.slot.block):
            return None
        return Layout(self.parsed, Slot(self.slot.block, index), self.barriers)

    @property
    def indent(self) -> str | None:
        """The white space before the statement's line, as far as Python counts it.

        None for a block that stands on the line of its header: `if x: a(); b()`.
        """
        leader: Layout | None = self
        while leader is not None and not leader.opens_line:
            leader = leader.neighbour(-1)
        return None if leader is None else counted_indent(self.parsed, leader.slot.node)

    @property
    def has_lines(self) -> bool:
        """Whether the statement shares its lines with nothing but comments."""
        return self.opens_line and self.closes_line

    @property
    def lines_start(self) -> int:
        """Where the lines of the statement begin, with the comment lines that go with it."""
        return self.comments_start() if self._goes_with_comments() else self.line_start

    def comments_start(self) -> int:
        """Where the comment lines right above the statement begin, or its own line."""
        line = self.parsed.line_of(self.start)
        if line > 1 and self._is_comment(line - 1):
            first = self._first_free_line()
            while line > first and self._is_comment(line - 1):
                line -= 1
        return self.parsed.line_starts[line - 1]

    def _goes_with_comments(self) -> bool:
        """Whether the comment above is about this statement rather than those after it too."""
        following = self.neighbour(1)
        if following is None or following.line_start > self.next_line:
            return True
        above = _WORD.findall(self.parsed.text[self.comments_start() : self.line_start].lower())
        named = _WORD.findall(self._deed().lower())
        return any(a.startswith(b) or b.startswith(a) for a in above for b in named)

    def footer_end(self) -> int:
        """Where the line after the statement begins, and after comments that are its block's."""
        position = self.next_line
        if not self.is_compound:
            return position
        end, depth = position, len((self.indent or "").expandtabs())
        while match := _COMMENT_LINE.match(self.parsed.text, position):
            if len(match.group("indent").expandtabs()) <= depth:
                break
            position = end = self.parsed.next_line(position)
        return end

    def _deed(self) -> str:
        """What the statement does, in its own words: the name it calls, or all of it."""
        node = self.slot.node
        called = node.value if isinstance(node, ast.Expr) else None
        function = called.func if isinstance(called, ast.Call) else None
        if isinstance(function, ast.Attribute):
            return function.attr
        return function.id if isinstance(function, ast.Name) else self.source

    def _first_free_line(self) -> int:
        """The first line that what stands before the statement leaves free."""
        previous = self.neighbour(-1)
        if previous is not None:
            return self.parsed.line_of(previous.end) + 1
        line = self.parsed.line_of(self.start)
        ends = [
            node.end_lineno or 0
            for node in ast.walk(self.parsed.tree)
            if isinstance(node, ast.expr) and (node.end_lineno or 0) < line
        ]
        return max(ends, default=0) + 1

    def _is_comment(self, line: int) -> bool:
        match = _COMMENT_LINE.match(self.parsed.text, self.parsed.line_starts[line - 1])
        if not match or line in self.barriers:
            return False
        indent = self.parsed.text[self.line_start : self.start]
        return match.group("indent").expandtabs() == indent.expandtabs()


def is_compound(node: ast.stmt) -> bool:
    """Whether a statement has blocks."""
    return next(blocks_of(node), None) is not None


def indent_unit(parsed: Parsed, indent: str) -> str:
    """One level of indentation below a line with this one."""
    return "\t" if indent.startswith("\t") else parsed.unit


def lines_inside_strings(source: str) -> set[int]:
    """The lines of some statements, counted from 1, that begin inside a string.

    Raises:
        CannotFixError: the text cannot be split into tokens.
    """
    inside: set[int] = set()
    opened: list[int] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source, newline="").readline):
            name = tokenize.tok_name[token.type]
            if name == "STRING":
                inside.update(range(token.start[0] + 1, token.end[0] + 1))
            elif name.endswith("STRING_START"):
                opened.append(token.start[0])
            elif name.endswith("STRING_END"):
                inside.update(range(opened.pop() + 1, token.end[0] + 1))
    except (tokenize.TokenError, SyntaxError) as error:
        raise CannotFixError("the text cannot be split into tokens") from error
    return inside
