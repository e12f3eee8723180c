"""The rule `evaluation-changes-state`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import listed
from pytest_trainloop.rules._rule import Observation, Rule
from pytest_trainloop.rules.evaluation._modes_in_runs import trained_loaders

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run

_ON_PURPOSE = re.compile(r"update_bn|recalib|calibrat|adapt", re.IGNORECASE)


class EvaluationChangesState(Rule):
    """An evaluation updates running statistics, though the model is in eval mode.

    Symptom: the model gets better or worse by being evaluated, and a checkpoint that was saved
    after the validation is not the one that was validated; scores depend on what was evaluated
    before.

    Why: a layer does not follow `model.eval()`: a `train` method that leaves BatchNorm in train
    mode, `F.batch_norm(..., training=True)`, a layer of one's own that never asks for
    `self.training`, or one that is kept in a plain list and so is not reached. Its running mean
    takes in the validation data.

    What torch does: nothing. Statistics are buffers, and anybody may write to them.

    Limits: only running statistics are looked at (`running_mean`), in the first batches of an
    evaluation without gradients. An evaluation in train mode is the matter of
    `missing-eval-mode`; adapting statistics on purpose is told by its name (`update_bn`,
    `recalibrate`, `adapt`), or by `train()` on that layer just before.
    """

    since = "0.1"
    examples = ()
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.nn.BatchNorm1d.html",
        "https://pytorch.org/docs/stable/notes/autograd.html#evaluation-mode-nn-module-eval",
    )

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for running statistics that were written to in eval mode and without gradients."""
        trained = trained_loaders(run)
        for look in run.evaluations:
            adapts = look.asked_for_train or any(map(_ON_PURPOSE.search, look.within))
            if not look.updated or adapts or look.loader in trained:
                continue
            yield self.observation(
                f"an evaluation in eval mode changes {listed(look.updated)}",
                "let the layer follow `self.training`: find what keeps it in train mode"
                " (a `train` method, `training=True`, a plain list)",
                look.where,
            )
            return
