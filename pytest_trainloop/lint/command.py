"""What the command does: lint, fix or explain, report, exit code."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_trainloop.lint.config import ConfigError
from pytest_trainloop.lint.engine import Linted, lint, lint_text, merged
from pytest_trainloop.lint.options import STDIN, Options
from pytest_trainloop.lint.selection import UnknownNameError
from pytest_trainloop.lint.terminal import (
    CommandError,
    Terminal,
    note_error,
    print_text,
    write_text,
)

if TYPE_CHECKING:
    from pytest_trainloop.lint.config import Settings
    from pytest_trainloop.lint.engine import Run
    from pytest_trainloop.lint.outcome import Report

#: Exit codes.
CLEAN = 0
FOUND_PROBLEMS = 1
#: A wrong command line or configuration, or a file that could not be linted.
FAILED = 2
# These formats show errors themselves.
_FOR_PEOPLE = frozenset({"text", "concise"})


def run_command(options: Options) -> int:
    """Do what the options say; the exit code.

    Raises:
        CommandError: it cannot be done.
    """
    try:
        return _Command(options).run()
    except (ConfigError, UnknownNameError) as error:
        raise CommandError(str(error)) from None


class _Command:
    """One call of the command."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.terminal = Terminal(options.color, options.quiet)

    def run(self) -> int:
        options = self.options
        if options.list_rules or options.explain is not None:
            from pytest_trainloop.lint.explaining import page_of, rule_list

            print_text(page_of(options.explain) if options.explain else rule_list())
            return CLEAN
        if not options.paths:
            raise CommandError("name a file or folder to lint (`trainloop-lint .`), or `-`")
        settings = options.settings()
        runs = options.runs()
        if STDIN in options.paths:
            return self.lint_stdin(runs[0], settings)
        linted = [lint(run) for run in runs]
        if options.fixes:
            return self.fix(runs, linted, settings)
        return self.close(merged(linted), settings)

    def lint_stdin(self, run: Run, settings: Settings) -> int:
        if len(self.options.paths) > 1:
            raise CommandError("`-` (standard input) stands alone")
        path = self.options.stdin_filename or "<stdin>"
        data = sys.stdin.buffer.read()
        linted = lint_text(run, path, data)
        if not self.options.fixes:
            return self.close(linted, settings)
        from pytest_trainloop.lint.fixing import fixed_text

        known = self.known(settings)
        fixed = fixed_text(run, path, data, unsafe=self.options.unsafe_fixes, known=known)
        if self.options.diff:
            print_text(fixed.diff if fixed else "")
        else:
            # The fixed program takes the place of the report.
            data = fixed.encoded if fixed else data
            sys.stdout.buffer.write(data)
        return self.exit_code(self.without_known(lint_text(run, path, data), settings))

    def fix(self, runs: list[Run], linted: list[Linted], settings: Settings) -> int:
        """Make the fixes and report what is left, or show what they would change."""
        from pytest_trainloop.lint.fixing import fixed_files

        unsafe, known = self.options.unsafe_fixes, self.known(settings)
        changed = [
            file
            for run, found in zip(runs, linted, strict=True)
            for file in fixed_files(run, found, unsafe=unsafe, known=known)
        ]
        if self.options.diff:
            for file in changed:
                print_text(file.diff)
            report = merged(linted).report
            for error in report.errors:
                note_error(error)
            return FAILED if report.errors else FOUND_PROBLEMS if changed else CLEAN
        failures = [failure for file in changed if (failure := file.write()) is not None]
        fixed = sum(file.count for file in changed)
        if fixed:
            self.terminal.say(
                f"{_counted(fixed, 'problem')} fixed in {_counted(len(changed), 'file')}"
            )
        after = merged(lint(run) for run in runs)
        report = replace(after.report, errors=(*after.report.errors, *failures))
        return self.close(replace(after, report=report), settings)

    def close(self, linted: Linted, settings: Settings) -> int:
        """Report, and tell the exit code."""
        for words in linted.notes:
            self.terminal.say(words)
        if not linted.report.files and not linted.report.errors:
            self.terminal.say(f"no .py or .ipynb file to lint in {', '.join(self.options.paths)}")
        report = self.without_known(linted, settings)
        self.show(report, settings.output_format)
        return self.exit_code(report)

    def exit_code(self, report: Report) -> int:
        if report.errors:
            return FAILED
        return FOUND_PROBLEMS if report.problems else CLEAN

    def without_known(self, linted: Linted, settings: Settings) -> Report:
        """The report without the problems of the baseline, or after writing one."""
        report = linted.report
        if self.options.write_baseline is not None:
            from pytest_trainloop.lint.baseline import baseline_text

            path = self.options.write_baseline
            write_text(path, baseline_text(report.problems))
            self.terminal.say(
                f"{_counted(len(report.problems), 'known problem')} written to {path}"
            )
            return replace(report, problems=())
        if settings.baseline is None:
            return report
        from pytest_trainloop.lint.baseline import count_gone

        known = self.known(settings)
        problems = tuple(one for one in report.problems if one.fingerprint not in known)
        if gone := count_gone(known, report.problems, linted.files):
            self.terminal.say(
                f"{_counted(gone, 'problem')} of {settings.baseline} did not occur;"
                " --write-baseline writes it anew"
            )
        return replace(report, problems=problems)

    def known(self, settings: Settings) -> dict[str, str]:
        """The problems that are neither reported nor fixed, as in `read_baseline`."""
        if settings.baseline is None or self.options.write_baseline is not None:
            return {}
        from pytest_trainloop.lint.baseline import BaselineError, read_baseline

        try:
            return read_baseline(settings.baseline)
        except BaselineError as error:
            raise CommandError(str(error)) from None

    def show(self, report: Report, name: str) -> None:
        from pytest_trainloop.lint.report import write_report

        path = self.options.output_file
        is_for_people = name in _FOR_PEOPLE and not self.options.statistics
        if self.options.statistics:
            from pytest_trainloop.lint.report._statistics import statistics

            text = statistics(report)
        else:
            color = path is None and is_for_people and self.terminal.wants_color
            text = write_report(replace(report, color=color), name)
        if path is not None or not is_for_people:
            for error in report.errors:
                note_error(error)
        if path is None:
            print_text(text)
        else:
            write_text(path, text)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
