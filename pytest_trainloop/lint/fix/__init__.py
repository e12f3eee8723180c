"""Fixes: edits as data, made on the text so that nothing else of it changes."""

from __future__ import annotations

from pytest_trainloop.lint.fix.parsed import Parsed
from pytest_trainloop.lint.fix.passes import FixResult, fix_document, unified_diff
from pytest_trainloop.lint.fix.proven import splices_of
from pytest_trainloop.lint.fix.shown import replacements
from pytest_trainloop.lint.fix.splices import CannotFixError, Splice

__all__ = [
    "CannotFixError",
    "FixResult",
    "Parsed",
    "Splice",
    "fix_document",
    "replacements",
    "splices_of",
    "unified_diff",
]
