"""Where the code of each cell stands in a notebook's JSON, and how to write it anew there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

from pytest_trainloop.lint.document import split_lines

_DECODER = json.JSONDecoder(strict=False)
_SPACE = " \t\n\r"


@dataclass(frozen=True)
class CellSource:
    """The `source` of one code cell: a JSON string, or a JSON array of strings."""

    #: Counted from 0 over all cells of the notebook, those that hold no code included.
    index: int
    #: Where the value begins and ends in the notebook's text.
    span: tuple[int, int]
    raw: str

    @property
    def lines(self) -> list[str]:
        """The code's lines without line ends; a last line end makes one more, empty, line."""
        return self._code().split("\n")

    def with_lines(self, lines: list[str]) -> str:
        """The JSON value for changed lines; unchanged lines keep their bytes."""
        if lines == self.lines:
            return self.raw
        if self.raw.startswith('"'):
            return self._literal("\n".join(lines))
        pieces = [f"{line}\n" for line in lines[:-1]]
        return self._array([*pieces, lines[-1]] if lines[-1] else pieces)

    def offset_of(self, line: int) -> int:
        """Where in the notebook's text the JSON string begins that a line (from 1) begins in."""
        if self.raw.startswith('"'):
            return self.span[0]
        begins = 1
        for begin, end in _items(self.raw, 0):
            text = _DECODER.decode(self.raw[begin:end])
            ends = begins + len(split_lines(text)) - 1
            if begins <= line <= (ends - 1 if text.endswith(("\n", "\r")) else ends):
                return self.span[0] + begin
            begins = ends
        return self.span[0]

    def _code(self) -> str:
        value = _DECODER.decode(self.raw)
        return value if isinstance(value, str) else "".join(value)

    def _array(self, pieces: list[str]) -> str:
        """The array for changed pieces of code, with the white space that it had before."""
        spans = list(_items(self.raw, 0))
        if not spans:
            return "[" + ", ".join(map(self._literal, pieces)) + "]"
        opening, closing = self.raw[: spans[0][0]], self.raw[spans[-1][1] :]
        between = self.raw[spans[0][1] : spans[1][0]] if len(spans) > 1 else "," + opening[1:]
        before = [_DECODER.decode(self.raw[begin:end]) for begin, end in spans]
        written: list[str] = []
        for kind, i1, i2, j1, j2 in SequenceMatcher(
            a=before, b=pieces, autojunk=False
        ).get_opcodes():
            if kind == "equal":
                written.append(self.raw[spans[i1][0] : spans[i2 - 1][1]])
            else:
                written += map(self._literal, pieces[j1:j2])
        return opening + between.join(written) + closing

    def _literal(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=self.raw.isascii() and "\\u" in self.raw)


def find_code_cells(raw: str) -> Iterator[CellSource]:
    """The code cells of a notebook that is known to be valid JSON with a list of cells."""
    cells = dict(_members(raw, _skip(raw, 0)))["cells"]
    for index, (begin, _) in enumerate(_items(raw, cells[0])):
        if raw[begin] != "{":
            continue
        spans = dict(_members(raw, begin))
        if "source" not in spans or "cell_type" not in spans:
            continue
        kind = _DECODER.decode(raw[slice(*spans["cell_type"])])
        source = raw[slice(*spans["source"])]
        if kind == "code" and _is_text(source):
            yield CellSource(index, spans["source"], source)


def _is_text(raw: str) -> bool:
    value = _DECODER.decode(raw)
    if isinstance(value, list):
        return all(isinstance(line, str) for line in value)
    return isinstance(value, str)


def _skip(raw: str, position: int) -> int:
    while raw[position : position + 1] in _SPACE and position < len(raw):
        position += 1
    return position


def _items(raw: str, begin: int) -> Iterator[tuple[int, int]]:
    """The spans of the items of the array that begins at `begin`."""
    position = _skip(raw, begin + 1)
    while raw[position] != "]":
        _, end = _DECODER.raw_decode(raw, position)
        yield position, end
        position = _skip(raw, end)
        if raw[position] == ",":
            position = _skip(raw, position + 1)


def _members(raw: str, begin: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """The keys and the spans of the values of the object that begins at `begin`."""
    position = _skip(raw, begin + 1)
    while raw[position] != "}":
        key, end = _DECODER.raw_decode(raw, position)
        value = _skip(raw, _skip(raw, end) + 1)
        _, end = _DECODER.raw_decode(raw, value)
        yield key, (value, end)
        position = _skip(raw, end)
        if raw[position] == ",":
            position = _skip(raw, position + 1)
