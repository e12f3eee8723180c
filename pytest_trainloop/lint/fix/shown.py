"""What a fix would change, for the reports that show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trainloop.lint.fix.parsed import Parsed
from pytest_trainloop.lint.fix.proven import splices_of
from pytest_trainloop.lint.fix.splices import CannotFixError
from pytest_trainloop.lint.outcome import Replacement

if TYPE_CHECKING:
    from pytest_trainloop.lint.document import Document
    from pytest_trainloop.rules import Fix


def replacements(document: Document, fix: Fix) -> tuple[Replacement, ...]:
    """The changes of a script that make `fix`; none if it cannot be made there.

    The lines of a notebook's program are not those of its file, so it has none either.
    """
    if document.notebook is not None or any(e.place.path != document.path for e in fix.edits):
        return ()
    try:
        parsed = Parsed(document.text)
        splices = splices_of(parsed, fix)
    except CannotFixError:
        return ()
    return tuple(
        Replacement(*_place(parsed, splice.start), *_place(parsed, splice.end), splice.text)
        for splice in sorted(splices)
    )


def _place(parsed: Parsed, offset: int) -> tuple[int, int]:
    """Line and column of an offset, both from 1."""
    return parsed.line_of(offset), offset - parsed.line_start(offset) + 1
