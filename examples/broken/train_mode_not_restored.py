"""An evaluation that leaves the model in eval mode: from the second epoch on it trains in it.

Nothing fails, and the loss falls. But dropout is off, and batch norm normalises by what it saw in
its first steps and never looks again. Gradients are larger, learning is slower, and the run ends
behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn

from examples.broken import side_by_side
from examples.broken.side_by_side import Symptom, difference, mean_of_epoch, show
from examples.classifier import train
from examples.classifier.run import Config, Run, start
from examples.classifier.train import train_steps

GUARD = "pytest -p trainloop examples/broken/train_mode_not_restored.py"


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The classifier's, but the model stays in eval mode."""
    device = next(model.parameters()).device
    model.eval()
    right = total = 0
    for pictures, labels in batches:
        answers = model(pictures.to(device)).argmax(dim=1)
        right += int((answers == labels.to(device)).sum())
        total += len(labels)
    return right / total


def epochs(config: Config) -> Iterator[Run]:
    """Train; yield the run after each epoch. The same text as the healthy side runs."""
    run = start(config, torch.device("cpu"))
    run.model.train()
    while not run.finished:
        batches = run.batches.of_epoch(run.position.epoch, start=0)
        run.advance(train_steps(run.model, run.optimizer, run.scheduler, batches, config.max_norm))
        run.end_epoch(evaluate(run.model, run.batches.to_evaluate()))
        yield run


def symptom() -> Symptom:
    """The loss of each epoch, and how far batch norm's mean of the data has moved in it."""
    config = Config(examples=1000, epochs=6)
    healthy, broken = (measure(runs) for runs in (side_by_side.epochs(config), epochs(config)))
    return Symptom(
        "epoch",
        1,
        {
            "loss": ([row[0] for row in healthy], [row[0] for row in broken]),
            "batch norm's mean moved": ([row[1] for row in healthy], [row[1] for row in broken]),
        },
    )


def measure(runs: Iterable[Run]) -> list[tuple[float, float]]:
    """Loss and movement of each epoch."""
    rows = []
    before = torch.zeros(())
    for run in runs:
        now = run.model.get_buffer("features.1.running_mean").clone()
        rows.append((mean_of_epoch(run.history.losses, run), float((now - before).norm())))
        before = now
    return rows


@pytest.mark.trainloop
def test_every_step_is_taken_in_train_mode() -> None:
    for _ in epochs(Config(examples=300, epochs=2)):
        pass


if __name__ == "__main__":
    bug = difference(train.evaluate, evaluate)
    show(symptom, bug, GUARD)
