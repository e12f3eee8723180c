"""How far the graph behind a value reaches, and where it is cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.source.modes import gradients
from pytest_trainloop.source.values import (
    Attribute,
    Either,
    Operation,
    Result,
    Returned,
    Value,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Call

#: Methods whose result has no graph, whatever they are applied to.
_CUTTING = frozenset({"detach", "item", "numpy", "tolist", "argmax", "argmin", "argsort", "long"})
#: Functions that copy numbers, and leave the graph behind.
_COPYING = re.compile(
    r"^torch\.(?:tensor|from_numpy|Tensor|\w*FloatTensor|DoubleTensor|autograd\.Variable"
    r"|autograd\.variable\.Variable|argmax|argmin)$|^builtins\.(?:float|int|bool|str)$|^numpy\."
)
_COMPARISONS = frozenset(
    {"eq", "noteq", "lt", "lte", "gt", "gte", "is", "isnot", "in", "notin", "not"}
)


@dataclass(frozen=True, eq=False)
class Graph:
    """What autograd sees behind a value: `reached` with the graph, and the `cuts` where it ends."""

    reached: tuple[Value, ...]
    cuts: tuple[Value, ...]


def graph_of(value: Value, limit: int = 400) -> Graph:
    """The values that a backward from `value` comes by, nearest first, and those it stops at."""
    reached: list[Value] = []
    cuts: list[Value] = []
    seen: set[int] = set()
    queue = [value]
    for current in queue:
        if id(current) in seen or len(seen) >= limit:
            continue
        seen.add(id(current))
        if is_cut(current):
            cuts.append(current)
        else:
            reached.append(current)
            queue.extend(current.parts())
    return Graph(tuple(reached), tuple(cuts))


def is_cut(value: Value) -> bool:
    """Whether the value has no graph, whatever it was made from."""
    if isinstance(value, Result):
        return _cuts(value.call)
    if isinstance(value, Attribute):
        return value.name in ("data", "shape")
    return isinstance(value, Operation) and value.operator in _COMPARISONS


def _cuts(call: Call) -> bool:
    if call.receiver is not None and call.method in _CUTTING and not call.qualified:
        return True
    return bool(_COPYING.search(call.qualified)) or gradients(call.context) is False


def cut_source(value: Value) -> Value | None:
    """What a cut was made in: the receiver of `.detach()`, the argument of `torch.tensor(...)`."""
    if isinstance(value, Attribute):
        return value.base
    if isinstance(value, Result):
        call = value.call
        if call.method in _CUTTING and not call.qualified:
            return call.receiver
        return call.argument(0, "data")
    return None


def layers(value: Value) -> Iterator[Value]:
    """The value itself, then what it is within each call that was followed to return it."""
    yield value
    if isinstance(value, Returned):
        yield from layers(value.value)
    elif isinstance(value, Either):
        for option in value.options:
            yield from layers(option)


def made_by(value: Value) -> tuple[Call, ...]:
    """The call that a value is the result of, whether or not its body was read."""
    return (value.call,) if isinstance(value, Result | Returned) else ()
