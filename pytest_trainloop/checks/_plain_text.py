"""Failures for a terminal that knows no more than ASCII: our signs and plots in its letters."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_trainloop.checks._evidence import in_ascii


class PlainText:
    """Reword reports before pytest shows them; it would escape every sign of a plot."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Reword what a failure says."""
        told: Any = report.longrepr
        for entry in getattr(getattr(told, "reprtraceback", None), "reprentries", ()):
            entry.lines[:] = map(in_ascii, entry.lines)
        crash = getattr(told, "reprcrash", None)
        if crash is not None:
            crash.message = in_ascii(crash.message)
