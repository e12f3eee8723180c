"""Linting one file: read it, apply the rules, and say what went wrong if anything did."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from symtable import symtable
from typing import TYPE_CHECKING

from pytest_trainloop.lint.compiled import is_compiled
from pytest_trainloop.lint.cycles import (
    free_all_cycles,
    free_new_cycles,
    no_search_for_cycles,
)
from pytest_trainloop.lint.document import (
    Document,
    UnreadableError,
    document_from_bytes,
)
from pytest_trainloop.lint.files import reason_of
from pytest_trainloop.lint.gate import Gate
from pytest_trainloop.lint.outcome import FileError
from pytest_trainloop.lint.result import FileResult
from pytest_trainloop.lint.suppress import MARKER, find_suppressions
from pytest_trainloop.lint.time_limit import TIME_LIMIT_S, TimeLimit, TimeLimitError
from pytest_trainloop.lint.tracked_tree import TrackedTree
from pytest_trainloop.source.read import read_source
from pytest_trainloop.source.tree import digest

if TYPE_CHECKING:
    from pytest_trainloop.rules import Finding, Rule
    from pytest_trainloop.source.facts import FileFacts


class FileLinter:
    """Lints the files of one run, one after the other."""

    def __init__(
        self,
        rules: Mapping[str, Rule],
        files: Iterable[str],
        *,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        """Prepare to lint.

        Args:
            rules: the rules to apply, by name.
            files: all files of the run; calls are followed into them.
            time_limit_s: the most seconds that one file may take.
        """
        self._gate = Gate(rules)
        self._tree = TrackedTree(files)
        self._time_limit_s = time_limit_s
        self._time_limit = TimeLimit(time_limit_s)

    def lint(self, path: str) -> FileResult:
        """Lint a file on disk; whatever is wrong with it is in the result."""
        try:
            with open(path, "rb") as file:
                data = file.read()
                state = os.fstat(file.fileno())
        except OSError as error:
            return FileResult(
                path, errors=(FileError(path, f"cannot be read: {reason_of(error)}"),)
            )
        return self.lint_bytes(path, data, state)

    def lint_bytes(self, path: str, data: bytes, state: os.stat_result | None = None) -> FileResult:
        """Lint the content of a file.

        Args:
            path: its name, by which others import it.
            data: the content.
            state: that of the file on disk, where that is what the content was read from.
        """
        rules = self._gate.open_to(data)
        result = FileResult(path, digest=digest(data))
        try:
            document = document_from_bytes(path, data)
            if MARKER in data:
                comments = find_suppressions(document.text)
                result = replace(result, suppressions=tuple(comments))
            sought, errors = _sought(rules, document)
            if not sought:
                if state is None or not is_compiled(path, state):
                    _check_syntax(document)
                return replace(result, errors=tuple(errors))
            with self._time_limit, no_search_for_cycles():
                result = self._lint(result, document, sought)
                free_new_cycles()
            return replace(result, errors=(*errors, *result.errors))
        except TimeLimitError:
            message = f"took longer than {self._time_limit_s:g} s; given up"
        except UnreadableError as error:
            return replace(result, errors=(_error(path, error),))
        except (RecursionError, MemoryError):
            message = "cannot be read: it is nested too deeply"
        return replace(result, errors=(FileError(path, message),))

    def _lint(
        self, result: FileResult, document: Document, sought: dict[Rule, set[int]]
    ) -> FileResult:
        if self._tree.forget():
            free_all_cycles()
        findings, errors = self._apply(document, sought)
        return replace(
            result,
            findings=tuple(findings),
            errors=tuple(errors),
            consulted=self._tree.account(without=result.path),
        )

    def _apply(
        self, document: Document, sought: dict[Rule, set[int]]
    ) -> tuple[list[Finding], list[FileError]]:
        path = document.path
        focus = set().union(*sought.values())
        try:
            with _reading(document):
                facts = read_source(document.text, path, self._tree, focus)
        except (UnreadableError, RecursionError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 -- a crash of ours must not end the run
            return [], [FileError(path, _crash("reading it", error))]
        try:
            return _ask(sought, facts)
        finally:
            facts.take_apart()


def _ask(rules: Iterable[Rule], facts: FileFacts) -> tuple[list[Finding], list[FileError]]:
    """What the rules say, and which of them crashed."""
    findings: list[Finding] = []
    errors: list[FileError] = []
    for rule in rules:
        try:
            findings += rule.lint(facts)
        except (RecursionError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 -- a crash of ours must not end the run
            errors.append(FileError(facts.path, _crash(f"rule `{rule.name}`", error)))
    return findings, errors


def _sought(rules: list[Rule], document: Document) -> tuple[dict[Rule, set[int]], list[FileError]]:
    """The rules that may have something to say, each with where, and those that crashed."""
    sought: dict[Rule, set[int]] = {}
    errors: list[FileError] = []
    for rule in rules:
        try:
            offsets = set(rule.seek(document.text))
        except Exception as error:  # noqa: BLE001 -- a crash of ours must not end the run
            errors.append(FileError(document.path, _crash(f"rule `{rule.name}`", error)))
        else:
            if offsets:
                sought[rule] = offsets
    return sought, errors


def _check_syntax(document: Document) -> None:
    """Refuse what is not Python: a file that no rule has to read is to be named all the same.

    The symbol table takes 60 % of the time of `ast.parse`. It also knows that `await` cannot
    stand at the top of a module, as it may in a notebook.
    """
    with _reading(document):
        if document.notebook:
            ast.parse(document.text)
        else:
            symtable(document.text, document.path, "exec")


@contextmanager
def _reading(document: Document) -> Iterator[None]:
    """Say in our words where and why Python refuses a program."""
    try:
        with warnings.catch_warnings():
            # Python warns of `"\d"` as it parses; that is not ours to say.
            warnings.simplefilter("ignore")
            yield
    except SyntaxError as error:
        raise _unparsable(document, error) from None
    except UnicodeEncodeError:
        raise UnreadableError("it holds half of a surrogate pair") from None


def _unparsable(document: Document, error: SyntaxError) -> UnreadableError:
    message = f"it is not Python: {error.msg}"
    if error.lineno is None:
        return UnreadableError(message)
    cell, line = document.locate(error.lineno)
    return UnreadableError(message, line, cell, document.json_line(error.lineno))


def _error(path: str, error: UnreadableError) -> FileError:
    message = f"cannot be read: {error.message}"
    return FileError(path, message, error.line, error.cell, error.json_line)


def _crash(what: str, error: Exception) -> str:
    """One line that a bug report needs: what crashed, on which line of ours."""
    trace = error.__traceback__
    where = ""
    while trace is not None:
        code = trace.tb_frame.f_code
        where = f" ({os.path.basename(code.co_filename)}:{trace.tb_lineno})"
        trace = trace.tb_next
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{what} crashed, which is a bug of trainloop-lint: {told}{where}"
