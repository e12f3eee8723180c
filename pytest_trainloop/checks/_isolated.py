"""Tests that ask for a process of their own: send them there, and report what came back."""

from __future__ import annotations

import importlib
import pickle
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from _pytest.outcomes import Failed

from pytest_trainloop.checks._body import new_folder
from pytest_trainloop.checks._plan import plan_for, seconds_allowed
from pytest_trainloop.checks._waiting import EndedError, wait_for, what_ended_it

if TYPE_CHECKING:
    from pytest_trainloop.checks._process import Plan


@dataclass
class _Told:
    """What a process told about its test."""

    reports: list[pytest.TestReport] = field(default_factory=list)
    warnings: list[tuple[Any, ...]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    #: None, or one tuple: empty for Ctrl-C, else what `pytest.exit` was given.
    interrupted: tuple[Any, ...] | None = None

    def report_for(self, phase: str) -> pytest.TestReport | None:
        """What is reported for a phase of the test as the waiting session sees it."""
        whens = ("teardown",) if phase == "teardown" else ("setup", "call")
        found = [report for report in self.reports if report.when in whens]
        return next((one for one in found if not one.passed), found[-1] if found else None)


#: Set in the process of an isolated test: there it is not sent away again.
inside_key = pytest.StashKey[bool]()
_told_key = pytest.StashKey[_Told]()
_sent_key = pytest.StashKey[bool]()


def set_aside(item: pytest.Function) -> None:
    """Leave out the fixtures of a test that is to run in another process: that makes them."""
    if inside_key in item.config.stash:
        return
    item.stash[_sent_key] = True
    item.stash[_told_key] = _Told()
    item.fixturenames = []
    if not item.config.pluginmanager.hasplugin("trainloop-isolated"):
        item.config.pluginmanager.register(_Replay(), "trainloop-isolated")


def is_set_aside(item: pytest.Item) -> bool:
    """Whether the body of a test runs in another process."""
    return item.stash.get(_sent_key, False)


class _Replay:
    """The hook that reports what the other process reported."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Put the report of the other process in the place of ours, if there is one."""
        ours = yield
        told = item.stash.get(_told_key, None)
        theirs = told.report_for(call.when) if told and call.when != "setup" else None
        if theirs is None:
            return ours
        # What came out of the process around the test: of a library's own code, say.
        theirs.sections[:0] = ours.sections
        return theirs


def run_in_own_process(item: pytest.Function) -> None:
    """Run a test in a process that begins anew, and let it end here as it ended there.

    Raises:
        EndedError: the process ended before the test had.
    """
    __tracebackhide__ = True
    folder = new_folder(item, "process")
    plan = plan_for(item, folder)
    with open(folder / "plan", "wb") as file:
        pickle.dump(plan, file)
    status = wait_for(plan, str(folder / "plan"), seconds_allowed(item))
    told = _read(item, Path(plan["events"]))
    for warning in told.warnings:
        _warn_again(item, *warning)
    if told.interrupted is not None:
        _interrupt(told.interrupted)
    report = told.report_for("call")
    if report is None or not told.report_for("teardown"):
        raise EndedError(_how_it_ended(status, told, plan))
    item.stash[_told_key] = told
    if report.failed:
        # For those who look at the exception: the report itself is put in place of ours.
        raise Failed(report.longreprtext, pytrace=False)


def _read(item: pytest.Function, events: Path) -> _Told:
    told = _Told()
    for kind, said in _events(events):
        if kind == "report":
            hook = item.config.hook.pytest_report_from_serializable
            told.reports.append(hook(config=item.config, data=said))
        elif kind == "warning":
            told.warnings.append(said)
        elif kind == "problem":
            told.problems.append(said)
        else:
            told.interrupted = said or ()
    return told


def _events(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        while True:
            try:
                yield pickle.load(file)  # noqa: S301  # our own process wrote it
            except (EOFError, pickle.UnpicklingError):
                # The last event may have been cut off by the end of its process.
                return


def _warn_again(
    item: pytest.Item,
    kind: tuple[str, str],
    text: str,
    place: tuple[str, int],
    nodeid: str,
) -> None:
    """Record a warning here that was recorded there, past filters that it has passed."""
    try:
        category = getattr(importlib.import_module(kind[0]), kind[1])
        message = category(text)
    except Exception:  # noqa: BLE001  # a class that lives there only, or takes other arguments
        category, message = UserWarning, UserWarning(text)
    warning = warnings.WarningMessage(message, category, *place)
    given = {"warning_message": warning, "nodeid": nodeid, "when": "runtest", "location": None}
    item.ihook.pytest_warning_recorded.call_historic(kwargs=given)


def _interrupt(said: tuple[Any, ...]) -> NoReturn:
    if not said:
        raise KeyboardInterrupt
    reason, status = said
    pytest.exit(reason, status)


def _how_it_ended(status: int, told: _Told, plan: Plan) -> str:
    if told.problems and not told.problems[0].startswith("UsageError: not found: "):
        problem = told.problems[0].partition("\n")[0]
        return f"the test could not be run in a process of its own: {problem}"
    if told.problems or (not told.reports and status == 0):
        return "the test was not found again in a process of its own: its name changes"
    return what_ended_it(status, Path(plan["stacks"]))
