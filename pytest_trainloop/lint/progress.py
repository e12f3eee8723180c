"""A line on the terminal for a run that takes longer than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_QUIET_S = 1.0
_EVERY_S = 0.1


def progress() -> Callable[[int, int], None] | None:
    """Shows how many files are done; None where standard error is no terminal."""
    if not sys.stderr.isatty():
        return None
    begin = time.monotonic()
    shown = 0.0

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done < total and now - begin > _QUIET_S and now - shown > _EVERY_S:
            shown = now
            sys.stderr.write(f"\r{done} of {total} files")
            sys.stderr.flush()
        elif done == total and shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    return show
