"""How a run ends that came to no end of its own."""

from __future__ import annotations


class BrokenOffError(Exception):
    """A run was broken off by what its code did: there is nothing to judge it by.

    The message is one line: what happened, and where in the user's code.

    Args:
        message: that line.
        advice: what to write.
        trace: the traceback through the user's code, where there is one.
        where: the place in that line as `path:line`, where there is one.
    """

    def __init__(self, message: str, *, advice: str, trace: str = "", where: str = "") -> None:
        super().__init__(message)
        self.advice = advice
        self.trace = trace
        self.where = where
