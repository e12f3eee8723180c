"""A comment that keeps problems out of the report, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Suppression:
    """One comment: the lines it speaks for, and the rules or families; no name means all.

    Lines count in the document's text, both ends included.
    """

    line: int
    column: int
    end_column: int
    first_line: int
    last_line: int
    names: tuple[str, ...]
    #: Why the comment cannot be followed, if it cannot.
    fault: str = ""

    def covers(self, line: int, rule: str, family: str) -> bool:
        """Whether the comment speaks for a rule on a line."""
        if self.fault or not self.first_line <= line <= self.last_line:
            return False
        return not self.names or rule in self.names or family in self.names
