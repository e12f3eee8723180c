"""The network: three convolutions and a linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from examples.classifier.shapes import NAMES, SIDE


class Network(nn.Module):
    """Pictures (n, 1, SIDE, SIDE) to logits (n, classes).

    It ends in logits, not in probabilities: cross entropy takes the softmax itself, and a
    second one in front of it would keep the loss from ever getting near 0.

    Batch norm and dropout behave differently in train and eval mode, and dropout draws from
    the RNG, so a run that mixes up its modes or loses its RNG is another run. They are here for
    the same reason as in any network, and they keep the example honest.
    """

    def __init__(self, width: int, dropout: float) -> None:
        """Make the layers; `width` channels at first, four times as many at the end."""
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, width, stride=1),
            *_convolution(width, 2 * width, stride=2),
            *_convolution(2 * width, 4 * width, stride=2),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width * (SIDE // 4) ** 2, len(NAMES))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of the classes."""
        features: Tensor = self.features(pictures)
        logits: Tensor = self.head(self.dropout(features.flatten(1)))
        return logits


def _convolution(channels_in: int, channels_out: int, stride: int) -> list[nn.Module]:
    # Strides instead of pooling: the gradients of some pooling layers add up in a different
    # order from run to run on a GPU. No bias: the batch norm behind it has one.
    return [
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
