"""Give a body of code only so many seconds, and say where it was when they were over.

With an alarm of the system, which also wakes a body that sleeps or waits for a lock. An alarm
that somebody else had set (pytest-timeout does) still comes at its own time. A body that waits
in C code, or that catches whatever is raised in it, can only be given up.
"""

from __future__ import annotations

import ctypes
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from pytest_trainloop.runtime.broken_off import BrokenOffError
from pytest_trainloop.runtime.place import place_of, readable

#: Seconds between two attempts to end a body that catches everything, and of all of them.
_AGAIN, _GRACE = 1.0, 20.0


class _TimeIsOver(BaseException):
    """Raised in the body. Not an `Exception`, for the reason that `drive.Stopped` is none."""


class Deadline:
    """So many seconds, shared by all blocks that are `kept` within it; None for no end.

    Args:
        seconds: greater than 0.
        give_up: called in a thread of its own, while a block still runs that nothing could end
            for 20 s more. It gets what there is to say.
    """

    def __init__(
        self, seconds: float | None, give_up: Callable[[BrokenOffError], object] | None = None
    ) -> None:
        self._given = seconds
        self._give_up = give_up
        self._left = math.inf if seconds is None else seconds
        self._where = ""
        self._over = False

    @contextmanager
    def kept(self, progress: Callable[[], str]) -> Iterator[None]:
        """Raise `BrokenOffError` if the block takes more than the time that is left.

        Args:
            progress: says how far the block had come.
        """
        __tracebackhide__ = True
        if self._given is None:
            yield
            return
        begin = time.monotonic()
        seconds = max(self._left, 0.001)
        waiting = _alarm if _can_use_alarm() else _watchdog
        try:
            with self._given_up(seconds + _GRACE, progress), waiting(seconds, self._expire):
                yield
        except _TimeIsOver:
            # Told below, as also where the body has caught it.
            pass
        finally:
            self._left -= time.monotonic() - begin
        if self._over:
            raise BrokenOffError(
                f"the body had not ended after {self._given:g} s: it was at {self._place()}",
                advice="look for what it waits for there; a body that is only slow takes a longer"
                " `timeout`, or less data",
                trace=progress(),
                where=self._where,
            )

    @contextmanager
    def _given_up(self, seconds: float, progress: Callable[[], str]) -> Iterator[None]:
        """Wait beside the block for the time when no attempt has ended it."""
        if self._give_up is None:
            yield
            return
        me, give_up = threading.get_ident(), self._give_up

        def last_resort() -> None:
            self._expire(sys._current_frames().get(me))
            give_up(
                BrokenOffError(
                    f"the body had not ended after {self._given:g} s, and could not be"
                    f" interrupted: it was at {self._place()}",
                    advice='look for what it waits for there; `isolate="process"` ends such a'
                    " body without the session",
                    trace=progress(),
                    where=self._where,
                )
            )

        timer = threading.Timer(seconds, last_resort)
        timer.daemon, timer.name = True, "trainloop-last-resort"
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _place(self) -> str:
        return self._where or "a place that is not known"

    def _expire(self, frame: FrameType | None) -> None:
        self._where = self._where or readable(place_of(frame))
        self._over = True


def _can_use_alarm() -> bool:
    return (
        hasattr(signal, "setitimer")
        and threading.current_thread() is threading.main_thread()
        # None: somebody set a handler that cannot be put back from Python.
        and signal.getsignal(signal.SIGALRM) is not None
    )


@contextmanager
def _alarm(seconds: float, expire: Any) -> Iterator[None]:
    begin = time.monotonic()
    theirs: Any = signal.getsignal(signal.SIGALRM)
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    over = False
    theirs_is_due = 0 < left <= seconds

    def ring(number: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True
        nonlocal theirs_is_due
        if over:
            return
        if theirs_is_due:
            theirs_is_due = False
            rest = max(begin + seconds - time.monotonic(), 0.001)
            signal.setitimer(signal.ITIMER_REAL, rest, _AGAIN)
            if callable(theirs):
                theirs(number, frame)
            return
        expire(frame)
        raise _TimeIsOver

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, left if theirs_is_due else seconds, _AGAIN)
    try:
        yield
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, theirs)
        rest = left - (time.monotonic() - begin)
        if theirs_is_due or left > seconds:
            # It has not rung yet, and may be late by what this took.
            signal.setitimer(signal.ITIMER_REAL, max(rest, 0.001), interval)


@contextmanager
def _watchdog(seconds: float, expire: Any) -> Iterator[None]:
    """Without alarms: in another thread than the main one, or on Windows. Wakes nobody up."""
    me = threading.get_ident()
    over = threading.Event()

    def bark() -> None:
        pause = seconds
        while not over.wait(pause):
            expire(sys._current_frames().get(me))
            raise_in(me, _TimeIsOver)
            pause = _AGAIN

    dog = threading.Thread(target=bark, daemon=True, name="trainloop-deadline")
    dog.start()
    try:
        yield
    finally:
        over.set()
        dog.join()


def raise_in(thread: int, kind: type[BaseException]) -> None:
    """Raise an exception in another thread, by its identifier, before its next instruction."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))
