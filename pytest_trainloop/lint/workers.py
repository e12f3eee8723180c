"""Linting many files at once, each worker a process of its own.

A worker that dies (a stack overflow in C, the system short of memory) or that hangs in a
single call costs one file, not the run: `multiprocessing.Pool` would wait for it for ever.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from pytest_trainloop.lint.cycles import no_search_for_cycles
from pytest_trainloop.lint.outcome import FileError
from pytest_trainloop.lint.result import FileResult
from pytest_trainloop.lint.time_limit import PATIENCE

if TYPE_CHECKING:
    from multiprocessing.context import ForkContext, SpawnContext
    from multiprocessing.process import BaseProcess

    from pytest_trainloop.lint.lint_file import FileLinter

# Files that a worker is given at a time: few, so that none is left with all the long ones.
_BATCH = 12
# What a worker may take beyond the limit of its file before it is ended from outside.
_GRACE_S = 5.0


def lint_in_workers(
    make_linter: Callable[[], FileLinter],
    paths: Sequence[str],
    workers: int,
    time_limit_s: float,
) -> Iterator[FileResult]:
    """Lint files, results in any order.

    Args:
        make_linter: called once in each worker.
        paths: the files.
        workers: how many processes work at a time.
        time_limit_s: the most seconds for one file, kept by the linter itself.
    """
    batches = deque(paths[at : at + _BATCH] for at in range(0, len(paths), _BATCH))
    running: dict[Connection, _Worker] = {}
    try:
        while batches or running:
            while batches and len(running) < workers:
                worker = _Worker(make_linter, time_limit_s * PATIENCE + _GRACE_S)
                running[worker.connection] = worker
                worker.give(batches.popleft())
            ready = wait(list(running), timeout=1.0)
            for worker in [worker for worker in running.values() if worker.connection in ready]:
                result = worker.take()
                if result is not None:
                    yield result
                elif not worker.has_died and batches:
                    worker.give(batches.popleft())
                else:
                    yield from worker.lost(batches)
                    del running[worker.connection]
                    worker.end()
            for worker in [worker for worker in running.values() if worker.hangs()]:
                yield from worker.lost(batches)
                del running[worker.connection]
                worker.end()
    finally:
        for worker in running.values():
            worker.end()


class _Worker:
    """A process that lints, seen from outside."""

    def __init__(self, make_linter: Callable[[], FileLinter], patience_s: float) -> None:
        context = _context()
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_work, args=(theirs, make_linter), daemon=True
        )
        self._process.start()
        theirs.close()
        self._patience_s = patience_s
        self._waiting_since = time.monotonic()
        self._todo: deque[str] = deque()
        self.has_died = False

    def give(self, batch: Sequence[str]) -> None:
        self._todo.extend(batch)
        self._waiting_since = time.monotonic()
        with suppress(OSError):  # that it has died is seen when it is heard next
            self.connection.send(list(batch))

    def take(self) -> FileResult | None:
        """The next result; None when the batch is done, or the process has ended."""
        try:
            result: FileResult | None = self.connection.recv()
        except (EOFError, OSError):
            self.has_died = True
            return None
        self._waiting_since = time.monotonic()
        if result is not None:
            self._todo.popleft()
        return result

    def hangs(self) -> bool:
        return bool(self._todo) and time.monotonic() - self._waiting_since > self._patience_s

    def lost(self, batches: deque[Sequence[str]]) -> Iterator[FileResult]:
        """Name the file that ended or held up the process; the rest of the batch goes back."""
        if self._todo:
            path = self._todo.popleft()
            reason = "took too long and had to be stopped"
            if self.has_died:
                self._process.join(timeout=1.0)
                reason = f"ended the process that read it (exit code {self._process.exitcode})"
            yield FileResult(path, errors=(FileError(path, reason),))
            if self._todo:
                batches.appendleft(list(self._todo))

    def end(self) -> None:
        self.connection.close()
        self._process.join(timeout=0.2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _context() -> ForkContext | SpawnContext:
    """Fork where it is safe (Linux, a single thread): the rules are then loaded only once."""
    if sys.platform == "linux" and threading.active_count() == 1:
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("spawn")


def _work(connection: Connection, make_linter: Callable[[], FileLinter]) -> None:
    """Lint batch after batch until the other side closes."""
    with suppress(EOFError, OSError, KeyboardInterrupt), no_search_for_cycles():
        linter = make_linter()
        while True:
            for path in connection.recv():
                connection.send(linter.lint(path))
            connection.send(None)
