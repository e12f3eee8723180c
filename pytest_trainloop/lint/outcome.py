"""What a run of the linter found: plain data for the report writers and the fixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pytest_trainloop.rules import Fix


@dataclass(frozen=True, slots=True)
class Replacement:
    """A change of a file: `text` instead of what lies between two places (as in `Problem`)."""

    line: int
    column: int
    end_line: int
    end_column: int
    text: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding as a reader meets it: where it stands in the user's file, and its words.

    In a notebook `line` counts within the cell, and `cell` counts from 0 over all cells
    of the notebook; elsewhere `cell` is None. Lines and columns count from 1, the end
    column is exclusive.
    """

    #: As the user gave it: relative where they gave a relative path.
    path: str
    line: int
    column: int
    end_line: int
    end_column: int
    cell: int | None
    rule: str
    #: The cause, in the user's own names: one sentence without a full stop.
    message: str
    #: What to write: a sentence that begins in lower case.
    advice: str
    #: The edits that remove the problem. Their places count lines in `Document.text`.
    fix: Fix | None = None
    #: The source line that the problem begins on, without its line end.
    source_line: str = ""
    #: Stays the same when the lines around the problem move: 16 hexadecimal digits.
    fingerprint: str = ""
    #: In a notebook, the line of its JSON that the problem begins on; elsewhere None.
    json_line: int | None = None
    #: What the fix changes in a script; filled in for the formats that show it only.
    replacements: tuple[Replacement, ...] = ()

    @property
    def fixable(self) -> Literal["safe", "unsafe"] | None:
        """Whether a fix is offered, and whether `--fix` alone makes it."""
        if self.fix is None:
            return None
        return "safe" if self.fix.safe else "unsafe"


@dataclass(frozen=True, slots=True)
class FileError:
    """A file or folder that could not be linted, or not wholly, and why.

    `line`, `cell` and `json_line` as in `Problem`, where the reason has a place.
    """

    path: str
    #: One line: `not UTF-8: byte 0xff at offset 12; declare the encoding`.
    message: str
    line: int | None = None
    cell: int | None = None
    json_line: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All that a writer of `lint/report/` needs. Problems are in order of path and place."""

    problems: tuple[Problem, ...] = ()
    errors: tuple[FileError, ...] = ()
    #: How many files were linted, those without a word of PyTorch included.
    files: int = 0
    #: Whether the text may carry terminal colours.
    color: bool = False
