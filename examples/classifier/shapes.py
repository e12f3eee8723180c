"""The data: small noisy pictures of four shapes, drawn by formula.

Place, size, angle and noise vary from picture to picture, and half of the pictures are dark
on bright, half bright on dark. So the pictures of a class have no mean to go by: a linear
classifier stays near chance (25 %), and something has to be learnt.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

NAMES = ("disc", "ring", "triangle", "cross")
SIDE = 16  # pixels

#: A picture, float (1, SIDE, SIDE), and its class, int () below len(NAMES).
Example: TypeAlias = tuple[Tensor, Tensor]


class Shapes(Dataset[Example]):
    """`size` pictures, the same ones for the same `seed`.

    They are drawn once, with a generator of their own: the global RNG is not touched, and
    picture i is the same whoever asks for it, in whatever order, in whatever worker.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Draw the pictures; the classes take turns, so they are equally frequent."""
        self.labels = torch.arange(size) % len(NAMES)
        self.pictures = draw(self.labels, torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """One picture and its class."""
        return self.pictures[index], self.labels[index]


def draw(labels: Tensor, generator: torch.Generator, noise: float = 0.2) -> Tensor:
    """Draw one picture for each label: float (n, 1, SIDE, SIDE), 0 is the background."""
    count = len(labels)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    radius = uniform(4.5, 6.5)
    across, down = uniform(-1.5, 1.5), uniform(-1.5, 1.5)
    angle = uniform(0.0, 2 * math.pi)
    contrast = uniform(-1.0, 1.0).sign()

    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = depths(x - across, y - down, radius, angle)[labels, torch.arange(count)]
    # Half a pixel inside to half a pixel outside the edge: grey, so that edges are smooth.
    shape = (inside + 0.5).clamp(0.0, 1.0)
    pictures = contrast * shape + noise * torch.randn(shape.shape, generator=generator)
    return pictures.unsqueeze(1)


def depths(x: Tensor, y: Tensor, radius: Tensor, angle: Tensor) -> Tensor:
    """How deep each pixel lies inside each shape, in pixels, negative outside: (shape, n, y, x)."""
    distance = torch.hypot(x, y)
    turned = torch.atan2(y, x) + angle
    third = 2 * math.pi / 3
    triangle_edge = math.cos(third / 2) / torch.cos(torch.remainder(turned, third) - third / 2)
    along, beside = (distance * turned.cos()).abs(), (distance * turned.sin()).abs()
    bar, other_bar = (
        torch.minimum(radius - length, 0.3 * radius - width)
        for length, width in ((along, beside), (beside, along))
    )
    return torch.stack(
        [
            radius - distance,
            torch.minimum(radius - distance, distance - 0.55 * radius),
            radius * triangle_edge - distance,
            torch.maximum(bar, other_bar),
        ]
    )
