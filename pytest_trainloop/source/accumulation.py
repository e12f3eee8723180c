"""Gradient accumulation: several backward calls for one optimizer step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.source.frames import Branch, With
from pytest_trainloop.source.turns import before
from pytest_trainloop.source.values import Operation, Result, Value, options, spelling

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Event
    from pytest_trainloop.source.frames import Loop
    from pytest_trainloop.source.loops import Backward, Step, TrainingLoop
    from pytest_trainloop.source.place import Place

_COUNTING_NAME = re.compile(r"accum|micro_?(?:batch|step)|grad_?acc", re.IGNORECASE)
_COMMENT = re.compile(r"\s+#.*$")
_MODULUS_TEXT = re.compile(r"%\s*([A-Za-z_][\w.]*(?:\[[\"']?\w+[\"']?\])?|\d+)")


@dataclass(frozen=True, eq=False)
class Accumulation:
    """A step that sums up the gradients of several micro-batches.

    Either `guard` lets only every k-th turn of the loop step, or `micro_batches` is an
    inner loop that holds the backward and not the step.
    """

    loop: TrainingLoop
    step: Step
    backward: Backward
    guard: Branch | None = None
    micro_batches: Loop | None = None

    @property
    def header(self) -> str:
        """The line that makes one step of several backward calls."""
        frame = self.guard or self.micro_batches
        line = frame.file.lines[frame.line - 1] if frame is not None else ""
        return _COMMENT.sub("", line).strip()

    @property
    def guard_place(self) -> Place:
        """Where the condition of the guard stands; the step's own place without a guard."""
        if self.guard is None:
            return self.step.call.place
        test = getattr(self.guard.node, "test", self.guard.node)
        return self.guard.file.place(test)

    @property
    def modulus(self) -> Value | None:
        """How many micro-batches make an update, where the guard takes a remainder by it."""
        return _modulus(self.guard.test) if self.guard is not None else None

    @property
    def modulus_text(self) -> str:
        """The modulus as written in the guard; empty where the guard does not show it."""
        found = _MODULUS_TEXT.search(self.guard.test_text) if self.guard is not None else None
        return found.group(1) if found else ""

    @property
    def is_managed(self) -> bool:
        """Whether Accelerate's `accumulate` decides when the optimizer's methods do something."""
        return is_managed(self.backward.call)

    @property
    def is_reset_by_step(self) -> bool:
        """Whether the gradients are cleared where the step is, and only there."""
        clearings = self.loop.clearings
        return bool(clearings) and all(
            any(is_counting(frame) for frame in self.loop.guards(event)) for event in clearings
        )

    @property
    def counts_in_range(self) -> bool:
        """Whether the inner loop counts micro-batches: `for micro_step in range(...)`."""
        loop = self.micro_batches
        if loop is None or loop.kind != "for":
            return False
        source = loop.source
        is_range = isinstance(source, Result) and source.call.qualified == "builtins.range"
        return is_range and bool(_COUNTING_NAME.search(loop.header))

    def is_every_time(self, event: Event) -> bool:
        """Whether every micro-batch comes by the event, whether or not it is the last one."""
        around = self.micro_batches or self.loop.loop
        return around in event.context and not _counts(self.loop, event, self.backward.call)


def is_managed(event: Event) -> bool:
    """Whether the event stands under Accelerate's `accumulate`."""
    return any(
        isinstance(option, Result) and option.call.method == "accumulate"
        for frame in event.context
        if isinstance(frame, With)
        for manager in frame.managers
        for option in options(manager)
    )


def accumulations(loop: TrainingLoop) -> Iterator[Accumulation]:
    """The steps of a loop that take up the gradients of several backward calls."""
    if loop.loop is None or not loop.steps:
        return
    for step in loop.steps:
        earlier = before([backward.call for backward in loop.backwards], step.call)
        if not earlier:
            continue
        nearest = next(item for item in loop.backwards if item.call is earlier[-1])
        found = _of(loop, step, nearest)
        if found is not None:
            yield found


def _of(loop: TrainingLoop, step: Step, backward: Backward) -> Accumulation | None:
    around = [inner for inner in loop.inner_loops(backward.call) if inner.kind != "comprehension"]
    if around and around[-1] not in step.call.context:
        return Accumulation(loop, step, backward, micro_batches=around[-1])
    for guard in loop.guards(step.call):
        if is_counting(guard) and not _counts(loop, backward.call, step.call):
            if guard not in backward.call.context:
                return Accumulation(loop, step, backward, guard=guard)
    return None


def _counts(loop: TrainingLoop, event: Event, other: Event) -> bool:
    """Whether the event depends on a count that `other` does not depend on."""
    return any(is_counting(guard) for guard in loop.guards(event) if guard not in other.context)


def is_counting(guard: Branch) -> bool:
    """Whether a condition holds at every k-th micro-batch only."""
    return any(
        (isinstance(value, Operation) and value.operator == "%")
        or _COUNTING_NAME.search(spelling(value))
        for value in _terms(guard.test)
    )


def _modulus(test: Value) -> Value | None:
    for value in _terms(test):
        if isinstance(value, Operation) and value.operator == "%":
            return value.operands[-1]
    return None


def _terms(test: Value) -> Iterator[Value]:
    """What a condition is put together from, without what goes into calls and attributes."""
    for option in options(test):
        yield option
        if isinstance(option, Operation):
            for operand in option.operands:
                yield from _terms(operand)
