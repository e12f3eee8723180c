"""Where something stands in a text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A stretch of source text: lines and columns count from 1, the end column is exclusive.

    Columns count characters, not bytes.
    """

    path: str
    line: int
    column: int
    end_line: int
    end_column: int
