"""The verbs of training, told from the calls that mean them."""

from __future__ import annotations

import re

from pytest_trainloop.source.events import Call, Delete, Event, Store
from pytest_trainloop.source.roles import (
    is_accelerator,
    is_engine,
    is_fabric,
    is_optimizer,
    is_scaler,
    is_scheduler,
)
from pytest_trainloop.source.values import (
    Attribute,
    Function,
    Instance,
    Operation,
    Result,
    Super,
    Value,
    constant,
    options,
)

_CLEARING_NAME = re.compile(
    r"(?:zero|reset|clear|clean).*grad|grad.*(?:zero|reset|clear)", re.IGNORECASE
)


def is_backward(call: Call) -> bool:
    """Whether the call back-propagates into parameters' `.grad`."""
    if call.qualified == "torch.autograd.backward":
        return True
    if call.method == "manual_backward":
        return True
    if call.method != "backward" or call.qualified:
        return False
    return not isinstance(call.receiver, Super) and not call.followed


def loss_of(call: Call) -> Value | None:
    """What a backward call back-propagates, with the loss scale taken off."""
    receiver = call.receiver
    if call.args and (
        receiver is None
        or call.method == "manual_backward"
        or call.qualified == "torch.autograd.backward"
        or is_accelerator(receiver)
        or is_fabric(receiver)
        or is_engine(receiver)
    ):
        return call.args[0]
    if receiver is None:
        return None
    for option in options(receiver):
        if isinstance(option, Result) and option.call.method == "scale" and option.call.args:
            return option.call.args[0]
    return receiver


def is_scaled_backward(call: Call) -> bool:
    """Whether the loss is multiplied by a gradient scaler before it is back-propagated."""
    return call.receiver is not None and any(
        isinstance(option, Result)
        and option.call.method == "scale"
        and option.call.receiver is not None
        for option in options(call.receiver)
    )


def stepped_optimizer(call: Call) -> Value | None:
    """The optimizer that the call steps, or None if it is no optimizer step.

    `optimizer.step()`, and `scaler.step(optimizer)`.
    """
    if call.method in ("step", "second_step") and call.receiver is not None:
        if call.args and is_scaler(call.receiver):
            return call.args[0]
        if is_scheduler(call.receiver):
            return None
        if is_optimizer(call.receiver) and not _is_own_step(call):
            return call.receiver
    return None


def _is_own_step(call: Call) -> bool:
    return isinstance(call.receiver, Super)


def is_engine_step(call: Call) -> bool:
    """Whether an engine steps (and clears) for itself."""
    return call.method == "step" and call.receiver is not None and is_engine(call.receiver)


def is_scheduler_step(call: Call) -> bool:
    """Whether the call steps a learning-rate scheduler."""
    return (
        call.method in ("step", "step_update")
        and call.receiver is not None
        and is_scheduler(call.receiver)
        and call.discarded
    )


def is_clearing(event: Event) -> bool:
    """Whether the event clears gradients of something, in any of the ways there are."""
    if isinstance(event, Call):
        if _CLEARING_NAME.search(event.method):
            return True
        if event.method in ("zero_", "fill_") and _is_grad(event.receiver):
            return True
        given = event.keywords.get("zero_grad")
        return given is not None and constant(given) is not False
    if isinstance(event, Store):
        return event.kind == "attribute" and event.target.endswith(".grad") and not event.augmented
    return isinstance(event, Delete) and event.target.endswith(".grad")


def _is_grad(value: Value | None) -> bool:
    while isinstance(value, Attribute) and value.name == "data":
        value = value.base
    return isinstance(value, Attribute) and value.name == "grad"


def cleared(event: Event) -> Value | None:
    """Whose gradients the event clears: an optimizer or a module; None if that is not told."""
    if isinstance(event, Call) and event.method == "zero_grad" and event.receiver is not None:
        return event.receiver
    return None


_CLIPS = frozenset(
    {
        "clip_grad_norm_",
        "clip_grad_value_",
        "clip_grad_norm",
        "clip_grads_with_norm_",
        "clip_gradients",
        "clip_grad_value",
        "clip_grad",
    }
)


def is_clip(call: Call) -> bool:
    """Whether the call clips gradients."""
    return call.method in _CLIPS


def is_unscale(call: Call) -> bool:
    """Whether the call takes the loss scale off the gradients."""
    return call.method in ("unscale_", "unscale_gradients")


def may_do_anything(call: Call, *targets: Value) -> bool:
    """Whether the call goes to code out of sight that is given one of the values."""
    if call.followed or is_known_harmless(call):
        return False
    # By identity, and in one look at each: there are many calls, with many values, in a loop.
    wanted = {id(option) for target in targets for option in options(target)}
    return any(
        id(option) in wanted or _holds_one(option, wanted)
        for given in call.inputs
        for option in options(given)
    )


def _holds_one(value: Value, wanted: set[int]) -> bool:
    if isinstance(value, _OPAQUE):
        return False
    return any(id(inner) in wanted for part in value.parts()[:8] for inner in options(part))


#: What is made from its parts, and does not hand them on.
_OPAQUE = (Instance, Function, Operation, Attribute, Result)

#: Torch's own functions and methods do what they say and no more.
_TORCH = ("torch.", "builtins.", "math.", "numpy.", "os.", "time.", "logging.", "json.", "random.")


def is_known_harmless(call: Call) -> bool:
    """Whether the callee is known well enough to rule out that it trains, clears or steps."""
    # A state dict is a reading, whoever gives it: a checkpoint saved in the loop clears nothing.
    return call.qualified.startswith(_TORCH) or call.method == "state_dict"
