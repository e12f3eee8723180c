"""Read from the graph of a loss which criteria computed it, and what those were given.

The graph says it exactly, and nothing has to be replaced to see it: a node `NllLossBackward0`
behind which there is a `LogSoftmaxBackward0` is a cross entropy, however it was called, and
what stands behind that made its input. Tensors that a node saved are looked at only where no
saved-tensor hook watches over them: asking would run the hook, or recompute a checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pytest_trainloop.runtime.graph import node_name, saved_tensor, source_of
from pytest_trainloop.runtime.sightings import Criterion, Values

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_trainloop.runtime.models import LiveModel

#: Nodes looked at: criteria stand near the loss.
_NEAR = 256
#: Operations that tell what the values are.
_FEEDERS = {
    "Softmax": "softmax",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "Addmm": "linear",
    "Mm": "linear",
    "Bmm": "linear",
    "Linear": "linear",
    "Convolution": "linear",
    "CompiledFunction": "compiled",
}
_LIKELIHOODS = frozenset({"NllLoss", "NllLoss2D"})
_COMPARISONS = {"MseLoss": "mse_loss", "SmoothL1Loss": "smooth_l1_loss", "HuberLoss": "huber_loss"}


def note_criteria(
    known: list[Criterion], losses: list[Tensor], where: str, models: list[LiveModel]
) -> None:
    """Add the criteria of losses that are back-propagated at `where` to the known ones."""
    looked_at: list[Criterion] = []
    for found in criteria_of(losses):
        found.where = where
        if any(found.is_same(one) for one in looked_at):
            continue
        looked_at.append(found)
        same = next((one for one in known if found.is_same(one)), None)
        if same is None:
            found.made_by = _only_maker(found.fed_by, models)
            known.append(found)
        else:
            same.looks += 1
            same.values = _together(same.values, found.values)


def criteria_of(losses: list[Tensor]) -> list[Criterion]:
    """The criteria that stand in the graphs of losses, nearest first."""
    return [criterion for node in _nodes(losses) for criterion in _criterion(node)]


def _nodes(losses: list[Tensor]) -> Iterator[Any]:
    waiting = deque(loss.grad_fn for loss in losses if loss.grad_fn is not None)
    seen = set(waiting)
    looked_at = 0
    while waiting and looked_at < _NEAR:
        node = waiting.popleft()
        looked_at += 1
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)


def _criterion(node: Any) -> Iterator[Criterion]:
    name = node_name(node)
    if name in _LIKELIHOODS:
        source = source_of(node, 0)
        if node_name(source) == "LogSoftmax":
            yield Criterion("cross_entropy", _feeder(source))
        else:
            yield Criterion(
                "nll_loss", _feeder(node), values=_values(saved_tensor(node, "self"), 1)
            )
    elif name == "Neg" and (logarithm := _weighted_logarithm(node)) is not None:
        yield Criterion("cross_entropy", _feeder(logarithm))
    elif name == "BinaryCrossEntropyWithLogits":
        values = _values(saved_tensor(node, "self"), None)
        yield Criterion("binary_cross_entropy_with_logits", _feeder(node), values=values)
    elif name in _COMPARISONS:
        if (shapes := _expanded(node)) is not None:
            yield Criterion(_COMPARISONS[name], "", broadcast=shapes)
    elif name in ("Mean", "Sum") and (compared := _by_hand(node)) is not None:
        yield compared


def _feeder(node: Any) -> str:
    return _FEEDERS.get(node_name(source_of(node, 0)), "")


def _weighted_logarithm(node: Any) -> Any:
    """The `log_softmax` in a cross entropy with probabilities as targets: -(p * log q).sum()."""
    product = source_of(source_of(node, 0), 0) if node_name(source_of(node, 0)) == "Sum" else None
    if node_name(product) != "Mul":
        return None
    factors = [source_of(product, position) for position in (0, 1)]
    logarithms = [factor for factor in factors if node_name(factor) == "LogSoftmax"]
    return logarithms[0] if len(logarithms) == 1 and None in factors else None


def _values(tensor: Tensor | None, rows: int | None) -> Values | None:
    """The range of some values, and whether each row of them sums to 1."""
    import torch

    if tensor is None or not tensor.numel():
        return None
    try:
        low, high = tensor.aminmax()
        sums = tensor.float().sum(rows if tensor.dim() > 1 else 0) if rows is not None else None
        normal = sums is not None and bool(torch.all((sums - 1).abs() < 1e-2))  # noqa: PLR2004
        return Values(tensor.numel(), float(low), float(high), normal)
    except (RuntimeError, NotImplementedError):
        # Values that cannot be read: sharded, on a device without values, being traced.
        return None


def _together(one: Values | None, other: Values | None) -> Values | None:
    if one is None or other is None:
        return None
    return Values(
        one.number + other.number,
        min(one.lowest, other.lowest),
        max(one.highest, other.highest),
        one.rows_sum_to_one and other.rows_sum_to_one,
    )


def _only_maker(kind: str, models: list[LiveModel]) -> str:
    found = [
        f"`{name}` ({type(module).__name__}) of `{model.name}`"
        for model in models
        for name, module in model.modules()
        if type(module).__name__.lower() == kind and name
    ]
    return found[0] if len(found) == 1 else ""


def _expanded(node: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The shapes of a prediction and a target that were compared all with all.

    Both were expanded, the one along its rows, the other along its columns. A target of equal
    values makes no difference, and a prediction that got a dimension for it is meant so.
    """
    sides: list[Any] = [function for function, _ in node.next_functions]
    expansion, attached_target = sides
    if (
        expansion is None
        or node_name(expansion) != "Expand"
        or _is_lifted(expansion.next_functions[0][0])
    ):
        return None
    if attached_target is not None:
        # All pairs of what is learnt.
        return None
    prediction, target = saved_tensor(node, "self"), saved_tensor(node, "target")
    if prediction is None or target is None or not _is_square(tuple(target.shape)):
        return None
    along = [one.stride().index(0) if 0 in one.stride() else None for one in (prediction, target)]
    if (
        None in along
        or along[0] == along[1]
        or _spread(target[:, 0], 0) == _spread(target[0], 0) == 0
    ):
        return None
    return _before_expansion(prediction), _before_expansion(target)


