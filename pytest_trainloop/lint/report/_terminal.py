"""Source text and paths as a terminal can show them: printable, aligned, coloured."""

from __future__ import annotations

import re
import unicodedata

_TAB = 4
# Control characters would act on the reader's terminal, bidirectional marks would show
# the code in another order than Python reads it, a lone surrogate cannot be printed.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_STYLES = {"bold": "1", "red": "31;1", "cyan": "36", "dim": "2"}


def painted(text: str, style: str, color: bool) -> str:
    """The text in a style (`bold`, `red`, `cyan`, `dim`), or as it is without `color`."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if color and text else text


def printable(text: str) -> str:
    """One line of text in which no character acts on a terminal."""
    return _UNPRINTABLE.sub(_picture, text)


def width(text: str) -> int:
    """How many columns of a terminal a printable text fills."""
    return len(text) if text.isascii() else sum(map(_character_width, text))


def laid_out(line: str) -> list[str]:
    """What is shown for each character of a source line: tabs fill up to their stop."""
    cells: list[str] = []
    column = 0
    for character in line:
        shown = " " * (_TAB - column % _TAB) if character == "\t" else printable(character)
        cells.append(shown)
        column += width(shown)
    return cells


def _picture(match: re.Match[str]) -> str:
    """Unicode has a picture for each control character of ASCII (`␛` for escape)."""
    character = match.group()
    if character == "\x7f":
        return "\u2421"
    return chr(0x2400 + ord(character)) if character.isascii() else "\ufffd"


def _character_width(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1
