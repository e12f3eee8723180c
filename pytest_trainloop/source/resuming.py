"""Whether training goes on where it was left, after weights were loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.source.events import Call, Leave
from pytest_trainloop.source.frames import Branch, Inside, Loop, loops_of
from pytest_trainloop.source.values import (
    Constant,
    Imported,
    Result,
    Unknown,
    Value,
    options,
    origins,
    spelling,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.loops import TrainingLoop

_LOADERS = re.compile(r"^(?:load|torch_load|load_checkpoint|load_ckpt|load_snapshot|load_file)$")
_RESUMING = re.compile(r"resum", re.IGNORECASE)


def is_loaded(value: Value) -> bool:
    """Whether the value was read from a file of the user's own."""
    if not isinstance(value, Result) or not _LOADERS.match(value.call.method):
        return False
    return not value.call.qualified.startswith(("numpy.", "json.", "yaml.", "pickle.", "torch.hub"))


def goes_on(load: Call, training: TrainingLoop) -> bool:
    """Whether the load is there for the training loop to go on where it was left."""
    starts = list(_starts(training))
    loaded = {id(value.call.node) for value in _loaded_in(load.args)}
    if any(id(value.call.node) in loaded for value in _loaded_in(starts)):
        return True
    if not _precedes(load, training):
        return False
    if _skips_what_was_done(load, training):
        return True
    if _may_leave_out(load):
        return False
    if _is_named(load):
        return True
    chosen = {id(value) for value in _choosing(load)}
    return any(id(option) in chosen for start in starts for option in options(start))


def _starts(training: TrainingLoop) -> Iterator[Value]:
    """Where the counters of the loops around the training start."""
    for loop in loops_of(training.context):
        yield from start_of(loop)


def start_of(loop: Loop) -> Iterator[Value]:
    """What `range` starts at in the header of a loop: nothing where it starts at 0."""
    for value in origins(loop.source, limit=20):
        if not isinstance(value, Result) or value.call.method not in ("range", "trange"):
            continue
        if len(value.call.args) > 1:
            yield value.call.args[0]
    if loop.kind == "while":
        yield loop.source


def _loaded_in(values: Iterable[Value]) -> Iterator[Result]:
    for value in values:
        for origin in origins(value):
            if isinstance(origin, Result) and is_loaded(origin):
                yield origin


def _may_leave_out(load: Call) -> bool:
    """Whether only what fits is loaded, as one does to begin something new."""
    strict = load.argument(1, "strict")
    return strict is not None and not (isinstance(strict, Constant) and strict.value)


def _precedes(load: Call, training: TrainingLoop) -> bool:
    """Whether the load and the training are of one run, the load first."""
    if not training.steps:
        return False
    step = training.steps[-1].call
    same_trace = any(event is load for event in training.trace.calls)
    return same_trace and load.index < step.index and not _in_loop(load, training)


def _skips_what_was_done(load: Call, training: TrainingLoop) -> bool:
    """Whether turns of a loop around the training are left out by what chose the file."""
    around = loops_of(training.context)
    files = [given for result in _loaded_in(load.args) for given in result.call.args[:1]]
    chosen = {
        id(option)
        for file in files
        for option in options(file)
        if not isinstance(option, Constant | Imported)
    }
    for event in training.trace.events:
        if isinstance(event, Leave) and event.kind == "continue":
            guard = event.context[-1]
            if (
                loops_of(event.context)[-1] in around
                and isinstance(guard, Branch)
                and any(id(origin) in chosen for origin in origins(guard.test))
            ):
                return True
    return False


def _in_loop(load: Call, training: TrainingLoop) -> bool:
    around = loops_of(training.context)
    return any(loop in around for loop in loops_of(load.context))


def _is_named(load: Call) -> bool:
    """Whether the code around the load says that it resumes."""
    return any(
        (isinstance(frame, Branch) and frame.arm == "body" and _RESUMING.search(frame.test_text))
        or (isinstance(frame, Inside) and _RESUMING.search(frame.function.name))
        for frame in load.context
    )


def _choosing(load: Call) -> Iterator[Value]:
    """The settings that decide whether, and from which file, the weights are loaded."""
    guards = [frame.test for frame in load.context if isinstance(frame, Branch)]
    paths = [given for result in _loaded_in(load.args) for given in result.call.inputs]
    for value in (*guards, *paths):
        for origin in origins(value, limit=40):
            if not isinstance(origin, Constant | Imported) and not (
                isinstance(origin, Unknown) and not spelling(origin)
            ):
                yield origin
