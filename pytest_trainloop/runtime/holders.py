"""Find what keeps objects alive, and what the user's code calls it: slow, for a failure only."""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pytest_trainloop.runtime.place import global_name_of, is_ours, name_of

#: How many things one inside of the other a name may lead through: `self.history["loss"]`.
_DEPTH = 3
#: How many of the things that refer to the objects are looked at.
_LOOKED_AT = 12
#: How many of the objects that are in none of these are looked for among the variables.
_NAMED = 500
_COLLECTIONS = (list, tuple, set, deque)


@dataclass(frozen=True)
class Holder:
    """What keeps some objects alive."""

    #: What the user's code calls it.
    name: str
    #: `list`, `dict` and so on; empty where a variable or an attribute holds the object itself.
    kind: str
    #: Those of the objects that it holds.
    things: list[Any]


def holders_of(things: list[Any], fewest: int = 2) -> list[Holder]:
    """Who holds some objects, as far as it can be named; collections first, the fullest before.

    Collections, and objects with attributes, that hold less than `fewest` are not looked for.
    What only a graph holds (activations that were saved for a backward) has no holder.
    """
    containers = _containers(things)
    left = {id(thing): thing for thing in things}
    fullest = sorted(containers, key=lambda one: -len(_among(left, one)))[:_LOOKED_AT]
    found: list[Holder] = []
    for container in fullest:
        group = _among(left, container)
        if len(group) < fewest:
            continue
        is_collection = isinstance(container, _COLLECTIONS) or _owner(container) is None
        name = path_of(container if is_collection else group[0])
        if name:
            kind = type(container).__name__ if is_collection else ""
            found.append(Holder(name, kind, group))
            for thing in group:
                del left[id(thing)]
    variables = ((_variable(thing), thing) for thing in list(left.values())[:_NAMED])
    return [*found, *(Holder(name, "", [thing]) for name, thing in variables if name)]


def _among(things: dict[int, Any], container: Any) -> list[Any]:
    """Those of some objects that a container, or an object with attributes, holds itself."""
    values = container if isinstance(container, _COLLECTIONS) else _named(container).values()
    return list({id(one): one for one in values if id(one) in things}.values())


def _named(container: Any) -> dict[Any, Any]:
    return dict(container if isinstance(container, dict) else getattr(container, "__dict__", {}))


def path_of(thing: Any, depth: int = _DEPTH) -> str:
    """What the user's code calls an object that may lie inside of others; empty if unknown."""
    name = _variable(thing)
    if name or not depth:
        return name
    for container in _containers([thing]):
        owner = None if isinstance(container, _COLLECTIONS) else _owner(container)
        step = _step(container, thing, is_attribute=owner is not None)
        outer = path_of(container if owner is None else owner, depth - 1) if step else ""
        if outer:
            return f"{outer}{step}"
    return ""


def _variable(thing: Any) -> str:
    return name_of(thing) or global_name_of(thing) or ""


def _containers(things: list[Any]) -> list[Any]:
    """What refers to any of some objects, without running code and what is in use here."""
    ours = {id(value) for value in _own_values()} | {id(things)}
    found = gc.get_referrers(*things)
    return [one for one in found if id(one) not in ours and not isinstance(one, FrameType)]


def _own_values() -> Iterator[Any]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_ours(frame.f_code.co_filename):
            yield from frame.f_locals.values()
        frame = frame.f_back


def _owner(container: Any) -> Any:
    """The object that keeps its attributes in `container`; None for a dict that is just that."""
    if not isinstance(container, dict):
        return container
    for one in gc.get_referrers(container):
        if getattr(one, "__dict__", None) is container:
            return one
    return None


def _step(container: Any, thing: Any, *, is_attribute: bool) -> str:
    if isinstance(container, _COLLECTIONS):
        return "[...]"
    for name, value in _named(container).items():
        if value is thing:
            return f".{name}" if is_attribute else f"[{name!r}]"
    return ""
