"""The line that shows how far a long run is."""

from __future__ import annotations

import io
import sys
import time

import pytest

from pytest_trainloop.lint.progress import progress


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def look(monkeypatch: pytest.MonkeyPatch) -> Screen:
    # In the test itself: pytest puts its own in place when the call begins.
    made = Screen()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_a_run_of_less_than_a_second_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = look(monkeypatch)
    show = progress()
    assert show is not None
    for done in range(10):
        show(done + 1, 10)
    assert screen.getvalue() == ""


def test_a_long_run_shows_how_far_it_is_and_wipes_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = look(monkeypatch)
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    show = progress()
    assert show is not None
    for done in range(5):
        now += 0.6
        show(done + 1, 5)
    assert screen.getvalue() == "\r2 of 5 files\r3 of 5 files\r4 of 5 files\r\x1b[K"


def test_there_is_no_line_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress() is None
