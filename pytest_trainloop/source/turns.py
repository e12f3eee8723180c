"""The order of events in one turn of a training loop, and what else comes along with an event."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

from pytest_trainloop.source.events import Call, Event
from pytest_trainloop.source.frames import Branch, Frame, Inside, Loop, Try, exclusive

if TYPE_CHECKING:
    from pytest_trainloop.source.loops import TrainingLoop

AnyEvent = TypeVar("AnyEvent", bound=Event)


def comes_along(event: Event, other: Event) -> bool:
    """Whether whoever comes by `other` comes by `event` too: it has no further condition."""
    return all(frame in other.context for frame in event.context if _is_condition(frame))


def _is_condition(frame: Frame) -> bool:
    return isinstance(frame, Branch) or (isinstance(frame, Try) and frame.arm == "handler")


def together(first: Event, second: Event) -> bool:
    """Whether two events can happen in one turn: they stand in no two arms of one branch."""
    return not exclusive(first.context, second.context)


def before(events: Iterable[AnyEvent], event: Event) -> list[AnyEvent]:
    """Those of the events that can happen in the same turn as `event`, and before it."""
    return [other for other in events if other.index < event.index and together(other, event)]


def after(events: Iterable[AnyEvent], event: Event) -> list[AnyEvent]:
    """Those of the events that can happen in the same turn as `event`, and after it."""
    return [other for other in events if other.index > event.index and together(other, event)]


def between(events: Iterable[AnyEvent], first: Event, second: Event) -> list[AnyEvent]:
    """Those of the events that happen after `first` and before `second`."""
    return [event for event in events if first.index < event.index < second.index]


def at_surface(loop: TrainingLoop, event: Event) -> Event:
    """Where the loop's own body comes to the event: itself, or the call that leads to it."""
    for frame in loop.inner(event):
        if isinstance(frame, Inside) and frame.call is not None:
            return frame.call
    return event


def is_out_of_order(loop: TrainingLoop, event: Event) -> bool:
    """Whether its place in the order says nothing: in a function handed over, or in a step itself.

    A step is on record before what an optimizer of the user's own does in it.
    """
    steps = [step.call for step in loop.steps]
    return any(
        isinstance(frame, Inside) and (frame.handed or frame.call in steps)
        for frame in loop.inner(event)
    )


def only_statement(loop: TrainingLoop, call: Call) -> Frame | Call | None:
    """What to move in order to move the call: its statement, or the `if` that guards nothing else.

    None where the call is neither a statement of the loop's own body nor alone in such an `if`.
    """
    inner = loop.inner(call)
    if not call.discarded or any(isinstance(frame, Inside | Loop | Try) for frame in inner):
        return None
    guard = call.context[-1] if inner and isinstance(call.context[-1], Branch) else None
    if guard is None:
        return call
    if guard.arm != "body" or not _is_alone(loop, call, guard):
        return call
    return guard


def _is_alone(loop: TrainingLoop, call: Call, guard: Branch) -> bool:
    return all(
        call.place.line <= event.line and _end(event) <= call.place.end_line
        for event in loop.trace.events
        if any(isinstance(frame, Branch) and frame.node is guard.node for frame in event.context)
    )


def _end(event: Event) -> int:
    return event.place.end_line
