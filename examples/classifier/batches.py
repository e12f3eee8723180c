"""From a data set to batches: who is held out, and in which order the others come.

Both are functions of numbers that a checkpoint can hold. Neither depends on what was drawn
before, which is what makes it possible to stop in the middle of an epoch and to go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from examples.classifier.shapes import Example


@dataclass(frozen=True)
class Split:
    """The rule by which an example is held out, of its number and a seed alone.

    Not a shuffled list cut in two: there, one more example moves all the others, and some
    that were trained on become held out. Here an example keeps its side for ever.
    """

    seed: int
    share: float
    rule: str = "held out if the first 8 bytes of sha256(seed/number) are below share * 2**64"

    def holds_out(self, number: int) -> bool:
        """Whether example `number` is kept away from training."""
        digest = hashlib.sha256(f"{self.seed}/{number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < self.share

    def parts(self, data: Dataset[Example], size: int) -> tuple[Subset[Example], Subset[Example]]:
        """The first `size` examples of `data` as (training, held out)."""
        held_out = [self.holds_out(number) for number in range(size)]
        return (
            Subset(data, [number for number in range(size) if not held_out[number]]),
            Subset(data, [number for number in range(size) if held_out[number]]),
        )


@dataclass(frozen=True)
class EpochOrder(Sampler[int]):
    """The order of one epoch, another one each epoch, from its example number `start` on.

    The order is made from (seed, epoch), not from the global RNG, so a position in it is one
    number, and the examples before it need not be loaded again to be passed over.
    """

    size: int
    seed: int
    epoch: int
    start: int = 0

    def __iter__(self) -> Iterator[int]:
        """The numbers that are still to come."""
        # A plain seed + epoch would give run 0 in epoch 1 the order of run 1 in epoch 0.
        mixed = hashlib.sha256(f"{self.seed}/{self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed[:7], "big"))
        order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        return iter(order[self.start :])

    def __len__(self) -> int:
        """How many are still to come."""
        return max(0, self.size - self.start)


@dataclass(frozen=True)
class Batches:
    """The two sides of the data, as loaders."""

    training: Subset[Example]
    held_out: Subset[Example]
    size: int
    seed: int
    pin_memory: bool

    @property
    def in_epoch(self) -> int:
        """How many batches an epoch has; the last one may be smaller."""
        return -(-len(self.training) // self.size)

    def of_epoch(self, epoch: int, start: int) -> DataLoader[Example]:
        """The training batches of `epoch`, from its batch number `start` on."""
        order = EpochOrder(len(self.training), self.seed, epoch, start * self.size)
        return self._loader(self.training, self.size, order)

    def to_evaluate(self) -> DataLoader[Example]:
        """The held-out batches, always in the same order."""
        return self._loader(self.held_out, 256)

    def _loader(
        self, examples: Subset[Example], size: int, order: EpochOrder | None = None
    ) -> DataLoader[Example]:
        # `iter(loader)` draws a seed for workers, also when there are none. From a generator of
        # its own: so evaluating more or less often, or entering an epoch midway, does not change
        # what the network draws.
        own = torch.Generator()
        return DataLoader(examples, size, sampler=order, generator=own, pin_memory=self.pin_memory)
