"""Does training go the right way: a criterion that is raised on purpose looks otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trainloop.checks._verdict import Cause
from pytest_trainloop.rules._naming import title

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run
    from pytest_trainloop.runtime.sightings import Pull


def pulls_up(run: Run) -> Cause | None:
    """That the training raises the criterion that its loss is made of; None if it does not.

    None also wherever somebody may want that: with several optimizers or places of backward
    (adversaries), with gradients asked for by hand, with parameters that the loss depends on and
    the optimizer does not have (inputs that are to fool a model).
    """
    pull = _only_pull(run)
    if pull is None:
        return None
    optimizer = run.optimizers[0]
    if pull.negated == optimizer.maximizes:
        return None
    losses = [-loss if pull.negated else loss for loss in run.losses]
    if len(losses) < 2 or losses[-1] <= losses[0]:  # noqa: PLR2004  # the first and the last
        return None
    rise = f"{losses[0]:.4g} → {losses[-1]:.4g} in {len(losses)} steps"
    if pull.negated:
        return Cause(
            f"the loss is negated before `backward()`, so training raises the `{pull.kind}`:"
            f" {rise}",
            "back-propagate the criterion as it is: an optimizer lowers what it is given",
            pull.where,
        )
    return Cause(
        f"{title(optimizer)} has `maximize=True`, so training raises the `{pull.kind}`: {rise}",
        "leave `maximize` out: it is for an objective that is to grow",
        optimizer.built or pull.where,
    )


def _only_pull(run: Run) -> Pull | None:
    """What all looks saw alike, where only one optimizer steps on the losses of one place."""
    if len(run.optimizers) != 1 or run.gradient_calls:
        return None
    outside = [one for one in run.parameters if one.reached and not one.optimizers]
    if outside or len({backward.where for backward in run.backwards}) != 1:
        return None
    pulls = set(run.pulls)
    return next(iter(pulls)) if len(pulls) == 1 and next(iter(pulls)).kind else None
