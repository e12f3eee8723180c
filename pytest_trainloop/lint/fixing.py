"""Making the fixes of a run: file by file, each written at once or not at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
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


def fixed_files(
    run: Run, linted: Linted, *, unsafe: bool, known: Collection[str] = ()
) -> Iterator[FixedFile]:
    """The files of a run that fixes change; nothing is written.

    Args:
        run: what was linted, and how.
        linted: what was found.
        unsafe: make also the fixes that may change what a correct program computes.
        known: the fingerprints of problems that are to stay: those of a baseline.
    """
    lint = _sparing(document_linter(run, linted.files), known)
    for path, problems in _by_path(_spared(linted.report.problems, known)):
        if not any(problem.fix and (unsafe or problem.fix.safe) for problem in problems):
            continue
        try:
            document = read_document(path)
        except (OSError, UnreadableError):
            # It has vanished since; the lint after the fixes says so.
            continue
        if fixed := _fixed(document, lint, unsafe=unsafe):
            yield fixed


def fixed_text(
    run: Run, path: str, data: bytes, *, unsafe: bool, known: Collection[str] = ()
) -> FixedFile | None:
    """The content of one file with its fixes (as in `fixed_files`); None if they change nothing."""
    try:
        document = document_from_bytes(path, data)
    except UnreadableError:
        return None
    lint = _sparing(document_linter(run, [path]), known)
    return _fixed(document, lint, unsafe=unsafe)


def _sparing(
    lint: Callable[[Document], Sequence[Problem]], known: Collection[str]
) -> Callable[[Document], Sequence[Problem]]:
    return (lambda document: _spared(lint(document), known)) if known else lint


def _spared(problems: Sequence[Problem], known: Collection[str]) -> Sequence[Problem]:
    """The problems, the known ones as if there were no fix."""
    return [replace(one, fix=None) if one.fingerprint in known else one for one in problems]


def _fixed(document: Document, lint: Lint, *, unsafe: bool) -> FixedFile | None:
    result = fix_document(document, lint, unsafe=unsafe)
    return FixedFile(document, result) if result.text != document.text else None


def _by_path(problems: Sequence[Problem]) -> Iterator[tuple[str, list[Problem]]]:
    paths: dict[str, list[Problem]] = {}
    for problem in problems:
        paths.setdefault(problem.path, []).append(problem)
    yield from paths.items()
