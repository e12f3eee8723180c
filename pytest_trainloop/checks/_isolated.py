"""Tests that ask for a process of their own: send them there, and report what came back."""

from __future__ import annotations

import importlib
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
from _pytest.outcomes import Failed

from pytest_trainloop.checks import _process, check_names
from pytest_trainloop.checks._body import new_folder
from pytest_trainloop.runtime.place import belongs_to_user, readable

#: Options that choose among tests, run them elsewhere or again, or write files of the session:
#: what they are in a process that runs the one test.
_ALONE: dict[str, Any] = {
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "collectonly": False,
    "lf": False,
    "failedfirst": False,
    "newfirst": False,
    "cacheclear": False,
    "cacheshow": None,
    "stepwise": False,
    "stepwise_skip": False,
    "stepwise_reset": False,
    "maxfail": 0,
    "usepdb": False,
    "trace": False,
    "xmlpath": None,
    "report_log": None,
    "htmlpath": None,
    "trainloop_json": None,
    "trainloop_lint": False,
    "numprocesses": None,
    "maxprocesses": None,
    "dist": "no",
    "tx": [],
    "looponfail": False,
    "cov_source": [],
    "reruns": 0,
}
#: Seconds between two looks at a process, and those that it is given beyond its test's time.
_GLANCE, _GRACE = 0.2, 5.0
#: A frame as `faulthandler` writes it.
_FRAME = re.compile(r'  File "(.+)", line (\d+) in ')
#: What a signal that ends a process says to a reader.
_MEANINGS = {
    "SIGSEGV": "a segmentation fault",
    "SIGABRT": "an abort",
    "SIGBUS": "a bus error",
    "SIGFPE": "an arithmetic fault",
    "SIGILL": "an illegal instruction",
    "SIGKILL": "killed from outside: by hand, or by the system for want of memory",
}


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


class EndedError(Exception):
    """The process ended before its test had; says how, in one line."""


def run_in_own_process(item: pytest.Function) -> None:
    """Run a test in a process that begins anew, and let it end here as it ended there.

    Raises:
        EndedError: the process ended before the test had.
    """
    __tracebackhide__ = True
    folder = new_folder(item, "process")
    plan = _plan(item, folder)
    with open(folder / "plan", "wb") as file:
        pickle.dump(plan, file)
    status = _wait_for(item, plan, str(folder / "plan"))
    told = _read(item, Path(plan["events"]))
    for warning in told.warnings:
        _warn_again(item, *warning)
    if told.interrupted is not None:
        _interrupt(told.interrupted)
    report = told.report_for("call")
    if report is None or not told.report_for("teardown"):
        raise EndedError(_how_it_ended(status, told, Path(plan["stacks"])))
    item.stash[_told_key] = told
    if report.failed:
        # For those who look at the exception: the report itself is put in place of ours.
        raise Failed(report.longreprtext, pytrace=False)


def _plan(item: pytest.Function, folder: Path) -> _process.Plan:
    config = item.config
    path, _, inner = item.nodeid.partition("::")
    test = f"{config.rootpath / path}::{inner}"
    options = {**vars(config.option), **_ALONE, "basetemp": str(folder / "tmp"), "plugins": []}
    options["file_or_dir"] = [test]
    options["rootdir"] = str(config.rootpath)
    options["inifilename"] = str(config.inipath) if config.inipath else None
    plugins = [part for name in config.option.plugins for part in ("-p", name)]
    return _process.Plan(
        nodeid=item.nodeid,
        arguments=[*plugins, test],
        options={name: value for name, value in options.items() if _can_travel(value)},
        argv=list(sys.argv),
        search_path=list(sys.path),
        coverage=_coverage_of(config),
        events=str(folder / "events"),
        stacks=str(folder / "stacks"),
    )


def _can_travel(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001  # whatever an object's own pickling raises
        return False
    return True


def _coverage_of(config: pytest.Config) -> dict[str, Any] | None:
    """How pytest-cov measures this session; None if it does not."""
    plugin: Any = config.pluginmanager.getplugin("_cov")
    measuring = getattr(getattr(plugin, "cov_controller", None), "cov", None)
    if measuring is None:
        return None
    settings = measuring.config
    return {
        "data_file": os.path.abspath(settings.data_file),
        "config_file": settings.config_file or False,
        "source": settings.source,
        "branch": settings.branch,
    }


def _wait_for(item: pytest.Function, plan: _process.Plan, file: str) -> int:
    """Run the process to its end; whatever ends the waiting ends the process too."""
    __tracebackhide__ = True
    command = [sys.executable, _process.__file__, file]
    process = subprocess.Popen(  # noqa: S603  # this interpreter, with our own module
        command,
        cwd=item.config.invocation_params.dir,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        allowed = _seconds_allowed(item)
        return process.wait() if allowed is None else _wait_within(process, allowed, plan)
    finally:
        _end(process)


def _seconds_allowed(item: pytest.Function) -> float | None:
    """What the markers of a test allow it in all; None if one of them sets no limit."""
    marks = [item.get_closest_marker(name) for name in (*check_names(), "trainloop")]
    *checks, watching = [mark.kwargs.get("timeout") if mark else None for mark in marks]
    limits = [one or watching for one, mark in zip(checks, marks, strict=False) if mark is not None]
    if not limits:
        return float(watching) if watching else None
    return None if None in limits else float(sum(filter(None, limits)))


def _wait_within(process: subprocess.Popen[bytes], seconds: float, plan: _process.Plan) -> int:
    """Wait for a process that ends its test itself, except where it hangs outside of Python.

    Raises:
        EndedError: it did not end.
    """
    __tracebackhide__ = True
    events, end = Path(plan["events"]), math.inf
    while time.monotonic() < end:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_GLANCE)
        # The first event is that its fixtures are set up: now the test begins.
        if end == math.inf and events.exists() and events.stat().st_size:
            end = time.monotonic() + seconds + _GRACE
    stacks = Path(plan["stacks"])
    process.send_signal(_process.stack_signal())
    time.sleep(_GLANCE)
    place = place_in(stacks)
    raise EndedError(
        f"the body had not ended after {seconds:g} s, and could not be interrupted"
        + (f": it was at {place}" if place else "")
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it has started, and leave no zombie."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


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


def _how_it_ended(status: int, told: _Told, stacks: Path) -> str:
    if told.problems and not told.problems[0].startswith("UsageError: not found: "):
        problem = told.problems[0].partition("\n")[0]
        return f"the test could not be run in a process of its own: {problem}"
    if told.problems or (not told.reports and status == 0):
        return "the test was not found again in a process of its own: its name changes"
    place = place_in(stacks)
    where = f" at {place}" if place else ""
    if status < 0:
        name = signal.Signals(-status).name
        meaning = f" ({_MEANINGS[name]})" if name in _MEANINGS else ""
        return f"the process of the test was ended by {name}{meaning}{where}"
    return (
        f"the process of the test ended with exit code {status}, in the middle of the test{where}"
    )


def place_in(stacks: Path) -> str:
    """`path:line` of the user's innermost frame, where stacks were written down; else empty."""
    text = stacks.read_text(errors="replace") if stacks.exists() else ""
    # Of several threads, the one that crashed or was asked; the others are listed before it.
    current = text.rpartition("Current thread")[2]
    for path, line in _FRAME.findall(current):
        if belongs_to_user(path):
            return readable((path, int(line)))
    return ""
