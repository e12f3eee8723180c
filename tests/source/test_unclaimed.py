"""Networks that a loop is meant to train, and whose parameters nothing asks for."""

from __future__ import annotations

from textwrap import indent

import pytest

from pytest_trainloop.source.facts import unclaimed
from pytest_trainloop.source.read import read_source

CODE = """\
import torch
from torch import nn
from torch.nn import functional as F
from helpers import prepare

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, x):
        return self.lin(x)

class Other(nn.Module):
    def __init__(self, part=None):
        super().__init__()
        self.lin = nn.Linear(8, 8)
        self.part = part

    def forward(self, x):
        return self.lin(x)

def main(loader, weights):
    net, other = Net(), Other()
{setup}
    for x, y in loader:
        optimizer.zero_grad()
        F.mse_loss(other(net(x){cut}), y).backward()
        optimizer.step()
"""
ALONE = "net.train()\noptimizer = torch.optim.Adam(other.parameters())"


def left_out(setup: str, cut: str = "") -> list[str]:
    """The classes of the networks that nothing claims."""
    facts = read_source(CODE.format(setup=indent(setup, "    "), cut=cut), "train.py")
    (loop,) = facts.loops
    return [network.definition.name for network in unclaimed(loop, facts.traces)]


@pytest.mark.parametrize(
    "setup",
    [
        ALONE,
        f"net.to('cuda')\n{ALONE}",
        f"net.apply(init_weights)\n{ALONE}",
        f"torch.save(net, 'first.pt')\n{ALONE}",
        ALONE.replace("train", "reset_parameters"),
        ALONE.replace("net.train()", "torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)"),
    ],
)
def test_a_network_that_nothing_claims_is_told(setup: str) -> None:
    """Whatever is done with it, if none of that gets at its parameters but to clip them."""
    assert left_out(setup) == ["Net"]


@pytest.mark.parametrize(
    "setup",
    [
        ALONE.replace("net.train()", "pass"),
        ALONE.replace("net.train()", "net.eval()"),
        ALONE.replace("other.parameters()", "[*other.parameters(), *net.parameters()]"),
        f"{ALONE}\noptimizer.add_param_group({{'params': net.parameters()}})",
        f"net.load_state_dict(weights)\n{ALONE}",
        f"net.requires_grad_(False)\n{ALONE}",
        f"net.lin.weight = other.lin.weight\nboth = [net, other]\n{ALONE}",
        f"{ALONE}\nprepare(net)",
        f"{ALONE}\nwhole = Other(net)",
        f"{ALONE}\nnets = {{'net': net}}",
        "net.train()\noptimizer = weights.optimizer",
    ],
)
def test_one_that_something_may_train_is_not(setup: str) -> None:
    """Nor one that is not known to be meant for training."""
    assert left_out(setup) == []


def test_one_behind_a_cut_is_not_told() -> None:
    """No loss reaches it, so that no optimizer could train it."""
    assert left_out(ALONE, cut=".detach()") == []
