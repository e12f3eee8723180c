"""Distributed replicas: models wrapped in `DistributedDataParallel`, and the way past it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.source.values import (
    Attribute,
    Collection,
    Either,
    Imported,
    Returned,
    Value,
    options,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Call, Trace

_WRAPPERS = frozenset(
    {
        "torch.nn.parallel.DistributedDataParallel",
        "torch.nn.parallel.distributed.DistributedDataParallel",
    }
)


def alternatives(value: Value) -> Iterator[Value]:
    """What a value can be; followed functions are looked through, wrappers are not."""
    if isinstance(value, Either):
        for option in value.options:
            yield from alternatives(option)
    elif isinstance(value, Returned) and value.call.followed:
        yield from alternatives(value.value)
    else:
        yield value


def wraps_replica(call: Call) -> bool:
    """Whether the call is `DistributedDataParallel(model)`."""
    return call.qualified in _WRAPPERS


def is_replica(value: Value) -> bool:
    """Whether one of the alternatives surely is a model wrapped in `DistributedDataParallel`."""
    return any(
        isinstance(option, Returned) and (wraps_replica(option.call) or is_replica(option.value))
        for option in alternatives(value)
    )


def replicas(trace: Trace) -> list[tuple[Call, Value]]:
    """The wrapping calls of a trace, each with the model that it wraps."""
    found = []
    for call in trace.calls:
        if wraps_replica(call):
            model = call.argument(0, "module")
            if model is not None:
                found.append((call, model))
    return found


def is_asked_for_replica(trace: Trace, value: Value) -> bool:
    """Whether the code asks `isinstance(value, DistributedDataParallel)` somewhere."""
    return any(
        call.qualified == "builtins.isinstance"
        and any(_names_wrapper(kinds) for kinds in call.args[1:])
        and any(one is other for one in options(call.args[0]) for other in options(value))
        for call in trace.calls
    )


def _names_wrapper(value: Value) -> bool:
    if isinstance(value, Collection):
        return any(_names_wrapper(item) for item in value.items)
    return isinstance(value, Imported) and value.qualified in _WRAPPERS


def unwrapped(value: Value) -> Iterator[Value]:
    """Of which values a value is the `.module`, as far as it is written like that."""
    for option in alternatives(value):
        if isinstance(option, Attribute) and option.name == "module":
            yield option.base
