"""A loop without `zero_grad`: each step uses the gradients of all steps before it.

Nothing fails. The loss falls, then wanders, and the run ends far behind. The gradient norm says
why: it should come down as the network learns, and goes up.

(Clipping is off here, on both sides. With it, this bug all but hides: what has piled up is clipped
to a usual length and acts like a heavy momentum. The norm before clipping still tells.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from examples.broken.side_by_side import Symptom, difference, epochs, mean_of_epoch, show
from examples.classifier import train
from examples.classifier.run import Config, History

GUARD = "trainloop-lint --select missing-zero-grad examples"


def train_steps(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    batches: Iterable[tuple[Tensor, Tensor]],
    max_norm: float,
) -> History:
    """The classifier's, but without its `optimizer.zero_grad()`."""
    losses: list[float] = []
    gradient_norms: list[float] = []
    learning_rates: list[float] = []
    device = next(model.parameters()).device
    for pictures, labels in batches:
        pictures = pictures.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)

        loss = F.cross_entropy(model(pictures), labels)
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), max_norm)
        learning_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()

        losses.append(loss.item())
        gradient_norms.append(norm.item())
    return History(losses, gradient_norms, learning_rates)


def symptom() -> Symptom:
    """Accuracy and gradient norm of each epoch."""
    config = Config(examples=1500, epochs=5, max_norm=math.inf)
    healthy, broken = (
        [
            (run.history.accuracies[-1], mean_of_epoch(run.history.gradient_norms, run))
            for run in runs
        ]
        for runs in (epochs(config), epochs(config, train_steps))
    )
    return Symptom(
        "epoch",
        1,
        {
            "held-out accuracy": ([row[0] for row in healthy], [row[0] for row in broken]),
            "gradient norm": ([row[1] for row in healthy], [row[1] for row in broken]),
        },
    )


if __name__ == "__main__":
    bug = difference(train.train_steps, train_steps)
    show(symptom, bug, GUARD)
