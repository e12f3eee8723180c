"""A place that is asked for in each step is the one that a full search finds."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest

from pytest_trainloop.runtime.place import CallSite, readable, user_place

LIBRARY = """
def both():
    return site.now(), readable(user_place())

def step(ask):
    return ask()

def outer_step(ask):
    return step(ask)
"""


Both = Callable[[], tuple[str, str]]


def functions_of(text: str, path: str, **names: object) -> dict[str, Any]:
    """What a file defines that lies somewhere else."""
    exec(compile(text, path, "exec"), names)  # noqa: S102  # tests cannot lie in site-packages
    return names


@pytest.fixture
def library() -> dict[str, Any]:
    """Functions of an installed package; `both` asks a call site, and searches all frames."""
    path = "/x/site-packages/framework/loop.py"
    names = {"site": CallSite(), "readable": readable, "user_place": user_place}
    return functions_of(LIBRARY, path, **names)


@pytest.fixture
def both(library: dict[str, Any]) -> Both:
    asked: Both = library["both"]
    return asked


def test_each_line_is_told_apart_however_often_it_asks(both: Both) -> None:
    places = set()
    for _ in range(3):
        first = both()
        second = both()
        assert first[0] == first[1]
        assert second[0] == second[1]
        places |= {first[0], second[0]}
    assert len(places) == 2
    assert all("test_call_site.py:" in place for place in places)


def test_calls_through_a_library_are_those_of_its_caller(
    both: Both, library: dict[str, Any]
) -> None:
    def own(ask: Both) -> tuple[str, str]:
        return ask()

    ways = [library["step"], library["outer_step"], own]
    seen = [way(both) for _ in range(3) for way in ways]
    assert [now for now, _ in seen] == [searched for _, searched in seen]
    # One line of this file calls the library, and one of `own` asks.
    assert len(set(seen)) == 2


def test_a_call_from_higher_up_than_the_last_is_found(both: Both) -> None:
    def deep(depth: int) -> tuple[str, str]:
        found: tuple[str, str] = deeper(both, depth)
        return found

    loop = "def deeper(ask, depth): return deeper(ask, depth - 1) if depth else ask()"
    deeper = functions_of(loop, "/x/site-packages/framework/deeper.py")["deeper"]
    for depth in (200, 0, 200):
        now, searched = deep(depth)
        assert now == searched


def test_asking_keeps_no_variable_of_its_callers_alive(both: Both) -> None:
    class Thing:
        pass

    def ask() -> weakref.ref[Thing]:
        thing = Thing()
        both()
        return weakref.ref(thing)

    # The first time it searches, and then it need not.
    assert ask()() is ask()() is None


def test_two_functions_of_equal_code_are_not_one(both: Both) -> None:
    paths = ("/home/me/one.py", "/home/me/other.py")
    both_ask = [functions_of("def ask(both): return both()", path)["ask"] for path in paths]
    seen = [ask(both) for ask in (*both_ask, *both_ask)]
    assert seen == [(f"{path}:1", f"{path}:1") for path in (*paths, *paths)]
