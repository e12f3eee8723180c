"""Keep a body from taking its process with it: by leaving it, forking it, or never coming back.

What a body does to its process instead of ending becomes a `BrokenOffError` that says so. Only
calls from Python can be seen; what a body does from C, it does.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn, cast

from pytest_trainloop.runtime.broken_off import BrokenOffError
from pytest_trainloop.runtime.deadline import Deadline, raise_in
from pytest_trainloop.runtime.drive import Stopped
from pytest_trainloop.runtime.observe import Listener
from pytest_trainloop.runtime.patch import Patches
from pytest_trainloop.runtime.place import (
    belongs_to_user,
    innermost_user_line,
    place_of,
    readable,
    user_place,
)

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from pytest_trainloop.runtime.record import Backward, Step

#: Seconds that what a body has started may take to end after it.
_PATIENCE = 2.0
#: How often a thread is asked to stop in that time.
_ATTEMPTS = 20


class _LeftError(BaseException):
    """Raised in the place of `os._exit`, which never comes back."""


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    #: The reading end of a pipe: closed by the child's end, written to if it comes back.
    pipe: int
    where: str


class Guard(Listener):
    """Guards one run of a body; also told of its steps, to know the threads that train."""

    def __init__(self, deadline: Deadline | None = None) -> None:
        self._deadline = deadline or Deadline(None)
        self._process = os.getpid()
        self._thread = threading.get_ident()
        self._patches = Patches()
        self._training: set[int] = set()
        self._before = {one.ident for one in threading.enumerate()}
        self._begun = 0
        self._children: list[_Child] = []
        #: In a forked child, the writing end of its pipe.
        self._tell: int | None = None
        #: What ended a part of the run that the body itself need not notice.
        self._problem: BrokenOffError | None = None

    def before_backward(self, backward: Backward) -> None:
        """Remember which thread trains."""
        self._training.add(threading.get_ident())

    def before_step(self, optimizer: Optimizer, step: Step) -> None:
        """Remember which thread trains, and how far it came."""
        self._training.add(threading.get_ident())
        self._begun = max(self._begun, step.number)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Guard the block.

        Raises:
            BrokenOffError: the block ended, or tried to end, otherwise than by coming to its
                end or raising; or what it started goes on without it.
        """
        __tracebackhide__ = True
        self._patches.replace(os, "_exit", self._replace_exit)
        self._patches.replace(threading, "excepthook", self._replace_excepthook)
        if hasattr(os, "fork"):
            self._patches.replace(os, "fork", self._replace_fork)
        self._patches.active = True
        try:
            with self._deadline.kept(self._progress), _exits_told():
                yield
        except BaseException as ended:
            of_ours = isinstance(ended, (Stopped, _LeftError))
            self._leave_forked(0 if of_ours else 1)
            if isinstance(ended, BrokenOffError):
                self._training |= self._started()
            self._look_around()
            if self._problem is None or not of_ours:
                raise
        else:
            self._leave_forked(0)
            self._look_around()
        finally:
            self._patches.restore()
        if self._problem is not None:
            raise self._problem

    def _progress(self) -> str:
        steps = f"{self._begun} training step{'' if self._begun == 1 else 's'}"
        return f"it had begun {steps} by then"

    def _started(self) -> set[int]:
        """Threads of the body, whether they have trained yet or not."""
        running = {one.ident for one in threading.enumerate()} - self._before
        return {ident for ident in running if ident is not None and _runs_user_code(ident)}

    def _look_around(self) -> None:
        """See to it that nothing of the run goes on after it."""
        for child in self._children:
            self._problem = _ended(child) or self._problem
        for thread in threading.enumerate():
            if thread.ident in self._training and thread.ident != self._thread:
                self._problem = _joined(thread) or self._problem

    def _leave_forked(self, status: int) -> None:
        """End a forked child that comes out of the body: the session is its parent's."""
        if os.getpid() == self._process:
            return
        if status:
            traceback.print_exc()
        if self._tell is not None:
            os.write(self._tell, b"x")
        self._patches.restore()
        os._exit(status)

    def _replace_exit(self, original: Callable[..., Any]) -> FunctionType:
        def _exit(status: int) -> NoReturn:
            __tracebackhide__ = True
            # Children that were forked to work, by a data loader or by hand, leave like this.
            if not self._patches.active or os.getpid() != self._process:
                original(status)
            place = readable(user_place())
            self._problem = BrokenOffError(
                f"the body called os._exit({status}) at {place}",
                advice="that ends all tests with it: let the loop return, or raise an exception",
                where=place,
            )
            raise _LeftError

        return cast("FunctionType", _exit)

    def _replace_fork(self, original: Callable[..., Any]) -> FunctionType:
        def fork() -> int:
            caller = sys._getframe(1).f_code.co_filename
            if not self._patches.active or not belongs_to_user(caller):
                return int(original())
            reading, writing = os.pipe()
            where = readable(user_place())
            pid = int(original())
            if pid == 0:
                os.close(reading)
                self._children.clear()
                self._tell = writing
            else:
                os.close(writing)
                self._children.append(_Child(pid, reading, where))
            return pid

        return cast("FunctionType", fork)

    def _replace_excepthook(self, original: Callable[..., Any]) -> FunctionType:
        def excepthook(args: Any, /) -> None:
            if not self._patches.active:
                original(args)
            elif issubclass(args.exc_type, Exception) and args.thread is not None:
                self._note_thread(args)
                original(args)
            elif not issubclass(args.exc_type, (Stopped, _LeftError)):
                original(args)

        return cast("FunctionType", excepthook)

    def _note_thread(self, args: Any) -> None:
        """Remember that a thread which trained was ended by an exception."""
        if args.thread.ident not in self._training:
            return
        line = innermost_user_line(args.exc_traceback, "")
        told = traceback.format_exception_only(args.exc_type, args.exc_value)[-1].strip()
        self._problem = BrokenOffError(
            f"the thread `{args.thread.name}`, which trained, raised {told}"
            + (f" at {readable(line)}" if line else ""),
            advice="nobody waits for what a thread raises: hand it to the thread that joins it",
            where=readable(line) if line else "",
        )


