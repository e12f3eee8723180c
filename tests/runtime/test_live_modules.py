"""Modules are found wherever they live, though not everything is searched each time."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import nn

from pytest_trainloop.runtime import live_modules
from pytest_trainloop.runtime.live_modules import collect_garbage, live_roots


@pytest.fixture(autouse=True)
def _a_quiet_collector() -> Iterator[None]:
    """Objects grow old when a test says so."""
    gc.disable()
    collect_garbage()
    yield
    gc.enable()


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The generations that were searched since; None for all objects."""
    searched: list[int | None] = []

    def get_objects(generation: int | None = None) -> list[Any]:
        searched.append(generation)
        return original(generation)

    original = gc.get_objects
    monkeypatch.setattr(gc, "get_objects", get_objects)
    return searched


def are_roots(*modules: nn.Module) -> list[bool]:
    found = set(map(id, live_roots()))
    return [id(module) in found for module in modules]


def test_a_module_that_came_since_is_found_among_the_young(searches: list[int | None]) -> None:
    before = nn.Linear(1, 1)
    assert are_roots(before) == [True]
    searches.clear()
    since = nn.Linear(1, 1)
    copied = copy.deepcopy(since)
    assert are_roots(before, since, copied) == [True, True, True]
    assert searches == [0, 1]


@pytest.mark.parametrize("grow_old", [lambda: gc.collect(1), gc.collect])
def test_a_module_that_became_old_unseen_is_found(
    grow_old: Callable[[], int], searches: list[int | None]
) -> None:
    live_roots()
    since = nn.Linear(1, 1)
    grow_old()
    searches.clear()
    assert are_roots(since) == [True]
    assert searches == [None]
    # It is known from then on.
    assert are_roots(since) == [True]
    assert searches == [None, 0, 1]


def test_a_module_that_becomes_old_during_the_search_is_found(
    searches: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    live_roots()
    since = nn.Linear(1, 1)
    gc.collect(0)
    look = gc.get_objects

    def get_objects(generation: int | None = None) -> list[Any]:
        if generation == 1:
            gc.collect(1)
        return look(generation)

    monkeypatch.setattr(gc, "get_objects", get_objects)
    searches.clear()
    assert are_roots(since) == [True]
    assert searches == [0, 1, None]


def test_a_module_that_was_frozen_with_the_rest_is_found_once_it_is_thawed() -> None:
    since = nn.Linear(1, 1)
    gc.freeze()
    live_roots()
    gc.unfreeze()
    assert are_roots(since) == [True]


def test_what_another_module_took_in_is_no_root_any_more() -> None:
    inner, outer = nn.Linear(1, 1), nn.Module()
    assert are_roots(inner, outer) == [True, True]
    outer.add_module("inner", inner)
    assert are_roots(inner, outer) == [False, True]
    del outer.inner
    assert are_roots(inner, outer) == [True, True]


def test_what_is_gone_is_forgotten() -> None:
    module = nn.Linear(1, 1)
    live_roots()
    known = len(live_modules._known.refs)
    del module
    live_roots()
    assert len(live_modules._known.refs) == known - 1


def test_garbage_is_collected_and_what_lives_is_known(searches: list[int | None]) -> None:
    module, garbage = nn.Linear(1, 1), nn.Linear(1, 1)
    vars(garbage)["itself"] = garbage
    number = len(live_roots())
    del garbage
    searches.clear()
    collect_garbage()
    assert are_roots(module) == [True]
    assert len(live_roots()) == number - 1
    assert None not in searches


def test_all_is_searched_where_python_has_other_generations(
    searches: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_modules, "_HAS_YOUNG", False)
    module = nn.Linear(1, 1)
    assert are_roots(module) == are_roots(module) == [True]
    assert searches == [None, None]
