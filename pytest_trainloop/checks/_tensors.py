"""Compare sets of tensors that have names: are they the same, or a multiple of each other?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Gradients below this part of the largest one are rounding: an adaptive optimizer makes steps
#: of full length of them, in any direction.
ROUNDING = 1e-3
#: How far from a multiple gradients may be that are called so.
NEARLY = 0.05


def first_difference(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float
) -> str | None:
    """The name of the first that differ, or that only one has; None if there is none.

    Args:
        ours: by name.
        theirs: those that they should equal.
        tolerance: a difference that is rounding, relative to the largest value of a tensor.
    """
    largest = max((float(one.abs().max()) for one in theirs.values()), default=0.0)
    for name in dict.fromkeys((*theirs, *ours)):
        if name not in ours or name not in theirs:
            return name
        if ours[name].shape != theirs[name].shape:
            return name
        scale = max(float(theirs[name].abs().max()), ROUNDING * largest)
        if float((ours[name] - theirs[name]).abs().max()) > tolerance * scale:
            return name
    return None


def factor_between(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float | None:
    """By what all gradients are multiplied; None if there is no such number."""
    if ours.keys() != theirs.keys():
        return None
    pairs = [(ours[name].double(), theirs[name].double()) for name in ours]
    square = sum(float((b * b).sum()) for _, b in pairs)
    if not square:
        return None
    factor = sum(float((a * b).sum()) for a, b in pairs) / square
    rest = sum(float(((a - factor * b) ** 2).sum()) for a, b in pairs)
    return factor if rest <= (NEARLY * factor) ** 2 * square else None
