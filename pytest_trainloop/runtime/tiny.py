"""Tiny data and models for tests of training loops: made here, offline, always the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader, TensorDataset

Task = Literal["classification", "regression", "images", "tokens"]
#: Options that count something.
_COUNTS = (
    *("examples", "features", "classes", "channels", "size"),
    *("length", "vocabulary", "batch_size"),
)


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """What the tiny fixtures are made of; the options of `@pytest.mark.tiny(...)`.

    - `classification`: inputs (examples, features) float, targets (examples,) class indices.
    - `regression`: inputs (examples, features) float, targets (examples, 1) float.
    - `images`: inputs (examples, channels, size, size) float, targets class indices.
    - `tokens`: inputs and targets (examples, length) token ids; the target is the next token.
    """

    task: Task = "classification"
    examples: int = 8
    features: int = 4
    classes: int = 2
    channels: int = 3
    size: int = 8
    length: int = 8
    vocabulary: int = 16
    batch_size: int = 4
    shuffle: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what nothing can be made of."""
        if self.task not in _MAKERS:
            raise ValueError(f"`task` is one of {', '.join(_MAKERS)}, not {self.task!r}")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is a whole number above 0, not {getattr(self, name)}")

    def dataset(self) -> TensorDataset:
        """The data: separable, so that a loop that works learns it by heart."""
        import torch
        from torch.utils.data import TensorDataset

        generator = torch.Generator().manual_seed(self.seed)
        return TensorDataset(*_MAKERS[self.task](self, generator))

    def loader(self, dataset: TensorDataset | None = None) -> DataLoader[tuple[Tensor, ...]]:
        """A `DataLoader` over the data; draws from torch's global RNG only if it shuffles."""
        from torch.utils.data import DataLoader

        return DataLoader(dataset or self.dataset(), self.batch_size, shuffle=self.shuffle)

    def model(self) -> Module:
        """A model for the data, with weights that depend on `seed` alone."""
        import torch
        from torch import nn

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.task == "tokens":
                return nn.Sequential(
                    nn.Embedding(self.vocabulary, 16), nn.Linear(16, self.vocabulary)
                )
            inputs, outputs = self.features, self.classes
            if self.task == "images":
                inputs = self.channels * self.size**2
            if self.task == "regression":
                outputs = 1
            return nn.Sequential(
                nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs)
            )


def optimizer_over(
    parameters: Iterable[Tensor], kind: str = "AdamW", lr: float = 1e-2, **options: Any
) -> Optimizer:
    """An optimizer of `torch.optim`, by the name of its class.

    Raises:
        AttributeError: `torch.optim` has no such class.
    """
    import torch

    optimizer: Optimizer = getattr(torch.optim, kind)(parameters, lr=lr, **options)
    return optimizer


def _classification(tiny: Tiny, generator: Any) -> tuple[Tensor, Tensor]:
    return _clusters(tiny, generator, (tiny.features,))


def _images(tiny: Tiny, generator: Any) -> tuple[Tensor, Tensor]:
    return _clusters(tiny, generator, (tiny.channels, tiny.size, tiny.size))


def _clusters(tiny: Tiny, generator: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Each class around a centre of its own, with less noise than between centres."""
    import torch

    targets = torch.arange(tiny.examples) % tiny.classes
    centres = torch.randn(tiny.classes, *shape, generator=generator)
    noise = torch.randn(tiny.examples, *shape, generator=generator)
    return centres[targets] * 2 + noise * 0.1, targets


def _regression(tiny: Tiny, generator: Any) -> tuple[Tensor, Tensor]:
    import torch

    inputs = torch.randn(tiny.examples, tiny.features, generator=generator)
    weights = torch.randn(tiny.features, 1, generator=generator)
    return inputs, inputs @ weights


def _tokens(tiny: Tiny, generator: Any) -> tuple[Tensor, Tensor]:
    """Each sequence counts up from a random token: the next token follows from the last."""
    import torch

    starts = torch.randint(tiny.vocabulary, (tiny.examples, 1), generator=generator)
    counts = (starts + torch.arange(tiny.length + 1)) % tiny.vocabulary
    return counts[:, :-1], counts[:, 1:]


_MAKERS = {
    "classification": _classification,
    "regression": _regression,
    "images": _images,
    "tokens": _tokens,
}
