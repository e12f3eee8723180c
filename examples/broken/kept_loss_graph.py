"""A loop that keeps its losses as tensors: each of them holds on to the graph that made it.

Nothing fails, and the numbers are right. But the graph of every step stays in memory until the
run ends or the memory does. Three layers are small, a large network has thousands of operations
a step; and where the loss was not back-propagated (in an evaluation), its graph keeps all
activations as well.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from examples.broken.side_by_side import Symptom, difference, epochs, show
from examples.classifier import train
from examples.classifier.run import Config, History

GUARD = "trainloop-lint --select kept-loss-graph examples"


def train_steps(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    batches: Iterable[tuple[Tensor, Tensor]],
    max_norm: float,
) -> History:
    """The classifier's, but with `losses.append(loss)`."""
    losses: list[float] = []
    gradient_norms: list[float] = []
    learning_rates: list[float] = []
    device = next(model.parameters()).device
    for pictures, labels in batches:
        pictures = pictures.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)

        optimizer.zero_grad()
        loss = F.cross_entropy(model(pictures), labels)
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), max_norm)
        learning_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()

        losses.append(loss)  # type: ignore[arg-type] # the bug; few loops have types
        gradient_norms.append(norm.item())
    return History(losses, gradient_norms, learning_rates)


def kept_operations(losses: Iterable[object]) -> int:
    """How many operations of past steps are still in memory because these losses are."""
    kept: set[Node] = set()
    waiting = [loss.grad_fn for loss in losses if isinstance(loss, Tensor)]
    while waiting:
        node = waiting.pop()
        # A parameter's own node is not kept by the loss: it lives as long as the parameter.
        if node is not None and node not in kept and not hasattr(node, "variable"):
            kept.add(node)
            waiting.extend(before for before, _ in node.next_functions)
    return len(kept)


def symptom() -> Symptom:
    """Operations that are still in memory after each epoch."""
    config = Config(examples=1500, epochs=5)
    healthy, broken = (
        [float(kept_operations(run.history.losses)) for run in runs]
        for runs in (epochs(config), epochs(config, train_steps))
    )
    return Symptom("epoch", 1, {"operations in memory": (healthy, broken)})


if __name__ == "__main__":
    bug = difference(train.train_steps, train_steps)
    show(symptom, bug, GUARD)
