"""Findings of the linter as pytest items: one for each linted file, with `--trainloop-lint`.

Loaded only when the option is given; stands outside `lint/`, which knows no pytest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest._code.code import TerminalRepr, TracebackStyle

    from pytest_trainloop.lint.config import Settings
    from pytest_trainloop.lint.outcome import Report


class LintItems:
    """The hooks that collect an item for each file, and the one lint that serves them all."""

    def __init__(self, config: pytest.Config) -> None:
        self._root = str(config.rootpath)
        self._settings: dict[str, Settings] = {}
        #: The files with an item, in the order of collection.
        self._files: list[str] = []

    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> LintFile | None:
        """Collect a Python file or notebook that the configuration does not exclude."""
        from pytest_trainloop.lint.files import SUFFIXES

        path = str(file_path)
        if not path.endswith(SUFFIXES):
            return None
        if self._settings_of(os.path.dirname(path)).excludes(path, is_folder=False):
            return None
        node: LintFile = LintFile.from_parent(parent, path=file_path)
        node.lints = self
        return node

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Know the files before any item is deselected: what is found must not depend on that."""
        paths = (str(item.path) for item in items if isinstance(item, LintItem))
        self._files = list(dict.fromkeys(paths))

    def report_on(self, path: str) -> Report:
        """What the linter says of one file; its path is shown as pytest shows paths."""
        from pytest_trainloop.lint.outcome import Report

        shown = os.path.relpath(path, self._root)
        return Report(
            tuple(replace(p, path=shown) for p in self._report.problems if p.path == path),
            tuple(replace(e, path=shown) for e in self._report.errors if e.path == path),
            1,
        )

    @cached_property
    def _report(self) -> Report:
        """All files are linted at once, so that calls are followed from each to the others."""
        from pytest_trainloop.lint.engine import Run, lint, merged

        groups: dict[str, tuple[Settings, list[str]]] = {}
        for path in self._files:
            settings = self._settings_of(os.path.dirname(path))
            groups.setdefault(settings.file or "", (settings, []))[1].append(path)
        # One process: pytest's own may hold threads and a GPU, which no fork survives.
        runs = [Run(paths, settings, self._root, jobs=1) for settings, paths in groups.values()]
        return merged(lint(run) for run in runs).report

    def _settings_of(self, folder: str) -> Settings:
        from pytest_trainloop.lint.config import ConfigError, find_settings

        if folder not in self._settings:
            try:
                self._settings[folder] = find_settings(folder)
            except ConfigError as error:
                raise pytest.UsageError(str(error)) from None
        return self._settings[folder]


class LintFile(pytest.File):
    """A file as the linter sees it: a single item."""

    lints: LintItems

    def collect(self) -> Iterator[LintItem]:
        """Collect the item."""
        item: LintItem = LintItem.from_parent(self, name="trainloop-lint")
        yield item


class LintItem(pytest.Item):
    """Passes if the linter has nothing to say about the file."""

    parent: LintFile

    def runtest(self) -> None:
        """Lint the file.

        Raises:
            LintFailure: there are problems, or the file cannot be linted.
        """
        report = self.parent.lints.report_on(str(self.path))
        if report.problems or report.errors:
            raise LintFailure(report)

    def repr_failure(
        self,
        excinfo: pytest.ExceptionInfo[BaseException],
        style: TracebackStyle | None = None,
    ) -> str | TerminalRepr:
        """Show the report as on the command line, without a traceback."""
        if isinstance(excinfo.value, LintFailure):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Say where the item stands, for the headline of a failure."""
        return self.path, None, f"trainloop-lint: {self.path.name}"


class LintFailure(Exception):  # noqa: N818 -- it is the outcome of a test, not an error
    """What the linter said."""

    def __init__(self, report: Report) -> None:
        from pytest_trainloop.lint.report import write_report

        super().__init__(write_report(report, "text"))
