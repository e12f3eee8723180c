"""Compare the fingerprints of two runs, and name the first thing that differs.

Pure functions over plain data; what they know of training is the order in which one thing
follows from another: weights, then the optimizer's state, the learning rate, the loss scale,
the data, buffers, random numbers, and only then the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import listed

if TYPE_CHECKING:
    from pytest_trainloop.runtime.fingerprint import Digest, RunPrint, StepPrint


#: What differs where a loop draws anew.
CHANCE = ("batch", "RNG state")


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing in which a run differs from the one it should equal."""

    #: What it is about: `batch`, `optimizer state`, ...
    what: str
    #: One clause, as in "step 7 differs: ...".
    message: str
    advice: str


def differing(ours: Mapping[str, Digest], theirs: Mapping[str, Digest]) -> list[str]:
    """Names that both know and that do not have the same value."""
    return [name for name, value in ours.items() if name in theirs and theirs[name] != value]


def same_weights(one: StepPrint, other: StepPrint) -> bool:
    """Whether two steps began with the same weights, as far as both knew them."""
    return not differing(one.weights, other.weights)


def first_difference(
    ours: StepPrint, theirs: StepPrint, uninterrupted: Sequence[StepPrint]
) -> Difference | None:
    """How a step differs from the one it should equal; None if it does not.

    Args:
        ours: the step to judge.
        theirs: the step it should equal.
        uninterrupted: all steps of the run that `theirs` is from.
    """
    return (
        _weights_differ(ours, theirs)
        or _state_differs(ours, theirs)
        or _rate_differs(ours, theirs)
        or _scaler_differs(ours, theirs)
        or _outcome_differs(ours, theirs, uninterrupted)
        or _other_models_differ(ours, theirs)
    )


def first_difference_but_chance(
    ours: StepPrint, theirs: StepPrint, *, restored: bool
) -> Difference | None:
    """As `first_difference`, of what depends on no batches and random numbers of later steps.

    Args:
        ours: the step to judge.
        theirs: the step it should equal.
        restored: whether it is the first one after what was saved was loaded; later ones have
            been given other batches: their learning rates can be compared, and what the
            optimizer has kept and counted.
    """
    if not restored:
        return _state_differs(ours, theirs, values=False) or _rate_differs(ours, theirs)
    return (
        _weights_differ(ours, theirs)
        or _state_differs(ours, theirs)
        or _rate_differs(ours, theirs)
        or _scaler_differs(ours, theirs)
        or _other_models_differ(ours, theirs)
    )


def _weights_differ(ours: StepPrint, theirs: StepPrint) -> Difference | None:
    names = differing(ours.weights, theirs.weights)
    if not names:
        return None
    return Difference(
        "weights",
        f"other weights in {listed(names)}",
        "save and load all weights, in the precision they are trained in",
    )


def _state_differs(ours: StepPrint, theirs: StepPrint, *, values: bool = True) -> Difference | None:
    missing = sorted(set(theirs.state) - set(ours.state))
    wrong = missing or (differing(ours.state, theirs.state) if values else [])
    counts_differ = ours.state_steps != theirs.state_steps
    if not wrong and not counts_differ:
        return None
    verb = "lacks" if missing else "has another"
    parts = [f"{verb} {listed(wrong)}"] if wrong else []
    if counts_differ:
        parts.append(
            f"has counted {_count(ours.state_steps)} steps instead of {_count(theirs.state_steps)}"
        )
    return Difference(
        "optimizer state",
        f"the state of {ours.optimizer} {', and '.join(parts)}",
        "save `optimizer.state_dict()` and load it before the first step",
    )


def _rate_differs(ours: StepPrint, theirs: StepPrint) -> Difference | None:
    if ours.learning_rates == theirs.learning_rates:
        return None
    return Difference(
        "learning rate",
        f"learning rate {_rates(ours)} instead of {_rates(theirs)}",
        "save `scheduler.state_dict()` and load it, after the optimizer's; a rate that the loop"
        " computes itself follows from the saved step or epoch",
    )


def _scaler_differs(ours: StepPrint, theirs: StepPrint) -> Difference | None:
    if ours.scalers == theirs.scalers:
        return None
    return Difference(
        "loss scale",
        f"(scale, growth) of the GradScaler {_scales(ours)} instead of {_scales(theirs)}",
        "save `scaler.state_dict()` and load it",
    )


