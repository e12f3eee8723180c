"""Tell a loss that falls from one that does not, without a number tuned to a machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from statistics import median

#: Fewer losses than this show no trend.
FEWEST = 4
#: Pairs looked at for the trend: in a longer series, points at even distances stand for all.
_POINTS = 60
#: Kendall's tau below which the series falls: three pairs in four go down.
_FALLING_TAU = -0.5
#: A fall by less than this part of the first loss is no fall.
LEAST_FALL = 1e-3
#: Where the last third brings less than this part of the whole fall, the loss has settled.
_SETTLED = 0.01
_FEWEST_IN_THIRD = 10


class Trend(Enum):
    """What a series of losses does."""

    TOO_SHORT = "too short"
    NOT_FINITE = "not finite"
    REACHED = "reached"
    FALLING = "falling"
    SETTLED = "settled"
    FLAT = "flat"
    RISING = "rising"


def target(first: float, share: float) -> float:
    """The loss at which `share` of the first one is gone.

    The best possible loss is taken to be 0 where the first is positive; a negative loss has
    no known floor and is to fall by `share` of its size.
    """
    return first - share * abs(first)


def has_reached(losses: Sequence[float], share: float) -> bool:
    """Whether the last three losses are all at the target or below."""
    if len(losses) < FEWEST or not losses[0]:
        return False
    goal = target(losses[0], share)
    return all(loss <= goal for loss in losses[-3:])


def trend_of(losses: Sequence[float], share: float) -> Trend:
    """What `losses` do, from their order rather than their size.

    Args:
        losses: one a training step, all of the same batch.
        share: the part of the first loss that a loop is expected to remove.
    """
    if not all(math.isfinite(loss) for loss in losses):
        return Trend.NOT_FINITE
    if len(losses) < FEWEST:
        return Trend.TOO_SHORT
    if has_reached(losses, share):
        return Trend.REACHED
    part = max(1, len(losses) // 5)
    start, end = median(losses[:part]), median(losses[-part:])
    tau = kendall_tau(losses)
    least = LEAST_FALL * max(abs(loss) for loss in losses)
    if tau <= _FALLING_TAU and start - end > least:
        return Trend.SETTLED if _has_settled(losses, start) else Trend.FALLING
    if tau >= -_FALLING_TAU and end - start > least:
        return Trend.RISING
    return Trend.FLAT


def kendall_tau(losses: Sequence[float]) -> float:
    """Rising pairs minus falling pairs, over those that differ: -1 for one that never rises."""
    if len(losses) > _POINTS:
        spacing = (len(losses) - 1) / (_POINTS - 1)
        losses = [losses[round(i * spacing)] for i in range(_POINTS)]
    pairs = [(a, b) for i, a in enumerate(losses) for b in losses[i + 1 :]]
    return sum((b > a) - (b < a) for a, b in pairs) / max(1, sum(a != b for a, b in pairs))


def _has_settled(losses: Sequence[float], start: float) -> bool:
    """Whether the last third hardly brought anything; not asked of a short series."""
    third = len(losses) // 3
    if third < _FEWEST_IN_THIRD:
        return False
    late = median(losses[-2 * third : -third]) - median(losses[-third:])
    return late < _SETTLED * (start - min(losses))


def sparkline(numbers: Sequence[float], width: int = 40) -> str:
    """A row of bars, one a number, the highest for the largest; gaps where not finite."""
    if len(numbers) > width:
        spacing = (len(numbers) - 1) / (width - 1)
        numbers = [numbers[round(i * spacing)] for i in range(width)]
    finite = [number for number in numbers if math.isfinite(number)]
    if not finite:
        return " " * len(numbers)
    # Halved, because the largest number and the smallest may be further apart than a float holds.
    low = min(finite) / 2
    span = max(finite) / 2 - low
    bars = "▁▂▃▄▅▆▇█"
    return "".join(
        bars[int((number / 2 - low) / span * 7) if span else 0] if math.isfinite(number) else " "
        for number in numbers
    )
