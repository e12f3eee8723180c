"""Wait for the process of an isolated test, and say how it ended if it did not say so itself."""

from __future__ import annotations

import faulthandler
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_trainloop.checks import _process
from pytest_trainloop.runtime.place import belongs_to_user, readable

if TYPE_CHECKING:
    from pytest_trainloop.checks._process import Plan

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


class EndedError(Exception):
    """The process ended before its test had; says how, in one line."""


def wait_for(plan: Plan, file: str, seconds: float | None) -> int:
    """Run the process of a plan to its end; whatever ends the waiting ends the process too.

    Args:
        plan: the plan.
        file: where it is written down.
        seconds: the time for its test; None for no limit.

    Returns:
        Its exit status, or minus the signal that ended it.

    Raises:
        EndedError: it took more time, and did not end by itself.
    """
    __tracebackhide__ = True
    command = [sys.executable, _process.__file__, file]
    process = subprocess.Popen(  # noqa: S603  # this interpreter, with our own module
        command,
        cwd=plan["folder"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait() if seconds is None else _wait_within(process, seconds, plan)
    finally:
        _end(process)


def _wait_within(process: subprocess.Popen[bytes], seconds: float, plan: Plan) -> int:
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
    if hasattr(faulthandler, "register"):
        process.send_signal(_process.stack_signal())
        time.sleep(_GLANCE)
    place = place_in(Path(plan["stacks"]))
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


def what_ended_it(status: int, stacks: Path) -> str:
    """How a process ended in the middle of its test, in one line, with the user's line."""
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
