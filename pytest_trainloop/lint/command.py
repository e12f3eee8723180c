"""What the command does with its options: lint, fix or explain, report, exit code."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from pytest_trainloop.lint.config import ConfigError, Settings, find_settings, read_settings
from pytest_trainloop.lint.engine import Linted, Run, common_folder, lint, lint_text, project_root
from pytest_trainloop.lint.selection import Selection, UnknownNameError

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import Problem, Report

#: Exit codes.
CLEAN = 0
FOUND_PROBLEMS = 1
#: A wrong command line or configuration, or a file that could not be linted.
FAILED = 2
STDIN = "-"
# These formats show errors themselves.
_FOR_PEOPLE = frozenset({"text", "concise"})


class CommandError(click.ClickException):
    """What the user asked for cannot be done; the message is one line."""

    exit_code = FAILED

    def show(self, file: object = None) -> None:
        """Print the line, without click's `Error:`."""
        click.echo(f"trainloop-lint: {self.message}", err=True)


@dataclass(frozen=True)
class Command:
    """The options, named as on the command line."""

    paths: tuple[str, ...]
    select: tuple[str, ...]
    extend_select: tuple[str, ...]
    ignore: tuple[str, ...]
    exclude: tuple[str, ...]
    force_exclude: bool
    output_format: str | None
    output_file: str | None
    statistics: bool
    fix: bool
    unsafe_fixes: bool
    diff: bool
    baseline: str | None
    write_baseline: str | None
    config: str | None
    isolated: bool
    no_cache: bool
    cache_dir: str | None
    jobs: int | None
    stdin_filename: str | None
    list_rules: bool
    explain: str | None
    color: str
    quiet: bool

    def run(self) -> None:
        """Do it.

        Raises:
            CommandError: it cannot be done.
            SystemExit: with the exit code, when it is done.
        """
        try:
            sys.exit(self._run())
        except (ConfigError, UnknownNameError) as error:
            raise CommandError(str(error)) from None

    def _run(self) -> int:
        from pytest_trainloop.lint import explaining

        if self.list_rules:
            click.echo(explaining.rule_list(), nl=False)
            return CLEAN
        if self.explain is not None:
            click.echo(explaining.page_of(self.explain), nl=False)
            return CLEAN
        if not self.paths:
            raise CommandError("name a file or folder to lint (`trainloop-lint .`), or `-`")
        settings = self._settings()
        run = self._lint_run(settings)
        linted = self._lint(run)
        if self.fix or self.unsafe_fixes or self.diff:
            return self._fix(run, linted, settings)
        return self._close(linted, settings)

    def _close(self, linted: Linted, settings: Settings) -> int:
        """Report, and tell the exit code."""
        report = self._without_known(linted.report, settings)
        for note in linted.notes:
            self._say(note)
        if not report.files and not report.errors:
            self._say(f"no .py or .ipynb file in {', '.join(self.paths)}")
        self._report(report, settings)
        if report.errors:
            return FAILED
        return FOUND_PROBLEMS if report.problems else CLEAN

    def _lint(self, run: Run) -> Linted:
        if STDIN not in self.paths:
            return lint(run)
        if len(self.paths) > 1:
            raise CommandError("`-` (standard input) stands alone")
        data = sys.stdin.buffer.read()
        return lint_text(run, self.stdin_filename or "<stdin>", data)

    def _fix(self, run: Run, linted: Linted, settings: Settings) -> int:
        """Make the fixes and report what is left, or show what they would change."""
        from pytest_trainloop.lint.fixing import fixed_files

        changed = list(fixed_files(run, linted, unsafe=self.unsafe_fixes))
        if self.diff:
            for file in changed:
                _print(file.diff)
            self._show_errors(linted.report)
            return FAILED if linted.report.errors else FOUND_PROBLEMS if changed else CLEAN
        failures = [error for file in changed if (error := file.write()) is not None]
        fixed = sum(len(file.result.fixed) for file in changed)
        if fixed:
            self._say(f"{fixed} fixed in {len(changed)} files")
        after = self._lint(run)
        report = replace(after.report, errors=(*after.report.errors, *failures))
        return self._close(replace(after, report=report), settings)

    def _lint_run(self, settings: Settings) -> Run:
        from pytest_trainloop.lint.cache import FOLDER
        from pytest_trainloop.lint.progress import progress

        root = project_root(self._places())
        folder = self.cache_dir or settings.cache_dir or os.path.join(root, FOLDER)
        return Run(
            self.paths,
            settings,
            root,
            None if self.no_cache else folder,
            self.jobs,
            force_exclude=self.force_exclude,
            progress=None if self.quiet else progress(),
        )

    def _places(self) -> list[str]:
        """Where what is linted lies."""
        if STDIN in self.paths:
            return [self.stdin_filename or os.curdir]
        return list(self.paths)

    def _settings(self) -> Settings:
        """The configuration, overruled by the command line."""
        if self.isolated:
            settings = Settings(os.getcwd())
        elif self.config is not None:
            settings = read_settings(self.config)
        else:
            settings = find_settings(common_folder(self._places()))
        chosen = settings.selection
        selection = Selection(
            self.select or chosen.select,
            (*chosen.extend_select, *self.extend_select),
            (*chosen.ignore, *self.ignore),
        )
        return replace(
            settings,
            selection=selection,
            exclude=(*settings.exclude, *self.exclude),
            output_format=self.output_format or settings.output_format,
        )

    def _without_known(self, report: Report, settings: Settings) -> Report:
        """The report without the problems of the baseline, or after writing one."""
        from pytest_trainloop.lint.baseline import BaselineError, read_baseline, write_baseline

        if self.write_baseline is not None:
            try:
                write_baseline(self.write_baseline, report.problems)
            except OSError as error:
                raise CommandError(_unwritable(self.write_baseline, error)) from None
            self._say(f"{len(report.problems)} known problems written to {self.write_baseline}")
            return replace(report, problems=())
        path = self.baseline or settings.baseline
        if path is None:
            return report
        try:
            problems, gone = read_baseline(path).split(report.problems)
        except BaselineError as error:
            raise CommandError(str(error)) from None
        if gone:
            self._say(f"{gone} problems of {path} are gone; --write-baseline forgets them")
        return replace(report, problems=problems)

    def _report(self, report: Report, settings: Settings) -> None:
        from pytest_trainloop.lint.report import write_report

        name = settings.output_format
        color = self.output_file is None and name in _FOR_PEOPLE and self._wants_color()
        text = _statistics(report.problems) if self.statistics else None
        if text is None:
            text = write_report(replace(report, color=color), name)
        if self.statistics or name not in _FOR_PEOPLE or self.output_file is not None:
            self._show_errors(report)
        if self.output_file is None:
            _print(text)
            return
        from pytest_trainloop.lint.atomic import write_atomically

        try:
            write_atomically(self.output_file, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise CommandError(_unwritable(self.output_file, error)) from None

    def _show_errors(self, report: Report) -> None:
        from pytest_trainloop.lint.report._wording import error_place

        for error in report.errors:
            click.echo(f"trainloop-lint: {error_place(error)}: {error.message}", err=True)

    def _wants_color(self) -> bool:
        if self.color != "auto":
            return self.color == "always"
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def _say(self, note: str) -> None:
        if not self.quiet:
            click.echo(f"trainloop-lint: {note}", err=True)


def _unwritable(path: str, error: OSError) -> str:
    return f"{path}: cannot be written: {(error.strerror or str(error)).lower()}"


def _print(text: str) -> None:
    """Print what the terminal's encoding can hold, and the rest as escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False, color=True)


def _statistics(problems: tuple[Problem, ...]) -> str:
    """How many problems each rule has, most first."""
    from collections import Counter

    counts = Counter(problem.rule for problem in problems)
    return "".join(f"{count:>6}  {rule}\n" for rule, count in counts.most_common())
