"""Ask the nodes of a loss's graph what they compute, without anybody noticing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_ENDING = re.compile(r"Backwards?\d*$")
#: Operations that hand the values on: they reshape, pick or convert.
_SAME_VALUES = frozenset(
    (
        *("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone", "ToCopy", "Expand"),
        *("Squeeze", "Unsqueeze", "Transpose", "T", "Permute", "Slice", "Select", "Index"),
    )
)


def node_name(node: Any) -> str:
    """What a node of a graph computes, without what torch adds to it: `NllLoss`."""
    return "" if node is None else _ENDING.sub("", node.name())


def source_of(node: Any, position: int) -> Any:
    """What computed an input of `node`, seen through what only hands values on."""
    functions = node.next_functions
    source = functions[position][0] if position < len(functions) else None
    while source is not None and node_name(source) in _SAME_VALUES:
        source = source.next_functions[0][0]
    return source


def saved_tensor(node: Any, what: str) -> Tensor | None:
    """A tensor of floating-point numbers that `node` saved, if nobody notices the look."""
    tensor = _saved(node, what)
    if tensor is None or isinstance(tensor, int | float):
        return None
    return tensor if tensor.is_floating_point() else None


def saved_number(node: Any, what: str) -> float | None:
    """A number, or a tensor of one, that `node` saved, as above."""
    tensor = _saved(node, what)
    if isinstance(tensor, int | float):
        return float(tensor)
    return float(tensor) if tensor is not None and tensor.numel() == 1 else None


def _saved(node: Any, what: str) -> Tensor | int | float | None:
    raw = getattr(node, f"_raw_saved_{what}", None)
    if getattr(raw, "unpack_hook", raw) is not None:
        # It is hooked, or this version of torch does not tell.
        return None
    try:
        saved: Tensor | int | float = getattr(node, f"_saved_{what}")
    except RuntimeError:
        # Freed by an earlier backward, or changed in place since.
        return None
    if isinstance(saved, int | float):
        return saved
    tensor = saved.detach()
    plain = type(tensor).__name__ == "Tensor"
    return tensor if plain and not tensor.is_meta and not _is_captured(tensor) else None


def _is_captured(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured, in which no value can be read."""
    import torch

    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
