"""Notebooks as programs: the code cells of an `.ipynb`, one below the other, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from pytest_trainloop.lint.cell_source import CellSource, find_code_cells
from pytest_trainloop.lint.document import UnreadableError, split_lines
from pytest_trainloop.lint.magics import neutralised, restored

# Stands above each cell in the joined program. It tells the cells of a changed program
# apart, so that a line inserted at the end of one does not slip into the next.
_MARK = "# --- trainloop: notebook cell {index} ---"


@dataclass(frozen=True)
class Notebook:
    """The code cells of a notebook as one program.

    IPython's own syntax (`%matplotlib inline`, `!pip install ...`, `model?`) is replaced,
    line for line, by a call of `get_ipython`, which is what IPython makes of it.
    """

    raw: str
    has_bom: bool
    cells: tuple[CellSource, ...]
    text: str = field(init=False)
    #: For each cell, the line of `text` that its mark stands on.
    marks: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Join the cells."""
        text = ""
        marks: list[int] = []
        line = 1
        for cell in self.cells:
            marks.append(line)
            code = "".join(f"{line}\n" for line in neutralised(cell.lines))
            text += _MARK.format(index=cell.index) + "\n" + code
            line += len(split_lines(code))
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "marks", tuple(marks))

    def locate(self, line: int) -> tuple[int | None, int]:
        """The cell, from 0 over all cells, and the line within it, from 1, of a line of `text`."""
        below = [n for n, mark in enumerate(self.marks) if mark <= line]
        if not below:
            return None, line
        return self.cells[below[-1]].index, max(1, line - self.marks[below[-1]])

    def json_line(self, line: int) -> int | None:
        """The line of the notebook's JSON that a line of `text` is written on."""
        index, within = self.locate(line)
        for cell in self.cells:
            if cell.index == index:
                return self.raw.count("\n", 0, cell.offset_of(within)) + 1
        return None

    def encode(self, text: str) -> bytes:
        """The bytes of the notebook with the cells of a changed `text`; all else as it was.

        Raises:
            ValueError: the marks between the cells are gone or out of order.
        """
        out: list[str] = []
        end = 0
        for cell, lines in zip(self.cells, self._divided(text), strict=True):
            begin, stop = cell.span
            changed = cell.with_lines(restored(lines, cell.lines))
            out += [self.raw[end:begin], changed]
            end = stop
        mark = "\ufeff" if self.has_bom else ""
        return (mark + "".join(out) + self.raw[end:]).encode("utf-8", "surrogatepass")

    def _divided(self, text: str) -> list[list[str]]:
        """The lines of each cell in a changed program."""
        marks = [_MARK.format(index=cell.index) for cell in self.cells]
        cells: list[list[str]] = []
        for line in text.removesuffix("\n").split("\n") if text else ():
            if len(cells) < len(marks) and line.strip() == marks[len(cells)]:
                cells.append([])
            elif cells:
                cells[-1].append(line)
            else:
                raise ValueError("a line stands above the first cell")
        if len(cells) != len(marks):
            raise ValueError("the marks between the cells are gone")
        return cells


def read_notebook(data: bytes) -> Notebook:
    """The notebook that `data` is the content of.

    Raises:
        UnreadableError: it is not JSON, or not the JSON of a notebook.
    """
    raw, has_bom = _decoded(data)
    try:
        content = json.loads(raw)
    except json.JSONDecodeError as error:
        raise UnreadableError(
            f"it is not a notebook: not JSON ({error.msg})", error.lineno
        ) from None
    except RecursionError:
        raise UnreadableError("it is not a notebook: JSON nested too deep") from None
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise UnreadableError("it is not a notebook of version 4: it has no list of cells")
    if not _is_python(content):
        return Notebook(raw, has_bom, ())
    return Notebook(raw, has_bom, tuple(find_code_cells(raw)))


def _decoded(data: bytes) -> tuple[str, bool]:
    try:
        raw = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableError("it is not a notebook: not UTF-8 text", line) from None
    return raw.removeprefix("\ufeff"), raw.startswith("\ufeff")


def _is_python(content: dict[str, object]) -> bool:
    """Whether the cells hold Python; a notebook that does not say so is taken to."""
    metadata = content.get("metadata")
    if not isinstance(metadata, dict):
        return True
    for key, name in (("language_info", "name"), ("kernelspec", "language")):
        about = metadata.get(key)
        if isinstance(about, dict) and isinstance(about.get(name), str):
            return about[name].lower() in {"python", "ipython", "sage"}
    return True
