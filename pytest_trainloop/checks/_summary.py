"""The part of pytest's terminal summary that is about training loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_trainloop.checks._evidence import in_ascii
from pytest_trainloop.checks._facts import verdicts
from pytest_trainloop.checks._item import was_unjudged

if TYPE_CHECKING:
    import pytest


def write_summary(terminal: Any, reports: list[pytest.TestReport]) -> None:
    """Write why tests could not be judged, then one line for each check of each test."""
    unjudged = [report for report in reports if was_unjudged(report)]
    if unjudged:
        terminal.section("CANNOT JUDGE", yellow=True)
        for report in unjudged:
            terminal.section(report.nodeid, "_", yellow=True)
            terminal.line(report.longreprtext)
    lines = [(report.nodeid, verdict) for report in reports for verdict in verdicts(report)]
    if not lines or terminal.verbosity < 0:
        return
    terminal.section("training loops")
    plain = terminal.config.pluginmanager.has_plugin("trainloop-plain-text")
    colours = {"passed": "green", "failed": "red"}
    for nodeid, verdict in lines:
        outcome = str(verdict["outcome"])
        terminal.write(f"{verdict['check']} {outcome}", **{colours.get(outcome, "yellow"): True})
        line = f"  {nodeid}  {verdict['summary']}"
        terminal.line(in_ascii(line) if plain else line)
