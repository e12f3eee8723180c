"""Making the fixes of a run: file by file, each written at once or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.lint.document import (
    Document,
    UnreadableError,
    document_from_bytes,
    read_document,
)
from pytest_trainloop.lint.engine import Linted, Run, document_linter
from pytest_trainloop.lint.files import reason_of
from pytest_trainloop.lint.fix import FixResult, fix_document, unified_diff
from pytest_trainloop.lint.outcome import FileError

if TYPE_CHECKING:
    from pytest_trainloop.lint.fix.passes import Lint
    from pytest_trainloop.lint.outcome import Problem


@dataclass(frozen=True)
class FixedFile:
    """A file that fixes change, before and after."""

    before: Document
    result: FixResult

    @property
    def count(self) -> int:
        """How many problems are fixed."""
        return len(self.result.fixed)

    @property
    def encoded(self) -> bytes:
        """The bytes of the file after the fixes."""
        return self.before.encode(self.result.text)

    @property
    def diff(self) -> str:
        """What changes, as `diff -u` shows it."""
        return unified_diff(self.before, self.result.document)

    def write(self) -> FileError | None:
        """Write the file; what went wrong, if anything did."""
        path = self.before.path
        try:
            self.before.write(self.result.text)
        except OSError as error:
            return FileError(path, f"cannot be written: {reason_of(error)}")
        except ValueError as error:
            return FileError(path, f"cannot be written: {error}")
        return None


def fixed_files(run: Run, linted: Linted, *, unsafe: bool) -> Iterator[FixedFile]:
    """The files of a run that fixes change; nothing is written."""
    lint = document_linter(run, linted.files)
    for path, problems in _by_path(linted.report.problems):
        if not any(problem.fix and (unsafe or problem.fix.safe) for problem in problems):
            continue
        try:
            document = read_document(path)
        except (OSError, UnreadableError):
            # It has vanished since; the lint after the fixes says so.
            continue
        if fixed := _fixed(document, lint, unsafe=unsafe):
            yield fixed


def fixed_text(run: Run, path: str, data: bytes, *, unsafe: bool) -> FixedFile | None:
    """The content of one file with its fixes; None if they change nothing."""
    try:
        document = document_from_bytes(path, data)
    except UnreadableError:
        return None
    return _fixed(document, document_linter(run, [path]), unsafe=unsafe)


def _fixed(document: Document, lint: Lint, *, unsafe: bool) -> FixedFile | None:
    result = fix_document(document, lint, unsafe=unsafe)
    return FixedFile(document, result) if result.text != document.text else None


def _by_path(problems: Sequence[Problem]) -> Iterator[tuple[str, list[Problem]]]:
    paths: dict[str, list[Problem]] = {}
    for problem in problems:
        paths.setdefault(problem.path, []).append(problem)
    yield from paths.items()
