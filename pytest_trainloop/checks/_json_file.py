"""`--trainloop-json FILE`: what was checked and watched in a session, for programs to read."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pytest_trainloop import __version__
from pytest_trainloop.atomic import write_atomically
from pytest_trainloop.checks._facts import VERSION, as_json, verdicts
from pytest_trainloop.checks._item import CANNOT_JUDGE, was_unjudged


class JsonFile:
    """Collects the verdicts of a session, on pytest-xdist's controller, and writes them at its end.

    Raises:
        UsageError: the file could not be written.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        #: By test: of one that was run again, the last attempt counts.
        self.tests: dict[str, dict[str, Any]] = {}
        folder = os.path.dirname(self.path)
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise pytest.UsageError(f"--trainloop-json: {error}") from None
        if os.path.isdir(self.path) or not os.access(folder, os.W_OK):
            raise pytest.UsageError(f"--trainloop-json: cannot write a file at {path}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take in the verdicts of a test that has ended."""
        if report.when != "call":
            return
        said = list(verdicts(report))
        if not said:
            return
        self.tests.pop(report.nodeid, None)
        self.tests[report.nodeid] = {
            "test": report.nodeid,
            "outcome": CANNOT_JUDGE if was_unjudged(report) else report.outcome,
            "duration_s": round(report.duration, 6),
            "verdicts": said,
        }

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the file: after a failure, a crash and Ctrl-C too."""
        told = {
            "version": VERSION,
            "generator": f"pytest-trainloop {__version__}",
            "exit_status": int(exitstatus),
            "interrupted": bool(session.shouldstop or session.shouldfail)
            or exitstatus == pytest.ExitCode.INTERRUPTED,
            "tests": list(self.tests.values()),
        }
        try:
            write_atomically(self.path, as_json(told).encode() + b"\n")
        except OSError as error:
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
            terminal: Any = session.config.pluginmanager.get_plugin("terminalreporter")
            if terminal is not None:
                terminal.write_line(f"--trainloop-json: {error}", red=True)
