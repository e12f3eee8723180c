"""End the session when a body hangs where nothing can end it, with all that was to be told.

A body that waits in C code cannot be interrupted, and the test runner waits for it. What is left
is to end the process: but not before the test has its report, and the session its summary.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import traceback
from typing import Any

import pytest


def end_session(item: pytest.Function, failure: str) -> None:
    """Report a test as failed while its body still runs, then the session, and exit with 1.

    To be called in another thread than that of the body.

    Args:
        item: the test.
        failure: what it fails with.
    """
    try:
        _stop_capturing(item)
        call = pytest.CallInfo[None].from_call(
            lambda: pytest.fail(failure, pytrace=False), when="call"
        )
        report = item.ihook.pytest_runtest_makereport(item=item, call=call)
        item.ihook.pytest_runtest_logreport(report=report)
        # A worker of pytest-xdist ends alone: the controller replaces it.
        if not hasattr(item.config, "workerinput"):
            _finish(item.session, item)
    finally:
        if sys.exc_info()[0]:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # The original: while a body is guarded, nothing else leaves.
        inspect.unwrap(os._exit)(pytest.ExitCode.TESTS_FAILED)


def _stop_capturing(item: pytest.Function) -> None:
    """Give the terminal back, and what was written to it meanwhile to the report."""
    capture: Any = item.config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        return
    capture.suspend_global_capture(in_=True)
    for name, text in zip(("stdout", "stderr"), capture.read_global_capture(), strict=True):
        item.add_report_section("call", name, text)


def _finish(session: pytest.Session, item: pytest.Function) -> None:
    """Let every plugin end the session: the summary is shown, reports are written."""
    left = len(session.items) - session.items.index(item) - 1
    rest = f"; {left} test{'' if left == 1 else 's'} had not run yet" if left else ""
    session.shouldfail = f"{item.nodeid} could not be interrupted{rest}"
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
    session.config.hook.pytest_sessionfinish(session=session, exitstatus=session.exitstatus)
