"""The training loop: forward, loss, backward, step, zero_grad, and what stands around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from examples.classifier.checkpoint import Checkpoint, set_rng_state
from examples.classifier.run import Config, History, Run, start


class Interrupted(Exception):  # noqa: N818 -- what happened, and no error
    """The run was asked to stop, and has saved where it stands."""


def train_steps(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    batches: Iterable[tuple[Tensor, Tensor]],
    max_norm: float,
) -> History:
    """Take one step for each batch. The model is in train mode, and stays in it."""
    losses: list[float] = []
    gradient_norms: list[float] = []
    learning_rates: list[float] = []
    device = next(model.parameters()).device
    for pictures, labels in batches:
        pictures = pictures.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)

        # Gradients add up until they are cleared, so they are cleared here, next to where they
        # are made: whatever ran before this step has left nothing behind.
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pictures), labels)
        loss.backward()
        # After backward, which makes the gradients, and before step, which uses them. The norm
        # is that before clipping: it is the number that shows trouble first.
        norm = clip_grad_norm_(model.parameters(), max_norm)
        learning_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        # Once a batch, as it was built for, and after the optimizer has used the rate.
        scheduler.step()

        # Numbers, not tensors: a loss holds on to the graph that made it. On a GPU `item` waits
        # for the step to finish; where that costs too much, keep `loss.detach()`.
        losses.append(loss.item())
        gradient_norms.append(norm.item())
    return History(losses, gradient_norms, learning_rates)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Accuracy: the share of the examples whose largest logit is that of their class.

    Every example counts the same: right answers are counted and divided once, at the end. (The
    mean of the batches' accuracies would give those of a smaller last batch more weight.)

    The model is measured in eval mode (no dropout, batch norm as learnt) and handed back in the
    mode it came in.

    Raises:
        ZeroDivisionError: there are no batches.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    right = total = 0
    for pictures, labels in batches:
        answers = model(pictures.to(device)).argmax(dim=1)
        right += int((answers == labels.to(device)).sum())
        total += len(labels)
    model.train(was_training)
    return right / total


def never() -> bool:
    """Nobody asks the run to stop."""
    return False


def quietly(run: Run) -> None:
    """Nobody wants to hear of the run."""


def train(
    config: Config,
    checkpoint: Checkpoint,
    *,
    device: torch.device | None = None,
    save_every: int = 25,
    stopping: Callable[[], bool] = never,
    after_epoch: Callable[[Run], None] = quietly,
) -> Run:
    """Train to the end, from `checkpoint` on if it exists.

    However often it is stopped and called again, the run ends with the same weights (bit for bit
    on the same machine) and with the same history. It is saved every `save_every` steps and at
    the end of an epoch.

    Raises:
        Interrupted: `stopping()` was true when the run had just been saved in the midst of an
            epoch.
        CheckpointError: the checkpoint cannot be used for this run.
    """
    run = start(config, device or torch.device("cpu"))
    rng = checkpoint.restore(run) if checkpoint.exists() else None
    run.model.train()
    while not run.finished:
        batches = iter(run.batches.of_epoch(run.position.epoch, run.position.batch))
        if rng is not None:
            # Only now: making the iterator of a loader may draw from the RNG (for its workers,
            # for a shuffle), and those draws came before this state was saved.
            set_rng_state(rng)
            rng = None
        while run.position.batch < run.batches.in_epoch:
            some = islice(batches, save_every)
            run.advance(train_steps(run.model, run.optimizer, run.scheduler, some, config.max_norm))
            checkpoint.save(run)
            if stopping():
                raise Interrupted
        run.end_epoch(evaluate(run.model, run.batches.to_evaluate()))
        checkpoint.save(run)
        after_epoch(run)
    return run
