"""Do labels follow inputs: a batch in which equal inputs have different labels cannot be learned.

What is input and what is label is told by position (`x, y`) or by name, and only where that is
plain; of anything else nothing is said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_trainloop.checks._cause import Answer
from pytest_trainloop.checks._verdict import Cause

if TYPE_CHECKING:
    from torch import Tensor

#: What people call the labels of a batch that is a dict.
_LABELS = ("labels", "label", "targets", "target", "y")
#: A larger batch is not looked at.
_MOST_BYTES = 1 << 22


def do_labels_follow(batch: Any) -> Answer | None:
    """Whether equal inputs of a batch have equal labels; None if that cannot be told.

    The cause is given where at least half of the batch contradicts itself.
    """
    question = "do labels follow inputs"
    parted = _parted(batch)
    if parted is None:
        return None
    inputs, labels = parted
    by_input: dict[bytes, set[bytes]] = defaultdict(set)
    rows = list(zip(_rows(inputs), _rows(labels), strict=True))
    for one, label in rows:
        by_input[one].add(label)
    torn = sum(len(by_input[one]) > 1 for one, _ in rows)
    if not torn:
        return Answer(question, "yes, no equal inputs of the batch have different labels")
    torn_ones = f"{torn} of {len(rows)} inputs have an equal one with another label"
    if torn * 2 < len(rows):
        return Answer(question, f"mostly: {torn_ones}")
    same = f"all {len(rows)} inputs of the frozen batch are equal, and their labels are not"
    cause = Cause(
        "the labels do not follow the inputs: "
        + (same if len(by_input) == 1 else f"in the frozen batch, {torn_ones}"),
        "look at what the dataset does to its inputs (a wrong index, a normalisation that"
        " leaves nothing, a constant image)",
    )
    return Answer(question, "no", cause)


def _parted(batch: Any) -> tuple[Tensor, Tensor] | None:
    """Inputs and labels of a batch, of the same number of rows; None unless they are plain."""
    import torch

    inputs, labels = None, None
    if isinstance(batch, Mapping):
        names = [name for name in _LABELS if name in batch]
        others = [value for name, value in batch.items() if name not in _LABELS]
        if len(names) == 1 and len(others) == 1:
            inputs, labels = others[0], batch[names[0]]
    elif isinstance(batch, (list, tuple)) and len(batch) == 2:  # noqa: PLR2004  # x, y
        inputs, labels = batch
    if not isinstance(inputs, torch.Tensor) or not isinstance(labels, torch.Tensor):
        return None
    if not inputs.dim() or not labels.dim() or len(inputs) != len(labels) or len(inputs) == 1:
        return None
    size = max(one.numel() * one.element_size() for one in (inputs, labels))
    return (inputs, labels) if 0 < size <= _MOST_BYTES else None


def _rows(tensor: Tensor) -> list[bytes]:
    import torch

    flat = tensor.detach().cpu().reshape(len(tensor), -1).contiguous()
    return [bytes(row.view(torch.uint8).tolist()) for row in flat]
