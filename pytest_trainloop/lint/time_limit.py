"""A limit on the time that one file may take."""

from __future__ import annotations

import threading
import time
from types import TracebackType

#: The most seconds of computing that one file may take. The slowest real file seen takes half a
#: second.
TIME_LIMIT_S = 30.0
#: A machine that is busy with other things may take this many times as long by the clock.
PATIENCE = 10
# How often the clock is looked at, at most.
_LOOK_S = 0.5


class TimeLimitError(BaseException):
    """The time is over; not an `Exception`, so that no rule can swallow it."""


class TimeLimit:
    """Raises `TimeLimitError` in the thread that entered it after `seconds` of computing.

    What neither computes nor ends is given up after `PATIENCE` times as long.

    Works on every system and in every thread, unlike an alarm signal, which would also
    clash with the timeouts of a test runner. It cannot break into a single long call of
    C code; whoever waits for a worker process has to end that.

    One thread watches however many files, and ends when there is nothing left to watch.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._watched = 0
        self._computed_s = 0.0
        self._began_s = 0.0
        self._entered = 0

    def __enter__(self) -> None:
        """Start the clock."""
        with self._lock:
            self._watched = threading.get_ident()
            self._computed_s = time.process_time()
            self._began_s = time.monotonic()
            self._entered += 1
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, daemon=True)
                self._watcher.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the clock: after this nothing is raised any more."""
        with self._lock:
            self._watched = 0

    def _is_over(self) -> bool:
        return (
            time.process_time() - self._computed_s > self._seconds
            or time.monotonic() - self._began_s > self._seconds * PATIENCE
        )

    def _watch(self) -> None:
        import ctypes

        seen = 0
        while True:
            time.sleep(min(_LOOK_S, self._seconds / 4))
            with self._lock:
                if self._watched and self._is_over():
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(self._watched), ctypes.py_object(TimeLimitError)
                    )
                    self._watched = 0
                if not self._watched and seen == self._entered:
                    self._watcher = None
                    return
                seen = self._entered
