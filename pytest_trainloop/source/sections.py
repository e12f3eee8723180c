"""The top of a module, cut into its statements by its text alone.

Most of what is imported from a module is one name of many. Cutting the text takes a tenth
of the time that parsing it does, and only the sections that are asked for are parsed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

#: Comments and strings, so that no line inside a string is taken for a statement.
_STRING = re.compile(
    r'#[^\n]*|"""(?:[^"\\]|\\.|"(?!""))*(?:"""|\Z)|\'\'\'(?:[^\'\\]|\\.|\'(?!\'\'))*(?:\'\'\'|\Z)'
    r'|"(?:[^"\\\n]|\\.)*"?|\'(?:[^\'\\\n]|\\.)*\'?',
    re.DOTALL,
)
#: A line at the left margin that begins a statement, rather than going on with one.
_STATEMENT = re.compile(r"^(?!else\b|elif\b|except\b|finally\b)[^\s#)\]}]", re.MULTILINE)
_DEFINITION = re.compile(r"(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)")
#: One name is bound, and nothing else on the line.
_ASSIGNMENT = re.compile(r"(\w+)[ \t]*(?::[^=\n;]+)?=(?!=)(?![^=\n(\[{\"'#]*[^=!<>\n]=(?!=))")


@dataclass(slots=True)
class Section:
    """One statement at the top of a module, as text."""

    name: str
    text: str
    line: int

    def parsed(self) -> list[ast.stmt]:
        """Its syntax tree, with the lines that it has in its file.

        Raises:
            SyntaxError: it is not Python by itself: the text was cut in a wrong place.
        """
        return ast.parse("\n" * (self.line - 1) + self.text).body


@dataclass(slots=True)
class Sections:
    """The parts of a module that bind one name each, and the rest."""

    named: dict[str, list[Section]] = field(default_factory=dict)
    #: Everything else, each line where it was.
    rest: str = ""


def cut(text: str) -> Sections:
    """Cut the text of a module into its statements."""
    sections = Sections()
    rest: list[str] = []
    line = 1
    for piece, name in _pieces(text):
        if name:
            sections.named.setdefault(name, []).append(Section(name, piece, line))
            rest.append("\n" * piece.count("\n"))
        else:
            rest.append(piece)
        line += piece.count("\n")
    sections.rest = "".join(rest)
    return sections


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """The statements with what follows them up to the next, and the name that each binds."""
    starts = list(_starts(text))
    if not starts or starts[0] > 0:
        yield text[: starts[0] if starts else len(text)], ""
    begin, head, brackets = -1, 0, 0
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        if begin < 0:
            begin = head = start
        elif text[begin] == "@" and not brackets:
            head = start  # a decorator belongs to what it decorates
        brackets += _open_brackets(text[start:end])
        is_decorator = text[begin] == "@" and not _DEFINITION.match(text, head)
        if brackets or is_decorator or text.endswith("\\\n", start, end):
            continue
        yield text[begin:end], _bound_by(text, head, end)
        begin = -1
    if begin >= 0:
        yield text[begin:], ""


def _open_brackets(piece: str) -> int:
    """How many brackets a piece opens and does not close."""
    balance = _balance(piece)
    # Only where it matters: brackets in strings and comments are none.
    return _balance(_STRING.sub("", piece)) if balance else 0


def _balance(piece: str) -> int:
    return sum(map(piece.count, "([{")) - sum(map(piece.count, ")]}"))


def _bound_by(text: str, start: int, end: int) -> str:
    match = _DEFINITION.match(text, start, end)
    if match is not None:
        return match.group(1)
    match = _ASSIGNMENT.match(text, start, end)
    if match is None or ";" in text[start:end]:
        return ""
    return match.group(1)


def _starts(text: str) -> Iterator[int]:
    """Where the statements begin, those in strings left out."""
    strings = _long_strings(text)
    string_start, string_end = next(strings, (len(text), len(text)))
    for match in _STATEMENT.finditer(text):
        at = match.start()
        while string_end <= at:
            string_start, string_end = next(strings, (len(text), len(text) + 1))
        if at <= string_start:
            yield at


def _long_strings(text: str) -> Iterator[tuple[int, int]]:
    for match in _STRING.finditer(text):
        if text.startswith(('"""', "'''"), match.start()):
            yield match.span()