def _by_hand(node: Any) -> Criterion | None:
    """A mean or sum of squared or absolute differences of all predictions and all targets."""
    outer = node.next_functions[0][0]
    difference: Any = outer.next_functions[0][0] if node_name(outer) in ("Pow", "Abs") else None
    if node_name(difference) != "Sub" or getattr(outer, "_saved_exponent", 2) != 2:  # noqa: PLR2004
        return None
    # One side is the prediction; the other one, without a graph, is the target.
    sides = [(function, which) for function, which in difference.next_functions if function]
    values = saved_tensor(outer, "self")
    if len(sides) != 1 or values is None or not _is_square(tuple(values.shape)):
        return None
    side, which = sides[0]
    kind = "difference"
    if node_name(side) == "Expand":
        kind = "l1_loss"
        side, which = side.next_functions[0]
    metadata = getattr(side, "_input_metadata", ())
    if _is_lifted(side) or which >= len(metadata):
        return None
    size, shape = values.shape[0], tuple(metadata[which].shape)
    column = shape == (size, 1)
    if not column and shape != (size,):
        return None
    # Of a target with a row for each prediction, these differences would not be the same.
    columns = values if column else values.t()
    rounding = _rounding(columns)
    if _spread(columns - columns[:1], 1) > rounding or _spread(columns[:1], 1) <= rounding:
        return None
    return Criterion(kind, "", broadcast=(shape, (size,) if column else (size, 1)))


def _is_square(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] == shape[1] > 1  # noqa: PLR2004  # rows and columns


def _is_lifted(node: Any) -> bool:
    """Whether somebody gave a tensor another dimension: they want it to broadcast."""
    return node_name(node) in ("Unsqueeze", "Expand")


def _spread(values: Tensor, along: int) -> float:
    """How far values lie apart along one dimension, at most."""
    return float((values.amax(along) - values.amin(along)).max())


def _rounding(values: Tensor) -> float:
    """By how much numbers of this size may differ through rounding alone."""
    import torch

    return 64 * torch.finfo(values.dtype).eps * float(values.abs().max())


def _before_expansion(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor before it was expanded; the leading one may be new."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    kept = [size if stride else 1 for size, stride in sides]
    return tuple(kept[1:] if tensor.stride()[0] == 0 else kept)
