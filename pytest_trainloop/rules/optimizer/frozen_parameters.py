"""The rule `frozen-parameters`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted, title
from pytest_trainloop.rules._rule import Observation, Rule

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run


class FrozenParameters(Rule):
    """All that an optimizer is to update is frozen.

    Symptom: accuracy stays at chance, or only what another optimizer trains gets better.

    Why: with `requires_grad` set to False, no gradient is computed, and the optimizer passes the
    parameter over. A layer that was frozen for a first stage, or together with a whole backbone,
    never learns until it is unfrozen.

    What torch does: nothing, as long as something else in the loss wants a gradient.

    Limits: frozen parameters beside others in one optimizer are usual (`model.parameters()` of
    a model with a frozen backbone) and are not reported; nor are those that had a gradient at
    some time of the run.
    """

    since = "0.1"
    examples = ()
    sources = (
        "https://pytorch.org/docs/stable/notes/autograd.html#setting-requires-grad",
        "https://discuss.pytorch.org/t/84911",
        "https://github.com/Lightning-AI/pytorch-lightning/issues/712",
        "https://github.com/espnet/espnet/issues/1863",
    )

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for optimizers that have nothing to update."""
        for optimizer in run.optimizers:
            own = [run.parameters[number] for group in optimizer.groups for number in group]
            if optimizer.steps < 2 or any(  # noqa: PLR2004  # one step may be before a stage begins
                one.trainable or one.reached or one.had_gradient or one.moved is not False
                for one in own
            ):
                continue
            yield self.observation(
                f"all {counted(len(own), 'parameter')} of {title(optimizer)} are frozen: its"
                f" {counted(optimizer.steps, 'step')} changed nothing",
                "unfreeze what is to learn with `requires_grad_(True)`, or leave out the optimizer",
                optimizer.built,
            )
