"""All that a run is. What is not in here, or made from what is in here, a resume would lose."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from examples.classifier.batches import Batches, Split
from examples.classifier.network import Network
from examples.classifier.shapes import Shapes


@dataclass(frozen=True)
class Config:
    """The settings of a run. Two runs with equal settings end with equal weights."""

    seed: int = 0
    examples: int = 3000
    held_out: float = 0.2  # share of the examples
    epochs: int = 8
    batch_size: int = 64
    width: int = 8  # channels of the first convolution
    dropout: float = 0.1
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    max_norm: float = 1.0  # of the gradient of all parameters together


@dataclass
class Position:
    """Where the run stands: the next batch to train on, and how many came before it."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class History:
    """What the run has shown so far; plain numbers, so that nothing of the graph is kept alive.

    It is small enough to travel in the checkpoint, so a resumed run has the curves of an
    uninterrupted one. A run of a million steps would write them to a file instead.
    """

    losses: list[float] = field(default_factory=list)  # one a step
    gradient_norms: list[float] = field(default_factory=list)  # one a step, before clipping
    learning_rates: list[float] = field(default_factory=list)  # one a step
    accuracies: list[float] = field(default_factory=list)  # one an epoch, held out


@dataclass
class Run:
    """A training run."""

    config: Config
    split: Split
    batches: Batches
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    position: Position
    history: History

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        return self.position.epoch >= self.config.epochs

    def advance(self, steps: History) -> None:
        """Some steps of the epoch have been taken."""
        self.history.losses += steps.losses
        self.history.gradient_norms += steps.gradient_norms
        self.history.learning_rates += steps.learning_rates
        self.position.batch += len(steps.losses)
        self.position.step += len(steps.losses)

    def end_epoch(self, accuracy: float) -> None:
        """The epoch has been trained and evaluated."""
        self.history.accuracies.append(accuracy)
        self.position.epoch += 1
        self.position.batch = 0


def start(config: Config, device: torch.device) -> Run:
    """Begin a run at its first step. Seeds the global RNGs of torch and Python."""
    torch.manual_seed(config.seed)  # of every device
    random.seed(config.seed)
    if device.type == "cuda":
        # The fastest convolution is found by trying, and may be another one after a resume.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True

    split = Split(config.seed, config.held_out)
    training, held_out = split.parts(Shapes(config.examples, config.seed), config.examples)
    pin_memory = device.type == "cuda"
    batches = Batches(training, held_out, config.batch_size, config.seed, pin_memory)

    # To the device first, then the optimizer: it has to hold the parameters that are trained.
    model = Network(config.width, config.dropout).to(device)
    optimizer = AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    # Stepped once a batch, so its length is counted in batches.
    scheduler = CosineAnnealingLR(optimizer, T_max=config.epochs * batches.in_epoch)
    return Run(config, split, batches, model, optimizer, scheduler, Position(), History())
