"""Training loops: the smallest loops that both back-propagate and step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_trainloop.source.events import Call, Event, Store, Trace
from pytest_trainloop.source.frames import Branch, Context, Inside, Loop, common, exclusive
from pytest_trainloop.source.roles import same
from pytest_trainloop.source.verbs import (
    is_backward,
    is_clearing,
    is_clip,
    is_engine_step,
    is_scheduler_step,
    is_unscale,
    loss_of,
    stepped_optimizer,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.values import Value


@dataclass(slots=True, eq=False, repr=False)
class Step:
    """An optimizer step, and the optimizer that it steps."""

    call: Call
    optimizer: Value

    @property
    def optimizer_text(self) -> str:
        """The optimizer as written at the step."""
        if self.call.receiver is not self.optimizer:
            return self.call.argument_text(0)
        return self.call.receiver_text


@dataclass(slots=True, eq=False, repr=False)
class Backward:
    """A backward call, and the loss that it back-propagates (without its loss scale)."""

    call: Call
    loss: Value | None


@dataclass(eq=False, repr=False)
class TrainingLoop:
    """The verbs of one training loop, in order.

    `context` ends with the loop. Where backward and step share no loop in sight, they
    make a step function: `loop` is None, and `context` ends with the function.
    """

    trace: Trace
    context: Context
    loop: Loop | None

    @cached_property
    def events(self) -> list[Event]:
        """All that happens in one turn of the loop, in order, followed calls included."""
        return self.trace.inside(self.context)

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The calls in one turn of the loop."""
        return tuple(event for event in self.events if isinstance(event, Call))

    @cached_property
    def stores(self) -> tuple[Store, ...]:
        """The bindings in one turn of the loop."""
        return tuple(event for event in self.events if isinstance(event, Store))

    @cached_property
    def backwards(self) -> tuple[Backward, ...]:
        """The backward calls."""
        return tuple(Backward(call, loss_of(call)) for call in self.calls if is_backward(call))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The optimizer steps."""
        found = ((call, stepped_optimizer(call)) for call in self.calls)
        return tuple(Step(call, optimizer) for call, optimizer in found if optimizer is not None)

    @cached_property
    def clearings(self) -> tuple[Event, ...]:
        """Whatever clears gradients."""
        return tuple(event for event in self.events if is_clearing(event))

    @cached_property
    def clips(self) -> tuple[Call, ...]:
        """The calls that clip gradients."""
        return tuple(call for call in self.calls if is_clip(call))

    @cached_property
    def unscales(self) -> tuple[Call, ...]:
        """The calls that take the loss scale off the gradients."""
        return tuple(call for call in self.calls if is_unscale(call))

    @cached_property
    def scheduler_steps(self) -> tuple[Call, ...]:
        """The learning-rate scheduler's steps."""
        return tuple(call for call in self.calls if is_scheduler_step(call))

    @cached_property
    def optimizers(self) -> tuple[Value, ...]:
        """The distinct optimizers that are stepped."""
        found: list[Value] = []
        for step in self.steps:
            if not any(same(step.optimizer, known) for known in found):
                found.append(step.optimizer)
        return tuple(found)

    def inner(self, event: Event) -> Context:
        """The frames of an event inside the loop."""
        return event.context[len(self.context) :]

    def guards(self, event: Event) -> tuple[Branch, ...]:
        """The branches inside the loop that an event depends on, outermost first."""
        return tuple(frame for frame in self.inner(event) if isinstance(frame, Branch))

    def inner_loops(self, event: Event) -> tuple[Loop, ...]:
        """The loops inside the loop that repeat an event, outermost first."""
        return tuple(frame for frame in self.inner(event) if isinstance(frame, Loop))

    def is_unconditional(self, event: Event) -> bool:
        """Whether every turn of the loop comes by the event."""
        return not self.guards(event)

    @property
    def is_handed(self) -> bool:
        """Whether some code out of sight drives the loop's function."""
        return any(isinstance(frame, Inside) and frame.handed for frame in self.context)


def training_loops(trace: Trace) -> list[TrainingLoop]:
    """The training loops of a trace, in order of their first step, an engine's included."""
    backwards = [call for call in trace.calls if is_backward(call)]
    found: dict[int, TrainingLoop] = {}
    for call in trace.calls:
        if not backwards or (stepped_optimizer(call) is None and not is_engine_step(call)):
            continue
        context = _smallest(call, backwards)
        if context is not None:
            loop = context[-1] if context and isinstance(context[-1], Loop) else None
            key = id(context[-1]) if context else 0
            found.setdefault(key, TrainingLoop(trace, context, loop))
    return list(found.values())


def _smallest(step: Call, backwards: list[Call]) -> Context | None:
    """The context of the smallest loop, else function, that holds the step and a backward."""
    best: Context | None = None
    for backward in backwards:
        if exclusive(step.context, backward.context):
            continue
        shared = common(step.context, backward.context)
        if best is None or len(shared) > len(best):
            best = shared
    if best is None:
        return None
    for kind in (Loop, Inside):
        for depth in range(len(best), 0, -1):
            frame = best[depth - 1]
            if isinstance(frame, kind) and getattr(frame, "kind", "") != "comprehension":
                return best[:depth]
    return ()
