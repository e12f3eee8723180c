"""Where the functions of a text stand, and which of them lead to a place in it.

Plain searches of the text: they take a hundredth of the time that looking at each
identifier of it would.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_DEFINITION = re.compile(r"^([ \t]*)(?:async[ \t]+)?(def|class)[ \t]+(\w+)", re.MULTILINE)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
#: Methods that run when their class or an object of it is called.
_CALLED_AS_CLASS = ("__init__", "forward", "__call__")


@dataclass(slots=True, eq=False)
class Extent:
    """One function: its name, the names that code may call it by, and its offsets.

    `first` is where its first decorator begins, `start` its `def`, `end` what follows it.
    """

    name: str
    known_as: tuple[str, ...]
    first: int
    start: int
    end: int


def known_as(name: str, owner: str | None) -> tuple[str, ...]:
    """The names by which code may refer to a function: its own; for a constructor, its class's."""
    if owner is not None and name in _CALLED_AS_CLASS:
        return (owner, name)
    return (name,)


class Extents:
    """The functions of one text, in the order in which they begin."""

    def __init__(self, text: str, extents: Sequence[Extent]) -> None:
        self._text = text
        self._extents = extents
        self._firsts = [extent.first for extent in extents]
        self._around = list(_enclosing(extents))
        self._mentions: dict[str, frozenset[Extent]] = {}
        self._named: dict[str, list[Extent]] = {}
        self._leads: dict[Extent, bool] = {}

    def reaching(self, offsets: Iterable[int]) -> set[Extent]:
        """The functions that hold one of the offsets, or mention one that does, at any depth."""
        reached: set[Extent] = set()
        for offset in offsets:
            reached.update(self._holding(offset))
        return self._with_mentioning(reached)

    def beginning_at(self, start: int) -> Extent | None:
        """The function whose `def` line begins at an offset."""
        number = bisect_right(self._firsts, start) - 1
        found = self._extents[number] if number >= 0 else None
        return found if found is not None and found.start == start else None

    def leads_to(self, extent: Extent, words: Iterable[str]) -> bool:
        """Whether one of the words stands in a function, or in one that it mentions, at any depth.

        The words have to be the same at each call: what was found is remembered.
        """
        known = self._leads.get(extent)
        if known is not None:
            return known
        queue, seen = [extent], {extent}
        for one in queue:
            if self._leads.get(one) or self._holds(one, words):
                self._leads[extent] = True
                return True
            for other in self._mentioned_in(one):
                if other not in seen:
                    seen.add(other)
                    queue.append(other)
        # None of those that it leads to leads anywhere either.
        self._leads.update(dict.fromkeys(seen, False))
        return False

    def _holds(self, extent: Extent, words: Iterable[str]) -> bool:
        piece = self._text[extent.first : extent.end]
        return any(word in piece for word in words)

    def _mentioned_in(self, extent: Extent) -> Iterator[Extent]:
        """The functions whose names stand in the text of one."""
        if not self._named:
            for other in self._extents:
                for name in other.known_as:
                    self._named.setdefault(name, []).append(other)
        names = set(_IDENTIFIER.findall(self._text, extent.start, extent.end))
        for name in names.intersection(self._named) - {extent.name}:
            yield from self._named[name]

    def _with_mentioning(self, reached: set[Extent]) -> set[Extent]:
        queue = list(reached)
        asked: set[str] = set()
        for extent in queue:
            for name in extent.known_as:
                if name in asked:
                    continue
                asked.add(name)
                for other in self.mentioning(name):
                    if other not in reached:
                        reached.add(other)
                        queue.append(other)
        return reached

    def mentioning(self, name: str) -> frozenset[Extent]:
        """The functions in whose text a name stands; a function does not mention itself."""
        known = self._mentions.get(name)
        if known is None:
            known = self._mentions[name] = frozenset(self._find_mentioning(name))
        return known

    def _find_mentioning(self, name: str) -> Iterator[Extent]:
        text, size = self._text, len(name)
        at = text.find(name)
        while at >= 0:
            end = at + size
            if not _in_word(text, at - 1) and not _in_word(text, end):
                for extent in self._holding(at):
                    if extent.start <= at and extent.name != name:
                        yield extent
            at = text.find(name, end)

    def _holding(self, offset: int) -> Iterator[Extent]:
        """The functions around an offset, innermost first."""
        number = bisect_right(self._firsts, offset) - 1
        while number >= 0:
            extent = self._extents[number]
            if offset < extent.end:
                yield extent
            number = self._around[number]


def _in_word(text: str, offset: int) -> bool:
    return 0 <= offset < len(text) and (text[offset].isalnum() or text[offset] == "_")


def _enclosing(extents: Sequence[Extent]) -> Iterator[int]:
    """For each function the number of the one around it, or -1."""
    stack: list[int] = []
    for number, extent in enumerate(extents):
        while stack and extents[stack[-1]].end <= extent.first:
            stack.pop()
        yield stack[-1] if stack else -1
        stack.append(number)


def extents_of(text: str) -> list[Extent]:
    """The functions of a text as its lines and their indentation tell them, without parsing it.

    A line of a string that looks like a definition is taken for one.
    """
    found: list[Extent] = []
    open_: list[tuple[int, str, Extent | None]] = []
    for match in _DEFINITION.finditer(text):
        indent, kind, name = match.groups()
        depth = len(indent.expandtabs())
        _close(open_, depth, match.start())
        owner = open_[-1][1] if open_ and open_[-1][2] is None else None
        extent = None
        if kind == "def":
            start = match.start()
            extent = Extent(name, known_as(name, owner), start, start, len(text))
            found.append(extent)
        open_.append((depth, name, extent))
    return found


def _close(open_: list[tuple[int, str, Extent | None]], depth: int, at: int) -> None:
    """End the definitions that a line of this depth does not stand in."""
    while open_ and open_[-1][0] >= depth:
        extent = open_.pop()[2]
        if extent is not None:
            extent.end = at
