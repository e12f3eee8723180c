"""Loss functions: which one a call is, and what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trainloop.source.imports import canonical
from pytest_trainloop.source.values import Imported, Result, Value, options

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Call

_FUNCTIONS = "torch.nn.functional."
#: Torch's loss classes, under the names of the functions that compute the same.
_CLASSES = {
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
    "NLLLoss2d": "nll_loss",
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "MSELoss": "mse_loss",
    "L1Loss": "l1_loss",
    "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
}
_LOSSES = frozenset(_CLASSES.values())


def criterion_of(call: Call) -> str:
    """Which of torch's loss functions a call computes (`cross_entropy`), or "".

    A call of a loss object counts where every way to it makes the same kind of loss.
    """
    found = {_criterion(option) for option in options(call.callee)}
    return found.pop() if len(found) == 1 else ""


def _criterion(callee: Value) -> str:
    if isinstance(callee, Imported):
        module, _, name = canonical(callee.qualified).rpartition(".")
        return name if f"{module}." == _FUNCTIONS and name in _LOSSES else ""
    if isinstance(callee, Result):
        module, _, name = callee.call.qualified.rpartition(".")
        return _CLASSES.get(name, "") if module == "torch.nn" else ""
    return ""


def criterion_maker(call: Call) -> Call:
    """The call that holds a loss function's options: the one that made the object, or `call`."""
    for option in options(call.callee):
        if isinstance(option, Result):
            return option.call
    return call


def predicted(call: Call) -> Value | None:
    """The first argument of a loss function: what the model says."""
    return call.argument(0, "input")


def expected(call: Call) -> Value | None:
    """The second argument of a loss function: what it should have said."""
    return call.argument(1, "target")
