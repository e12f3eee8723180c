"""Plain searches of a text.

A regular expression without a literal at its beginning looks at each character by itself: it
takes ten times as long as `str.find`, and most of the text is not what it looks for.
"""

from __future__ import annotations

from collections.abc import Iterator


def places(text: str, *words: str, start: int = 0, end: int | None = None) -> Iterator[int]:
    """Where one of the words stands between two places, first of the first word."""
    end = len(text) if end is None else end
    for word in words:
        at = text.find(word, start, end)
        while at >= 0:
            yield at
            at = text.find(word, at + 1, end)


def uses(text: str, name: str, start: int = 0, end: int | None = None) -> Iterator[int]:
    """Where a name stands between two places, and not as a part of a longer one."""
    for at in places(text, name, start=start, end=end):
        if not _in_word(text[max(at - 1, 0) : at]) and not _in_word(
            text[at + len(name) : at + len(name) + 1]
        ):
            yield at


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"
