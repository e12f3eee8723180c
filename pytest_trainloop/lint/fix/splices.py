"""Changes of a text as data: which stretches go, and what stands there instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class CannotFixError(Exception):
    """An edit cannot be made here without touching something else; the text stays as it is."""


@dataclass(frozen=True, slots=True, order=True)
class Splice:
    """`text` stands instead of the characters from `start` up to `end`, counted from 0."""

    start: int
    end: int
    text: str


def spliced(text: str, splices: Iterable[Splice]) -> str:
    """The text after all of these changes; insertions at one place keep their order.

    Raises:
        CannotFixError: two of them change the same characters.
    """
    # An insertion goes before a change that begins where it stands.
    ordered = sorted(splices, key=lambda splice: (splice.start, splice.end))
    pieces: list[str] = []
    position = 0
    for splice in ordered:
        if splice.start < position:
            raise CannotFixError("two changes overlap")
        pieces += [text[position : splice.start], splice.text]
        position = splice.end
    return "".join([*pieces, text[position:]])


def overlap(first: Iterable[Splice], second: Iterable[Splice]) -> bool:
    """Whether two sets of changes meet, be it only at their ends."""
    others = list(second)
    return any(
        one.start <= other.end and other.start <= one.end for one in first for other in others
    )


def smallest(start: int, before: str, after: str) -> Splice:
    """The change from `before`, which stands at `start`, to `after`, without what they share."""
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    shortest = min(len(before), len(after)) - head
    while tail < shortest and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    return Splice(start + head, start + len(before) - tail, after[head : len(after) - tail])
