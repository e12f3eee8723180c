"""A limit on the time that one file may take."""

from __future__ import annotations

import ctypes
import threading
from types import TracebackType

#: The most seconds that one file may take. The slowest real file seen takes half a second.
TIME_LIMIT_S = 30.0


class TimeLimitError(BaseException):
    """The time is over; not an `Exception`, so that no rule can swallow it."""


class TimeLimit:
    """Raises `TimeLimitError` in the thread that entered it once `seconds` have passed.

    Works on every system and in every thread, unlike an alarm signal, which would also
    clash with the timeouts of a test runner. It cannot break into a single long call of
    C code; whoever waits for a worker process has to end that.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._active = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> None:
        """Start the clock."""
        self._active = True
        self._timer = threading.Timer(self._seconds, self._raise_in, [threading.get_ident()])
        self._timer.daemon = True
        self._timer.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the clock: after this nothing is raised any more."""
        with self._lock:
            self._active = False
        if self._timer is not None:
            self._timer.cancel()
            # A process with a second thread cannot be forked safely.
            self._timer.join()

    def _raise_in(self, thread: int) -> None:
        with self._lock:
            if self._active:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread), ctypes.py_object(TimeLimitError)
                )
