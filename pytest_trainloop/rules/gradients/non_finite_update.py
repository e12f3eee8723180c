"""The rule `non-finite-update`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted, listed, title
from pytest_trainloop.rules._rule import Observation, Rule

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run, Step


class NonFiniteUpdate(Rule):
    """The weights are updated with a loss or gradients that are not finite.

    Symptom: the loss is nan from some step on, and never comes back.

    Why: one nan or infinity among the gradients makes every weight that it touches nan, and with
    it all that is computed from then on. The cause is mostly a division by zero, a logarithm or
    a root of zero, a learning rate that is too high, or an input that is not finite.

    What torch does: nothing. Only `GradScaler` leaves such an update out.

    Limits: updates that a `GradScaler` or the loop leaves out are not reported. Gradients are
    looked at in the first 64 steps of an optimizer, in each 128th after that, and where the loss is
    seen not to be finite; a loss on a device is not waited for, and has to stay so.
    """

    since = "0.1"
    examples = ()
    sources = (
        "https://pytorch.org/docs/stable/autograd.html#anomaly-detection",
        "https://github.com/karpathy/nanoGPT/issues/227",
    )

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for the first step of each optimizer that used what is not finite."""
        for index, optimizer in enumerate(run.optimizers):
            for step in run.steps_of(index):
                cause = _cause(run, step)
                if cause and step.applied:
                    number = sum(map(len, optimizer.groups))
                    yield self.observation(
                        f"{cause} at step {step.number}, and {title(optimizer)} updated"
                        f" {counted(number, 'parameter')} with it",
                        "look for a division, logarithm or root of zero, a too high learning rate,"
                        " or inputs that are not finite; leave such updates out, and count them",
                        step.backwards[-1].where if step.backwards else step.where,
                        _rates(step),
                    )
                    break


def _cause(run: Run, step: Step) -> str:
    if step.nonfinite == ():
        # What was not finite was left out.
        return ""
    if step.nonfinite is None and not _is_the_end(run, step):
        # The gradients were not looked at: a loss that is not finite may have finite ones.
        return ""
    for backward in step.backwards if step.nonfinite else step.backwards[-1:]:
        if backward.loss is not None and not math.isfinite(backward.loss):
            return f"the loss is {backward.loss}"
    if step.nonfinite:
        return f"the gradient of {listed(run.names(step.nonfinite))} is not finite"
    return ""


def _is_the_end(run: Run, step: Step) -> bool:
    """Whether losses follow, and none of them is finite."""
    later = [one.loss for one in run.steps_of(step.optimizer) if one.number > step.number]
    known = [loss for loss in later if loss is not None]
    return bool(known) and not any(map(math.isfinite, known))


def _rates(step: Step) -> tuple[str, ...]:
    rates = ", ".join(f"{rate:.3g}" for rate in step.learning_rates)
    return (f"learning rate there: {rates}",)
