"""What a run's numbers say, in lines: losses, gradient norms, learning rates, movement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted, listed
from pytest_trainloop.runtime.trend import sparkline

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Optimizer, Parameter, Run

#: Parameter groups that get a line of their own.
_GROUPS = 4
_PLAIN = str.maketrans({"→": "->", **dict(zip("▁▂▃▄▅▆▇█", "_.,-~=*#", strict=True))})


def numbers(run: Run, index: int | None = None, losses: Sequence[float] = ()) -> list[str]:
    """Losses, gradient norms, learning rates and movement, a line each.

    Args:
        run: the record.
        index: the optimizer to speak of, as an index into `Run.optimizers`; else of all.
        losses: those that were judged, where they are not all of the run's.
    """
    chosen = range(len(run.optimizers)) if index is None else [index]
    lines = [] if not (shown := losses or run.losses) else [describe(shown)]
    lines += gradient_norms(run, chosen)
    for position in chosen:
        lines += learning_rates(run, position)
    for position in chosen:
        lines += movement(run, run.optimizers[position])
    return lines


def describe(losses: Sequence[float]) -> str:
    """The losses of a run in one line, with a small plot."""
    steps = counted(len(losses), "step")
    return f"loss {losses[0]:.4g} → {losses[-1]:.4g} in {steps}  {sparkline(losses)}"


def gradient_norms(run: Run, chosen: Sequence[int]) -> list[str]:
    """Where the gradient norms of these optimizers began and ended, with a small plot."""
    norms = [
        step.gradient_norm
        for step in run.steps
        if step.optimizer in chosen and step.gradient_norm is not None
    ]
    if not norms:
        return []
    return [f"gradient norm {norms[0]:.3g} → {norms[-1]:.3g}  {sparkline(norms)}"]


def learning_rates(run: Run, index: int) -> Iterator[str]:
    """The learning rates of an optimizer: those of the first group, and of others that differ."""
    traces = list(zip(*(step.learning_rates for step in run.steps_of(index)), strict=False))
    several = f" of `{run.optimizers[index].name}`" if len(run.optimizers) > 1 else ""
    for group, trace in enumerate(traces[:_GROUPS], 1):
        if trace in traces[: group - 1]:
            continue
        which = f" of group {group}" if len(set(traces)) > 1 else ""
        if len(set(trace)) == 1:
            yield f"learning rate{which}{several} {trace[0]:.3g} in {counted(len(trace), 'step')}"
        else:
            yield (
                f"learning rate{which}{several} {trace[0]:.3g} → {trace[-1]:.3g}"
                f"  {sparkline(trace)}"
            )


def movement(run: Run, optimizer: Optimizer) -> Iterator[str]:
    """How far the parameters of each group of an optimizer went."""
    for number, group in enumerate(optimizer.groups[:_GROUPS], 1):
        own = [run.parameters[index] for index in group]
        if not own:
            continue
        which = f"group {number} of " if len(optimizer.groups) > 1 else ""
        yield f"{which}`{optimizer.name}`: {_moved(own)}"


def _moved(own: list[Parameter]) -> str:
    moved = [one for one in own if one.moved]
    still = [one.name for one in own if one.moved is False]
    if not moved:
        return f"none of {counted(len(own), 'parameter')} moved"
    known = (one.relative_change for one in moved)
    changes = [change for change in known if change is not None and math.isfinite(change)]
    far = f", by up to {max(changes) * 100:.3g} % of their norm" if changes else ""
    rest = f"; not {listed(still)}" if still else ""
    return f"{len(moved)} of {counted(len(own), 'parameter')} moved{far}{rest}"


def in_ascii(text: str) -> str:
    """`text` with our own signs and plots in ASCII, for a terminal that knows no more."""
    return text.translate(_PLAIN)
