"""Suppressions: comments that keep a problem out of the report.

- At the end of a line, `# trainloop: ignore[rule]` speaks for the statement on that line,
  however many lines it takes.
- On the header of a block (`def`, `class`, `for`, `while`, `with`, `if`, ...), or on a
  decorator of it, for the header and the whole block.
- On a line of its own, for the statement or block below it; at the start of a block, below
  its header, for the whole block.
- `# trainloop: ignore-file[rule]`, on a line of its own that is not indented, for the file.

`[a, b]` names several rules or families; without brackets all rules are meant. Words may
follow, to say why. Only comments count, never text in a string.

A comment that suppresses nothing is itself reported, as `unused-suppression`, unless a rule
that it names was not applied.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from tokenize import (
    COMMENT,
    DEDENT,
    ENDMARKER,
    INDENT,
    NEWLINE,
    NL,
    TokenError,
    TokenInfo,
    generate_tokens,
)

from pytest_trainloop.lint.selection import rule_families
from pytest_trainloop.lint.suppression import Suppression

#: The bytes that every suppression holds: a file without them needs no look at its comments.
MARKER = b"trainloop:"
_DIRECTIVE = re.compile(r"#\s*trainloop:\s*(?P<kind>ignore-file|ignore)(?![\w-])(?P<rest>.*)")
_NAMES = re.compile(r"\s*\[(?P<names>[^\]]*)\]")
_BARE_NAME = re.compile(r"\s*:?\s*(?P<name>[a-z]+(?:-[a-z]+)+)")


def find_suppressions(text: str) -> list[Suppression]:
    """The suppressions in a program that parses, in the order of their places."""
    comments: list[TokenInfo] = []
    statements = _Statements()
    try:
        for token in generate_tokens(StringIO(text, newline="").readline):
            if token.type != COMMENT:
                statements.feed(token)
            elif "trainloop:" in token.string:
                comments.append(token)
    except (TokenError, SyntaxError):
        # Tokenizer and parser disagree on a few odd programs; what was seen so far counts.
        pass
    return [found for comment in comments for found in _read(comment, statements)]


@dataclass(slots=True)
class _Statement:
    """A logical line of the program."""

    first_line: int
    last_line: int
    column: int
    depth: int
    is_decorator: bool


class _Statements:
    """The logical lines of a program, in order, from its tokens."""

    def __init__(self) -> None:
        self.found: list[_Statement] = []
        self._depth = 0
        self._open: _Statement | None = None

    def feed(self, token: TokenInfo) -> None:
        kind = token.type
        if kind == INDENT:
            self._depth += 1
        elif kind == DEDENT:
            self._depth -= 1
        elif kind == NEWLINE and self._open is not None:
            self._open.last_line = token.start[0]
            self._open = None
        elif kind not in (NL, NEWLINE, ENDMARKER) and self._open is None:
            line, column = token.start
            self._open = _Statement(line, line, column, self._depth, token.string == "@")
            self.found.append(self._open)

    def lines_meant(self, line: int, column: int) -> tuple[int, int]:
        """The lines that a comment at a place speaks for."""
        before = bisect_right(self.found, line, key=lambda statement: statement.first_line) - 1
        after = before + 1
        if before >= 0 and line <= self.found[before].last_line:
            return self._lines_of(before)
        if before >= 0 and self._is_header(before):
            return self._lines_of(before)
        if after < len(self.found) and self.found[after].column == column:
            return self._lines_of(after)
        return line, line

    def _is_header(self, index: int) -> bool:
        after = index + 1
        return after < len(self.found) and self.found[after].depth > self.found[index].depth

    def _lines_of(self, index: int) -> tuple[int, int]:
        """From the first to the last line of a statement, its block included."""
        statement = self.found[index]
        end = index
        while self.found[end].is_decorator and end + 1 < len(self.found):
            end += 1
        while end + 1 < len(self.found) and self.found[end + 1].depth > statement.depth:
            end += 1
        return statement.first_line, self.found[end].last_line


def _read(comment: TokenInfo, statements: _Statements) -> Iterator[Suppression]:
    directive = _DIRECTIVE.search(comment.string)
    if directive is None:
        return
    line, column = comment.start
    first, last = statements.lines_meant(line, column)
    names, fault = _names(directive["rest"])
    if directive["kind"] == "ignore-file":
        first, last = 1, 2**31
        if comment.line[:column] != "":
            fault = "`ignore-file` has to begin a line of its own"
    begin = column + directive.start() + 1
    yield Suppression(line, begin, column + len(comment.string) + 1, first, last, names, fault)


def _names(rest: str) -> tuple[tuple[str, ...], str]:
    """The rules named after the keyword, and what is wrong with how they are named."""
    if listed := _NAMES.match(rest):
        names = tuple(name.strip() for name in listed["names"].split(",") if name.strip())
        return names, "" if names else "the brackets name no rule"
    if rest.lstrip().startswith("["):
        return (), "the bracket is not closed"
    bare = _BARE_NAME.match(rest)
    if bare and bare["name"] in rule_families():
        return (), f"a rule stands in brackets: `ignore[{bare['name']}]`"
    return (), ""
