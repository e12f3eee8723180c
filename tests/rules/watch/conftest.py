"""What the tests of watched rules share: a loop is a function, `observed` says what is wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pytest_trainloop import watch
from pytest_trainloop.runtime.seed import seeded

Observed = Callable[..., list[str]]


@pytest.fixture
def observed() -> Observed:
    """Run a loop, and list what rules say of it: `rule: message`."""

    def run_it(loop: Callable[[], object]) -> list[str]:
        with seeded(0), watch() as run:
            loop()
        return [f"{one.rule}: {one.message}" for one in run.observations]

    return run_it


def batches(number: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of inputs (4, 4) and class indices (4,)."""
    return [(torch.randn(4, 4), torch.tensor([0, 1, 0, 1])) for _ in range(number)]


def network() -> nn.Sequential:
    """Two layers, 4 features to 2 classes."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def train(model: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 6) -> None:
    """A sound loop, in which all optimizers step on the same loss."""
    for x, y in batches(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