def _outcome_differs(
    ours: StepPrint, theirs: StepPrint, uninterrupted: Sequence[StepPrint]
) -> Difference | None:
    """Loss, gradients and buffers follow from data and random numbers: blame those first."""
    gradients = differing(ours.gradients, theirs.gradients)
    buffers = differing(ours.buffers, theirs.buffers)
    if ours.loss == theirs.loss and not gradients and not buffers:
        return None
    batch = _batch_differs(ours, theirs, uninterrupted)
    if batch is not None:
        return batch
    if buffers:
        return Difference(
            "buffers",
            f"other values in the buffers {listed(buffers)}",
            "save buffers with the model: `model.state_dict()` holds those that are persistent",
        )
    losses = f"loss {_number(ours.loss)} instead of {_number(theirs.loss)}"
    generators = differing(ours.rng, theirs.rng)
    if generators and _draws(theirs, uninterrupted):
        return Difference(
            "RNG state",
            f"{losses}: another RNG state ({', '.join(generators)})",
            "save the RNG states and restore them"
            + (" after `iter(loader)`, which draws from them" if theirs.batches else ""),
        )
    return Difference(
        "loss",
        f"{losses}, with the same weights, data and learning rate",
        "look for what else the loss depends on: a step counter, a schedule of its own, a"
        " hidden state, a generator of its own",
    )


def _batch_differs(
    ours: StepPrint, theirs: StepPrint, uninterrupted: Sequence[StepPrint]
) -> Difference | None:
    if not ours.batches or not theirs.batches or ours.batches[-1] == theirs.batches[-1]:
        return None
    seen = [step for step in uninterrupted if ours.batches[-1] in step.batches]
    here = [step for step in seen if step.epoch == theirs.epoch]
    if here:
        return Difference(
            "batch",
            f"it was given the batch of step {here[0].number}: the data position is not restored",
            "save how far the epoch has come and skip what was seen, or save"
            " `StatefulDataLoader.state_dict()`",
        )
    which = (
        f"the batch of step {seen[0].number}, of another epoch"
        if seen
        else "a batch that the uninterrupted run never saw"
    )
    return Difference(
        "batch",
        f"it was given {which}: the data order is not restored",
        "save the state of what it is drawn from (the RNG, or a generator of the sampler) as it was"
        " when the epoch began, restore it before `iter(loader)`, and skip what was seen",
    )


def _other_models_differ(ours: StepPrint, theirs: StepPrint) -> Difference | None:
    names = differing(ours.other_models, theirs.other_models)
    if not names:
        return None
    return Difference(
        "averaged weights",
        f"other values in {listed([name.partition('.')[2] for name in names])}, which no"
        " optimizer trains",
        "save and load models that follow the trained one, such as an average of its weights",
    )


def _draws(step: StepPrint, run: Sequence[StepPrint]) -> bool:
    """Whether the run draws random numbers around `step`, so that their state can matter."""
    here = run.index(step)
    around = run[max(0, here - 1) : here + 2]
    return any(a.rng != b.rng for a, b in pairwise(around))


def closest_step(ours: StepPrint, run: Sequence[StepPrint]) -> tuple[int, float]:
    """The index of the step of `run` with the most similar weights, and how far they are."""
    distances = [
        max((abs(a - b) for a, b in zip(ours.sample, step.sample, strict=False)), default=0.0)
        for step in run
    ]
    index = min(range(len(run)), key=distances.__getitem__)
    return index, distances[index]


def first_difference_of_runs(ours: RunPrint, theirs: RunPrint) -> tuple[int, Difference] | None:
    """Where and how two runs that should be the same first differ; None if nowhere."""
    for index, (a, b) in enumerate(zip(ours.steps, theirs.steps, strict=False)):
        difference = first_difference(a, b, theirs.steps)
        if difference is not None:
            return index, difference
    if len(ours.steps) != len(theirs.steps):
        index = min(len(ours.steps), len(theirs.steps))
        message = f"{len(ours.steps)} optimizer steps instead of {len(theirs.steps)}"
        return index, Difference("steps", message, "let the number of steps not depend on chance")
    return None


def _count(steps: float | None) -> str:
    return "no" if steps is None else f"{steps:g}"


def _rates(step: StepPrint) -> str:
    return ", ".join(f"{rate:.6g}" for rate in step.learning_rates)


def _scales(step: StepPrint) -> str:
    return ", ".join(f"({scale:g}, {growth:g})" for scale, growth in step.scalers) or "unused"


def _number(loss: float | None) -> str:
    return "unknown" if loss is None else f"{loss:.6g}"
