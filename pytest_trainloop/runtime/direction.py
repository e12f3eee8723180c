"""Read from the graph of a loss which way it pulls at its criterion: down, or, negated, up.

Said only where the graph is a straight line: the loss is one criterion, negated or not, scaled
by positive numbers and averaged, and the criterion judges what a trained linear layer predicts
against a target that is no part of the graph. A sum of losses, a weight of its own for each
example (policy gradients), a classifier that is not trained here (adversarial inputs,
generators) are all something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_trainloop.runtime.graph import node_name, saved_number, source_of
from pytest_trainloop.runtime.sightings import Pull

if TYPE_CHECKING:
    from torch import Tensor

#: Nodes passed between the loss and its criterion, and between that and the layer.
_FAR = 12
_CRITERIA = {
    "BinaryCrossEntropy": "binary_cross_entropy",
    "BinaryCrossEntropyWithLogits": "binary_cross_entropy_with_logits",
    "HuberLoss": "huber_loss",
    "L1Loss": "l1_loss",
    "MseLoss": "mse_loss",
    "SmoothL1Loss": "smooth_l1_loss",
}
_LINEAR = frozenset(("Addmm", "Mm", "Bmm", "Linear", "Convolution"))
_AVERAGES = frozenset(("Mean", "Sum"))


def pull_of(losses: list[Tensor], where: str) -> Pull:
    """At which criterion a loss that is back-propagated at `where` pulls, and which way."""
    unknown = Pull(where, "", negated=False)
    node = losses[0].grad_fn if len(losses) == 1 else None
    negated = False
    for _ in range(_FAR):
        name = node_name(node)
        if name == "Neg":
            negated = not negated
        elif (name in ("Mul", "Div") and not _by_positive_number(node)) or name == "":
            return unknown
        elif name not in ("Mul", "Div") and name not in _AVERAGES:
            break
        node = source_of(node, 0)
    kind, prediction = _criterion(node)
    return Pull(where, kind, negated) if kind and _is_trained(prediction) else unknown


def _by_positive_number(node: Any) -> bool:
    if any(function is not None for function, _ in node.next_functions[1:]):
        return False
    factor = saved_number(node, "other")
    return factor is not None and factor > 0


def _criterion(node: Any) -> tuple[str, Any]:
    """The criterion that `node` is, and what computed its input; nothing for other nodes."""
    name = node_name(node)
    if name in ("NllLoss", "NllLoss2D"):
        softmax = source_of(node, 0)
        if node_name(softmax) != "LogSoftmax":
            return "", None
        return "cross_entropy", source_of(softmax, 0)
    if name == "Abs" and node_name(source_of(node, 0)) == "Sub":
        # This is how torch computes the `l1_loss`.
        node, name = source_of(node, 0), "L1Loss"
    if any(function is not None for function, _ in getattr(node, "next_functions", ())[1:]):
        # The target, or a weight, is learnt too.
        return "", None
    prediction = source_of(node, 0) if name in _CRITERIA else None
    return _CRITERIA.get(name, ""), prediction


def _is_trained(layer: Any) -> bool:
    """Whether a prediction comes from a linear layer whose weight gets a gradient."""
    if node_name(layer) == "Sigmoid":
        layer = source_of(layer, 0)
    if node_name(layer) not in _LINEAR:
        return False
    sources = [source_of(layer, position) for position in range(len(layer.next_functions))]
    return any(node_name(source).endswith("AccumulateGrad") for source in sources)
