"""Networks that are set up to be trained, and whose parameters nothing ever asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.source.cuts import graph_of, made_by
from pytest_trainloop.source.events import Call, Event, Return, Store, Trace
from pytest_trainloop.source.frames import Inside
from pytest_trainloop.source.roles import is_optimizer
from pytest_trainloop.source.values import (
    Collection,
    Constant,
    Element,
    Instance,
    Result,
    Value,
    options,
)
from pytest_trainloop.source.verbs import is_clip

if TYPE_CHECKING:
    from pytest_trainloop.source.loops import TrainingLoop

#: How a class shows that it has weights of its own.
_HAS_WEIGHTS = re.compile(r"\b(?:Linear|Conv\w*|Embedding|LSTM|GRU|Parameter)\(")
#: Methods of a network that hand its parameters to nobody.
_QUIET = frozenset({"train", "eval", "reset_parameters", "zero_grad", "state_dict", "forward"})
_MOVING = frozenset({"to", "cuda", "cpu", "float", "double"})
#: What a network's own methods may ask of `self` that leads to its parameters.
_ASKING = re.compile(r"parameters|\w*modules|\w*children|load_state_dict|requires_grad_|apply")
#: What is given a network without training it.
_LOOKING = frozenset({"torch.save", "builtins.print", "builtins.str", "builtins.type"})


def unclaimed(loop: TrainingLoop, traces: Iterable[Trace]) -> Iterator[Instance]:
    """The networks behind the loop's losses that nothing in sight can update.

    Each is made in sight, and put in train mode, drawn anew or clipped; no optimizer, and
    nothing else, is given it or its parameters.
    """
    networks = _networks(loop) if _knows_its_optimizers(loop) else []
    events = [event for trace in traces for event in trace.events] if networks else []
    for network in networks:
        clipped = _clipped(events, network)
        is_meant = bool(clipped) or any(_is_set_up(event, network) for event in events)
        if is_meant and not any(_may_hand_on(event, network, clipped) for event in events):
            yield network


def _knows_its_optimizers(loop: TrainingLoop) -> bool:
    """Whether each optimizer that the loop steps was made in its trace."""
    made = [way for optimizer in loop.optimizers for way in options(optimizer)]
    return bool(made) and all(
        isinstance(way, Result)
        and is_optimizer(way)
        and any(way.call is call for call in loop.trace.calls)
        for way in made
    )


def _networks(loop: TrainingLoop) -> list[Instance]:
    """The modules of the user's own classes that the losses of the loop lead back to."""
    found: dict[int, Instance] = {}
    for backward in loop.backwards:
        reached = graph_of(backward.loss).reached if backward.loss is not None else ()
        for call in (call for value in reached for call in made_by(value)):
            callee = options(call.callee)
            network = callee[0] if len(callee) == 1 else None
            if isinstance(network, Instance) and network.call is not None and _is_own(network):
                found[id(network)] = network
    return list(found.values())


def _is_own(network: Instance) -> bool:
    """Whether its class is one in full sight with weights in it."""
    definition = network.definition
    rows = definition.file.lines[definition.place.line - 1 : definition.place.end_line]
    return (
        definition.is_module
        and all(
            not isinstance(base, str) or base.rpartition(".")[2] in ("Module", "object")
            for base in definition.ancestors()
        )
        and bool(_HAS_WEIGHTS.search("\n".join(rows)))
    )


def _is_set_up(event: Event, network: Instance) -> bool:
    """Whether it is put in train mode, or its weights are drawn anew from outside."""
    if not isinstance(event, Call) or not _is(event.receiver, network):
        return False
    if event.method == "reset_parameters":
        return not _is_within(event, network)
    is_on = all(isinstance(given, Constant) and given.value is True for given in event.args)
    return event.method == "train" and is_on


def _clipped(events: list[Event], network: Instance) -> list[Call]:
    """The calls of its `parameters()` that only serve to clip the gradients."""
    return [
        option.call
        for event in events
        if isinstance(event, Call) and is_clip(event) and event.args
        for option in options(event.args[0])
        if isinstance(option, Result)
        and option.call.method == "parameters"
        and _is(option.call.receiver, network)
    ]


def _may_hand_on(event: Event, network: Instance, clipped: list[Call]) -> bool:
    """Whether the event gives the network, or what is in it, to something that may train it."""
    if isinstance(event, Store):
        if event.kind == "name":
            return not _is(event.value, network) and _holds(event.value, network)
        return _holds(event.value, network) or (
            _is(event.owner, network) and not _is_within(event, network)
        )
    if isinstance(event, Return):
        return _holds(event.value, network) and not _is_inside(event)
    if not isinstance(event, Call) or any(event is call for call in clipped):
        return False
    if _is(event.receiver, network):
        if _is_within(event, network):
            return bool(_ASKING.search(event.method))
        is_quiet = event.method in _QUIET or event.method in _MOVING or _initializes(event)
        return not is_quiet and not _is_method(event, network)
    given = (*event.args, *event.keywords.values())
    is_told = event.followed or event.qualified in _LOOKING
    return not is_told and any(_holds(value, network) for value in given)


def _is_inside(event: Event) -> bool:
    """Whether it stands in a function that was read at its call, so that its value goes on."""
    return any(isinstance(frame, Inside) and frame.call is not None for frame in event.context)


def _is_within(event: Event, network: Instance) -> bool:
    """Whether it happens in a method of the network's own class, or of a base of it."""
    owners = [network.definition, *network.definition.ancestors()]
    return any(
        isinstance(frame, Inside) and any(frame.function.owner is owner for owner in owners)
        for frame in event.context
    )


def _initializes(call: Call) -> bool:
    """`net.apply(weights_init)`."""
    return call.method == "apply" and "init" in call.argument_text(0)


def _is_method(call: Call, network: Instance) -> bool:
    """Whether a method of the network's own class was read."""
    return call.followed and network.definition.method(call.method) is not None


def _is(value: Value | None, network: Instance) -> bool:
    """Whether a value is the network, or may be: as one of several things."""
    return value is not None and any(
        option is network or (isinstance(option, Element) and _holds(option.base, network))
        for option in options(value)
    )


def _holds(value: Value, network: Instance) -> bool:
    """Whether the value is the network, or a list or a dict of things with it among them."""
    return any(
        option is network
        or (isinstance(option, Collection) and any(_holds(item, network) for item in option.items))
        for option in options(value)
    )