@contextmanager
def _exits_told() -> Iterator[None]:
    __tracebackhide__ = True
    try:
        yield
    except SystemExit as left:
        code = "" if left.code is None else repr(left.code)
        line = innermost_user_line(left.__traceback__, "")
        where = f" at {readable(line)}" if line else ""
        raise BrokenOffError(
            f"the body called sys.exit({code}){where}",
            advice="let the loop return; a script that exits when it is done is run by"
            " `run_script`",
            where=readable(line) if line else "",
        ) from None


def _ended(child: _Child) -> BrokenOffError | None:
    """Wait for a forked child, and end it if need be; what is wrong with it, if anything."""
    ready, _, _ = select.select([child.pipe], [], [], _PATIENCE)
    came_back = bool(ready) and os.read(child.pipe, 1) == b"x"
    os.close(child.pipe)
    if ready and not came_back:
        # It ended by itself; whether the body has waited for it or not.
        with suppress(ChildProcessError):
            os.waitpid(child.pid, os.WNOHANG)
        return None
    with suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(child.pid, 0)
    # Whether it would have come out of the body too is a matter of how long one waits.
    return BrokenOffError(
        f"the body forked at {child.where}, and the child process went on when the body had ended",
        advice="end the child with `os._exit`, and wait for it; what it does is not seen",
        where=child.where,
    )


def _has_ended(thread: int, seconds: float) -> bool:
    """Whether a thread ends within some time.

    Asked of the interpreter: `Thread.join`, broken off by an exception in one thread, takes the
    other for ended.
    """
    end = time.monotonic() + seconds
    while thread in sys._current_frames():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def _runs_user_code(thread: int) -> bool:
    frame = sys._current_frames().get(thread)
    return belongs_to_user(place_of(frame)[0])


def _joined(thread: threading.Thread) -> BrokenOffError | None:
    """Wait for a thread that trained, and stop it if need be."""
    ident = thread.ident
    if ident is None or _has_ended(ident, _PATIENCE):
        return None
    where = readable(place_of(sys._current_frames().get(ident)))
    for _ in range(_ATTEMPTS):
        # Where a destructor runs, or a `try` that catches everything, it comes to nothing.
        raise_in(ident, Stopped)
        if _has_ended(ident, _PATIENCE / _ATTEMPTS):
            break
    return BrokenOffError(
        f"the thread `{thread.name}` still trained when the body had ended: it was at {where}",
        advice="join it where the loop ends: what it does later cannot be judged",
        where=where,
    )
