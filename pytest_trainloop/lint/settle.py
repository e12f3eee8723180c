"""From what each file gave to what the report says: merged, suppressed, placed, in order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_trainloop.lint.document import Document, UnreadableError, read_document, split_lines
from pytest_trainloop.lint.outcome import Problem, Replacement
from pytest_trainloop.lint.report import SHOW_FIXES
from pytest_trainloop.lint.selection import (
    EVERYTHING,
    UNUSED_SUPPRESSION,
    describe_unknown,
    rule_families,
)
from pytest_trainloop.source.tree import digest

if TYPE_CHECKING:
    from pytest_trainloop.lint.config import Settings
    from pytest_trainloop.lint.result import FileResult
    from pytest_trainloop.lint.suppression import Suppression
    from pytest_trainloop.rules import Finding


@dataclass
class _File:
    """A file that something is said about: read once more, to show its lines."""

    document: Document
    lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = split_lines(self.document.text)

    def line(self, number: int) -> str:
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""


class Settling:
    """Turns the results of one run into its problems."""

    def __init__(
        self,
        settings: Settings,
        selected: Iterable[str],
        *,
        root: str,
        is_whole: bool = True,
        documents: Mapping[str, Document] | None = None,
    ) -> None:
        """Prepare to settle.

        Args:
            settings: for the rules that are ignored in some files.
            selected: the rules that were applied.
            root: the project's folder, to name files in fingerprints.
            is_whole: whether all files of the project are linted. A comment may be there for
                what another file does to this one, so that it is not known to be unused else.
            documents: files whose text is not, or not yet, on disk.
        """
        self._settings = settings
        self._selected = frozenset(selected)
        self._root = root
        self._is_whole = is_whole
        self._files = {path: _File(document) for path, document in (documents or {}).items()}

    def problems(self, results: Sequence[FileResult]) -> tuple[Problem, ...]:
        """The problems of all files, in the order of their places."""
        suppressions = {result.path: result.suppressions for result in results}
        used: set[tuple[str, Suppression]] = set()
        problems: list[Problem] = []
        for finding in _merged(results):
            path = finding.place.path
            hiding = [s for s in suppressions.get(path, ()) if self._hides(s, finding)]
            if hiding:
                used.update((path, suppression) for suppression in hiding)
            else:
                problems += self._placed(path, finding)
        if self._settings.selection.reports_unused():
            for result in results:
                # What a crashed rule would have found is not known.
                for comment in () if result.errors else result.suppressions:
                    if (result.path, comment) not in used:
                        problems += self._unused(result.path, comment)
        kept = [problem for problem in problems if not self._is_ignored(problem)]
        return tuple(self._fingerprinted(sorted(kept, key=_order)))

    def _hides(self, suppression: Suppression, finding: Finding) -> bool:
        family = rule_families().get(finding.rule, "")
        return suppression.covers(finding.place.line, finding.rule, family)

    def _is_ignored(self, problem: Problem) -> bool:
        if not self._settings.per_file_ignores:
            return False
        names = self._settings.ignored_in(os.path.abspath(problem.path))
        family = rule_families().get(problem.rule, "")
        return bool(names & {problem.rule, family, EVERYTHING})

    def _placed(self, path: str, finding: Finding) -> Iterator[Problem]:
        file = self._file(path)
        if file is None:
            return
        place = finding.place
        cell, line = file.document.locate(place.line)
        yield Problem(
            path,
            line,
            place.column,
            file.document.locate(place.end_line)[1],
            place.end_column,
            cell,
            finding.rule,
            finding.message,
            finding.advice,
            finding.fix,
            file.line(place.line),
            json_line=file.document.json_line(place.line),
            replacements=self._replacements(file, finding),
        )

    def _replacements(self, file: _File, finding: Finding) -> tuple[Replacement, ...]:
        """What the fix changes, where the format shows it: that costs a parse for each."""
        if finding.fix is None or self._settings.output_format not in SHOW_FIXES:
            return ()
        from pytest_trainloop.lint.fix import replacements

        return replacements(file.document, finding.fix)

    def _unused(self, path: str, comment: Suppression) -> Iterator[Problem]:
        """What is wrong with a comment that has suppressed nothing."""
        told = self._fault(comment) if self._is_whole or comment.fault else None
        file = self._file(path) if told else None
        if told is None or file is None:
            return
        cell, line = file.document.locate(comment.line)
        yield Problem(
            path,
            line,
            comment.column,
            line,
            comment.end_column,
            cell,
            UNUSED_SUPPRESSION,
            *told,
            source_line=file.line(comment.line),
            json_line=file.document.json_line(comment.line),
        )

    def _fault(self, comment: Suppression) -> tuple[str, str] | None:
        """Message and advice, or None for a comment that may still be needed."""
        if comment.fault:
            return f"this comment suppresses nothing: {comment.fault}", "correct the comment"
        families = rule_families()
        known = {*families, *families.values(), UNUSED_SUPPRESSION}
        for name in comment.names:
            if name not in known:
                return f"this comment suppresses nothing: {describe_unknown(name, known)}", (
                    "correct the name, or remove the comment"
                )
        # A rule that was not applied might have found something here.
        if not all(self._was_applied(name) for name in comment.names or [EVERYTHING]):
            return None
        what = ", ".join(f"`{name}`" for name in comment.names) or "any rule"
        return f"this comment suppresses nothing: no problem of {what}", "remove the comment"

    def _was_applied(self, name: str) -> bool:
        if name in rule_families():
            return name in self._selected
        return self._settings.selection.covers_defaults()

    def _file(self, path: str) -> _File | None:
        if path not in self._files:
            try:
                self._files[path] = _File(read_document(path))
            except (OSError, UnreadableError):
                return None
        return self._files[path]

    def _fingerprinted(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        """The problems with what tells each apart, wherever its lines move in the file."""
        seen: Counter[tuple[str, str, str]] = Counter()
        for problem in problems:
            code = " ".join(problem.source_line.split())
            path = _within(problem.path, self._root)
            key = (problem.rule, path, code)
            told = digest("\0".join([*key, str(seen[key])]).encode())[:16]
            yield replace(problem, fingerprint=told)
            seen[key] += 1


def _within(path: str, root: str) -> str:
    """The path as seen from a folder, the same on every system."""
    try:
        return os.path.relpath(path, root).replace(os.sep, "/")
    except ValueError:  # on another drive
        return path


def _merged(results: Iterable[FileResult]) -> list[Finding]:
    """Each finding once: a place that several files lead to was found from each of them."""
    first: dict[tuple[object, ...], Finding] = {}
    for result in results:
        for finding in result.findings:
            first.setdefault((finding.rule, finding.place), finding)
    return list(first.values())


def _order(problem: Problem) -> tuple[object, ...]:
    cell = -1 if problem.cell is None else problem.cell
    return (problem.path, cell, problem.line, problem.column, problem.rule, problem.message)
