"""Fixing a file: lint, fix what can be fixed at once, and again until nothing is left to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pytest_trainloop.lint.document import (
    Document,
    UnreadableError,
    document_from_bytes,
    split_lines,
)
from pytest_trainloop.lint.fix.expected import expected_tree, same_tree
from pytest_trainloop.lint.fix.parsed import Parsed, parse
from pytest_trainloop.lint.fix.proven import splices_of
from pytest_trainloop.lint.fix.splices import CannotFixError, Splice, overlap, spliced

if TYPE_CHECKING:
    from pytest_trainloop.rules import Fix

# Each pass leaves fewer findings or gives one up, so there is an end without a limit; the
# limit is for a rule that finds something else each time it is asked.
_MOST_PASSES = 200


class Fixable(Protocol):
    """A finding, as far as a fix needs it: `Finding` or `Problem`."""

    @property
    def rule(self) -> str:
        """The name of its rule."""

    @property
    def message(self) -> str:
        """The cause."""

    @property
    def fix(self) -> Fix | None:
        """The edits that remove it, with places in `Document.text`."""


Lint = Callable[[Document], Sequence[Fixable]]


@dataclass(frozen=True)
class FixResult:
    """A document after its fixes: what was fixed, and what was not although it has a fix."""

    document: Document
    fixed: tuple[Fixable, ...]
    given_up: tuple[Fixable, ...]

    @property
    def text(self) -> str:
        """The fixed program: `document.write(text)` puts it into the file."""
        return self.document.text


def fix_document(document: Document, lint: Lint, *, unsafe: bool) -> FixResult:
    """Make the fixes of the findings of `lint` until none is left that can be made.

    A fix is made only where it parses, changes nothing but what its edits say, removes its
    finding, and brings up no other; fixes that meet wait for each other. No file is written.

    Args:
        document: the program; it stays as it is.
        lint: finds what there is to fix, without what is suppressed.
        unsafe: make also the fixes that may change what a correct program computes.
    """
    work = _Work(document, lint, unsafe, list(lint(document)))
    for _ in range(_MOST_PASSES):
        batch = work.next_batch()
        if not batch:
            break
        while not work.accepts(batch):
            if len(batch) == 1:
                work.give_up(batch[0].finding, batch[0].fix)
                break
            # One of them is in the way; the others come up again in the next pass.
            batch = batch[: len(batch) // 2]
    return FixResult(work.document, tuple(work.fixed), tuple(work.given_up.values()))


class _Planned(NamedTuple):
    """A finding, its fix, and how the fix is written."""

    finding: Fixable
    fix: Fix
    splices: tuple[Splice, ...]


@dataclass
class _Work:
    """A document on its way from one lint to the next."""

    document: Document
    lint: Lint
    unsafe: bool
    findings: list[Fixable]
    fixed: list[Fixable] = field(default_factory=list)
    given_up: dict[tuple[str, ...], Fixable] = field(default_factory=dict)

    def next_batch(self) -> list[_Planned]:
        """The findings whose fixes can be made now and do not meet, with their splices."""
        batch: list[_Planned] = []
        parsed: Parsed | None = None
        for finding in self.findings:
            fix = finding.fix
            if fix is None or not (fix.safe or self.unsafe):
                continue
            if self._key(finding, fix) in self.given_up:
                continue
            try:
                parsed = parsed or Parsed(self.document.text)
                splices = self._splices(parsed, fix)
            except CannotFixError:
                self.give_up(finding, fix)
                continue
            if not any(overlap(splices, planned.splices) for planned in batch):
                batch.append(_Planned(finding, fix, splices))
        return batch

    def accepts(self, batch: list[_Planned]) -> bool:
        """Make the fixes, unless the program is then not better than before."""
        text = spliced(self.document.text, [s for planned in batch for s in planned.splices])
        try:
            if len(batch) > 1 and not self._agrees(batch, text):
                return False
            after = document_from_bytes(self.document.path, self.document.encode(text))
        except (CannotFixError, ValueError, UnreadableError):
            return False
        findings = list(self.lint(after))
        fixed = [planned.finding for planned in batch]
        if after.text != text or not _is_better(self.findings, findings, fixed):
            return False
        self.document, self.findings = after, findings
        self.fixed += fixed
        return True

    def _agrees(self, batch: list[_Planned], text: str) -> bool:
        """Whether the fixes, each right by itself, are right together.

        Two that each take one of the two statements of a block would leave it empty.
        """
        edits = [edit for planned in batch for edit in planned.fix.edits]
        return same_tree(parse(text), expected_tree(self.document.text, edits))

    def give_up(self, finding: Fixable, fix: Fix) -> None:
        """Leave a finding as it is, in this pass and the next ones."""
        self.given_up[self._key(finding, fix)] = finding

    def _splices(self, parsed: Parsed, fix: Fix) -> tuple[Splice, ...]:
        if any(edit.place.path != self.document.path for edit in fix.edits):
            raise CannotFixError("the fix is about several files")
        return splices_of(parsed, fix, self._barriers())

    def _barriers(self) -> Collection[int]:
        notebook = self.document.notebook
        return frozenset(notebook.marks) if notebook else ()

    def _key(self, finding: Fixable, fix: Fix) -> tuple[str, ...]:
        """What a finding is known by although the lines above it move."""
        lines = split_lines(self.document.text)
        near = [lines[min(edit.place.line, len(lines)) - 1] for edit in fix.edits]
        return (finding.rule, finding.message, *near)


def _is_better(
    before: Sequence[Fixable], after: Sequence[Fixable], fixed: Sequence[Fixable]
) -> bool:
    """Whether what was fixed is gone, and nothing came up that was not there before."""
    left = Counter(finding.rule for finding in before)
    left.subtract(finding.rule for finding in fixed)
    return all(count <= left[rule] for rule, count in Counter(f.rule for f in after).items())


def unified_diff(before: Document, after: Document) -> str:
    """What fixing changed in the file, as `diff -u` shows it and `patch` takes it."""
    from difflib import unified_diff as lines_of_diff

    old, new = (
        document.encode(document.text).decode(document.encoding, "replace")
        for document in (before, after)
    )
    lines = lines_of_diff(_with_ends(old), _with_ends(new), before.path, after.path)
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _with_ends(text: str) -> list[str]:
    lines = text.split("\n")
    return [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
