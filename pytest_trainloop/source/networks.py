"""Which network an optimizer trains, and whose gradients a backward computes besides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.source.cuts import graph_of, made_by
from pytest_trainloop.source.roles import is_optimizer, same
from pytest_trainloop.source.turns import between, comes_along
from pytest_trainloop.source.values import Collection, Value, options, origins
from pytest_trainloop.source.verbs import cleared

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Call, Event
    from pytest_trainloop.source.loops import Backward, Step, TrainingLoop


def is_output_of(value: Value, optimizer: Value) -> bool:
    """Whether the value is the output of a network that the optimizer was made from."""
    return any(trains(optimizer, call) for call in made_by(value))


def trains(optimizer: Value, forward: Call) -> bool:
    """Whether the call is the forward of a network that the optimizer was made from."""
    return any(same(forward.callee, network) for network in networks_of(optimizer))


def networks_of(optimizer: Value) -> tuple[Value, ...]:
    """The networks whose `parameters()` an optimizer was made from, as far as that is in sight."""
    calls = (call for origin in origins(optimizer, 60) for call in made_by(origin))
    return tuple(
        call.receiver
        for call in calls
        if call.method in ("parameters", "named_parameters") and call.receiver is not None
    )


@dataclass(frozen=True, eq=False)
class MixedGradients:
    """Gradients of one network that are left over from the update of another.

    `stray` computes them beside those that `meant_for` uses; `own` adds the network's own,
    and `step` applies the sum.
    """

    stray: Backward
    meant_for: Step
    own: Backward
    step: Step


def mixed_gradients(loop: TrainingLoop) -> Iterator[MixedGradients]:
    """Where two networks that judge each other are updated in turn, without a clearing between."""
    for stray, own in zip(loop.backwards, loop.backwards[1:], strict=False):
        first, second = _steps_after(loop, stray, own), _steps_after(loop, own, None)
        if len(first) != 1 or len(second) != 1 or same(first[0].optimizer, second[0].optimizer):
            continue
        found = MixedGradients(stray, first[0], own, second[0])
        is_mixed = _is_straight(found) and _reaches_both(found) and _judges(found)
        if is_mixed and not _is_cleared(loop, found):
            yield found


def _steps_after(loop: TrainingLoop, backward: Backward, until: Backward | None) -> list[Step]:
    later = [item.call.index for item in loop.backwards if item.call.index > backward.call.index]
    end = until.call.index if until is not None else min(later, default=len(loop.trace.events))
    return [step for step in loop.steps if backward.call.index < step.call.index < end]


def _is_straight(found: MixedGradients) -> bool:
    """Whether all four happen one after the other, whenever the last one does."""
    calls = (found.stray.call, found.meant_for.call, found.own.call)
    return all(comes_along(call, found.step.call) for call in calls)


def _reaches_both(found: MixedGradients) -> bool:
    """Whether both losses lead to the outputs of both networks."""
    return all(
        backward.loss is not None
        and any(is_output_of(value, step.optimizer) for value in graph_of(backward.loss).reached)
        for backward in (found.stray, found.own)
        for step in (found.meant_for, found.step)
    )


def _judges(found: MixedGradients) -> bool:
    """Whether the stray loss trains the one network as a judge of the other's output."""
    judge, judged = found.meant_for.optimizer, found.step.optimizer
    return _is_fed(found.stray, judge, judged) and not _is_fed(found.stray, judged, judge)


def _is_fed(backward: Backward, taker: Value, giver: Value) -> bool:
    """Whether, on the way to the loss, one optimizer's network takes the output of another's."""
    reached = graph_of(backward.loss).reached if backward.loss is not None else ()
    forwards = [call for value in reached for call in made_by(value) if trains(taker, call)]
    return any(
        is_output_of(value, giver)
        for call in forwards
        for given in call.args
        for value in graph_of(given).reached
    )


def _is_cleared(loop: TrainingLoop, found: MixedGradients) -> bool:
    """Whether something between the two backward calls clears the second network, or may."""
    return any(
        _may_clear(event, found.step.optimizer)
        for event in between(loop.clearings, found.stray.call, found.own.call)
    )


def _may_clear(event: Event, optimizer: Value) -> bool:
    target = cleared(event)
    if target is None or any(isinstance(option, Collection) for option in options(target)):
        return True
    return same(target, optimizer) if is_optimizer(target) else True
