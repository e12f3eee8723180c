"""Events by which a program deals with `.grad` itself, or lets code out of sight do so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_trainloop.source.attachment import is_forward
from pytest_trainloop.source.events import Call, Event, Store
from pytest_trainloop.source.roles import is_model, is_optimizer
from pytest_trainloop.source.values import (
    Attribute,
    Constant,
    Element,
    Function,
    Operation,
    Parameter,
    Result,
    Returned,
    Unknown,
    Value,
    options,
    origins,
    spelling,
)
from pytest_trainloop.source.verbs import (
    is_backward,
    is_clearing,
    is_clip,
    is_known_harmless,
    is_unscale,
    stepped_optimizer,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.loops import Step

_GRADIENT_NAME = re.compile(r"grad", re.IGNORECASE)
#: Methods of models and optimizers that leave gradients as they are.
_QUIET = frozenset(
    [
        "parameters",
        "named_parameters",
        "state_dict",
        "load_state_dict",
        "train",
        "eval",
        "to",
        "cuda",
        "step",
        "update",
        "zero_grad",
        "item",
        "detach",
        "append",
        "extend",
        "requires_grad_",
        "enable_gradient_checkpointing",
        "gradient_checkpointing_enable",
        "add_scalar",
        "log",
        "info",
        "print",
        "save",
        "write",
        "format",
        "set_postfix",
        "param_groups",
    ]
)


def may_set_gradients(event: Event) -> bool:
    """Whether the event puts something into `.grad`, or may, other than by a backward in sight."""
    if isinstance(event, Store):
        return event.target.endswith((".grad", ".grad.data"))
    return isinstance(event, Call) and (is_backward(event) or _handles_gradients(event))


def may_use_gradients(event: Event) -> bool:
    """Whether the event reads `.grad`, or may: to keep it, to average it, to apply it by hand."""
    if isinstance(event, Store):
        changes = bool(event.augmented) and event.target.endswith((".grad", ".grad.data"))
        return changes or any(_is_gradient(value) for value in origins(event.value, 30))
    return isinstance(event, Call) and not is_backward(event) and _handles_gradients(event)


def _handles_gradients(call: Call) -> bool:
    if call.followed or is_clip(call) or is_clearing(call) or is_unscale(call):
        return False
    if any(_is_made_of_gradients(given) for given in call.inputs):
        return True
    if is_known_harmless(call) or stepped_optimizer(call) is not None or call.method in _QUIET:
        return call.qualified == "torch.autograd.grad"
    if _GRADIENT_NAME.search(call.method):
        return True
    if isinstance(call.receiver, Parameter | Unknown | Result | Returned | Element | Operation):
        return any(is_optimizer(value) for value in call.args)
    return any(is_optimizer(value) or _is_whole_model(value) for value in call.args)


#: What is known by its name alone, and names that are of something that a model has.
_NAMED = (Attribute, Parameter, Unknown)
_IS_ABOUT = re.compile(
    r"_(?:name|path|dir|type|id|config|cfg|args|kwargs|file|size|dim|backend|input|output)s?$"
)


def _is_whole_model(value: Value) -> bool:
    """Whether the value is a model, and not one of a sequence, nor what a model computed."""
    return is_model(value) and not any(
        (isinstance(option, _NAMED) and _IS_ABOUT.search(spelling(option)))
        or isinstance(option, Element)
        or (isinstance(option, Result) and is_forward(option.call))
        for option in options(value)
    )


def _is_gradient(value: Value) -> bool:
    return isinstance(value, Attribute) and value.name == "grad"


def _is_made_of_gradients(value: Value) -> bool:
    """Whether the value is a gradient, a part of one, or computed from one."""
    while isinstance(value, Attribute | Element) and not _is_gradient(value):
        value = value.base
    if isinstance(value, Operation):
        return any(_is_made_of_gradients(operand) for operand in value.operands)
    return _is_gradient(value)


def has_more_arguments(step: Step) -> bool:
    """Whether the step is given a closure out of sight, or a context that keeps its gradients."""
    call = step.call
    if call.receiver is not step.optimizer:
        return False
    given = (*call.args, *call.keywords.values())
    return call.starred or any(not isinstance(value, Constant | Function) for value in given)


#: A limit that no gradient reaches: the call is there for the norm that it returns.
_NO_LIMIT = re.compile(r"inf(?:inity)?\b", re.IGNORECASE)
_HUGE = 1e5


def is_measuring(clip: Call) -> bool:
    """Whether a clip has no limit, so that it only measures the norm."""
    limit = clip.argument(1, "max_norm")
    if isinstance(limit, Constant) and isinstance(limit.value, int | float):
        return limit.value >= _HUGE
    return bool(_NO_LIMIT.search(clip.argument_text(1, "max_norm")))
