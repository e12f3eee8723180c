"""What linting one file gave, in a form that can be kept in a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_trainloop.lint.suppression import Suppression
from pytest_trainloop.source.tree import digest as digest_of

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import FileError
    from pytest_trainloop.rules import Finding, Fix
    from pytest_trainloop.source.facts import Place


@dataclass(frozen=True)
class Consulted:
    """What the findings of a file rest on besides its own text: other linted files."""

    #: The files that were looked into, and the `joint_digest` of what they held.
    paths: tuple[str, ...] = ()
    digest: str = ""
    #: Each import that was looked up for the first time in the run: the module, the
    #: importing file, the linted file it means.
    imports: tuple[tuple[str, str, str | None], ...] = ()


@dataclass(frozen=True)
class FileResult:
    """What linting one file gave. A finding may stand in another file that this one calls."""

    path: str
    findings: tuple[Finding, ...] = ()
    suppressions: tuple[Suppression, ...] = ()
    errors: tuple[FileError, ...] = ()
    #: Of the file's bytes; empty if they could not be read.
    digest: str = ""
    consulted: Consulted = Consulted()

    @property
    def is_lasting(self) -> bool:
        """Whether the same content would give the same again: not after an error."""
        return bool(self.digest) and not self.errors


def joint_digest(digests: Iterable[str | None]) -> str:
    """One digest for many."""
    return digest_of(" ".join(str(content) for content in digests).encode())


def to_row(result: FileResult) -> list[Any]:
    """Findings and suppressions as plain lists and strings."""
    return [
        [_finding_row(finding) for finding in result.findings],
        [
            [s.line, s.column, s.end_column, s.first_line, s.last_line, list(s.names), s.fault]
            for s in result.suppressions
        ],
    ]


def from_row(path: str, digest: str, row: list[Any]) -> FileResult:
    """The result that `to_row` made `row` of.

    Raises:
        TypeError, ValueError: it is no such row.
    """
    findings, suppressions = row
    return FileResult(
        path,
        tuple(_finding(*finding) for finding in findings),
        tuple(
            Suppression(line, column, end_column, first, last, tuple(names), fault)
            for line, column, end_column, first, last, names, fault in suppressions
        ),
        digest=digest,
    )


def _finding_row(finding: Finding) -> list[Any]:
    fix = finding.fix
    edits = fix and [
        [edit.kind, _place_row(edit.place), edit.code, edit.to and _place_row(edit.to)]
        for edit in fix.edits
    ]
    return [
        finding.rule,
        _place_row(finding.place),
        finding.message,
        finding.advice,
        fix and [edits, fix.safe],
    ]


def _place_row(place: Place) -> list[Any]:
    return [place.path, place.line, place.column, place.end_line, place.end_column]


def _finding(
    rule: str, place: list[Any], message: str, advice: str, fix: list[Any] | None
) -> Finding:
    from pytest_trainloop.rules import Finding
    from pytest_trainloop.source.facts import Place

    return Finding(rule, Place(*place), message, advice, _fix(*fix) if fix else None)


def _fix(edits: list[Any], safe: bool) -> Fix:
    from pytest_trainloop.rules import Edit, Fix
    from pytest_trainloop.source.facts import Place

    return Fix(
        tuple(
            Edit(kind, Place(*place), code, Place(*to) if to else None)
            for kind, place, code, to in edits
        ),
        safe,
    )
