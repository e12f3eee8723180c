"""Which modules have something to learn or to switch."""

from __future__ import annotations

import pytest

from pytest_trainloop.source.facts import has_state
from pytest_trainloop.source.read import read_source

CLASSES = """
import torch
from torch import nn

class Learns(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

class Inherits(Learns):
    pass

class Clamped(nn.Linear):
    def forward(self, x):
        return super().forward(x).clamp(0)

class Holds(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.inner = Clamped(n, n)

class Shifts(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by
"""


def state_of(expression: str) -> bool:
    """Whether the value of an expression has state."""
    facts = read_source(f"{CLASSES}\nmade = {expression}\n", "nets.py")
    return has_state(facts.traces[0].stores[-1].value)


@pytest.mark.parametrize(
    "expression",
    [
        "nn.Linear(2, 2)",
        "nn.Dropout(0.1)",
        "nn.BatchNorm2d(4).cuda()",
        "nn.Sequential(nn.ReLU(), nn.Linear(2, 2))",
        "Learns()",
        "Inherits()",
        "Clamped(2, 2)",
        "Holds(2)",
    ],
)
def test_parameters_buffers_and_modes_are_state(expression: str) -> None:
    assert state_of(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "nn.ReLU()",
        "nn.Sequential(nn.ReLU(), nn.Flatten())",
        "nn.CrossEntropyLoss()",
        "Shifts(1)",
        "torch.ones(2)",
        "unknown()",
        "[]",
    ],
)
def test_functions_and_what_is_unknown_have_no_state(expression: str) -> None:
    assert not state_of(expression)
