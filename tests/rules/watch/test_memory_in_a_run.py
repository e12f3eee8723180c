"""Rules about memory in watched runs: what they say, and what they are silent about."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pytest_trainloop import watch
from tests.rules.watch.conftest import Observed, batches, network

HERE = "tests/rules/watch/test_memory_in_a_run.py"


def losses_kept() -> None:
    model, losses = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss)


def test_a_list_of_losses() -> None:
    with watch() as run:
        losses_kept()
    (one,) = run.observations
    assert f"{one.rule}: {one.message}" == (
        "kept-loss-graph: `losses` keeps the graph of each step: this list holds 8 tensors with"
        " what computed them"
    )
    assert one.advice == "keep the number alone: `loss.item()`, or `loss.detach()`"
    assert one.where == f"{HERE}:{losses_kept.__code__.co_firstlineno + 6}"


class Trainer:
    """A loop that hands its losses to `keep`, before they are divided."""

    def __init__(self, keep: Callable[[Trainer, Tensor], object]) -> None:
        self.model, self.total = network(), torch.zeros(())
        self.history: dict[str, Any] = {"loss": [], "recent": deque(maxlen=9)}
        self.keep = keep

    def fit(self, *, retain_graph: bool = False) -> None:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        for x, y in batches(14):
            optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            (loss / 2).backward(retain_graph=retain_graph)
            optimizer.step()
            self.keep(self, loss)


def add_up(trainer: Trainer, loss: Tensor) -> None:
    trainer.total = trainer.total + loss


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (
            lambda trainer, loss: trainer.history["loss"].append(loss),
            (
                "`self.history['loss']` keeps the graph of each step: this list holds 8 tensors"
                " with what computed them"
            ),
        ),
        (
            add_up,
            "`self.total` keeps the graph of each step: what computed it goes back through 8 steps",
        ),
    ],
)
def test_other_holders(
    observed: Observed, keep: Callable[[Trainer, Tensor], object], said: str
) -> None:
    assert observed(lambda: Trainer(keep).fit()) == [f"kept-loss-graph: {said}"]


def add_up_detached(trainer: Trainer, loss: Tensor) -> None:
    trainer.total += loss.detach()


class Cycle:
    """Rubbish that only the collector finds."""

    def __init__(self, loss: Tensor) -> None:
        self.loss, self.me = loss, self


@pytest.mark.parametrize(
    "keep",
    [
        pytest.param(lambda _, loss: loss, id="nothing"),
        pytest.param(lambda one, loss: one.history["loss"].append(loss.item()), id="numbers"),
        pytest.param(lambda one, loss: one.history["loss"].append(loss.detach()), id="detached"),
        pytest.param(lambda one, loss: one.history["recent"].append(loss), id="window"),
        pytest.param(lambda _, loss: Cycle(loss), id="rubbish"),
        pytest.param(add_up_detached, id="detached total"),
    ],
)
def test_loops_that_let_go(observed: Observed, keep: Callable[[Trainer, Tensor], object]) -> None:
    assert observed(lambda: Trainer(keep).fit()) == []


def test_graphs_that_are_to_be_used_again(observed: Observed) -> None:
    def keep(trainer: Trainer, loss: Tensor) -> None:
        trainer.history["loss"].append(loss)

    assert observed(lambda: Trainer(keep).fit(retain_graph=True)) == []


def test_losses_that_one_backward_is_made_of(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            losses = [F.cross_entropy(model(x), y) for x, y in batches(12)]
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()

    assert observed(loop) == []


def test_many_micro_batches_of_one_step(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            losses = []
            optimizer.zero_grad()
            for x, y in batches(12):
                losses.append(F.cross_entropy(model(x), y) / 12)
                losses[-1].backward()
            optimizer.step()

    assert observed(loop) == []


def test_no_loss_lives_longer_because_it_is_watched() -> None:
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def keep(_: Trainer, loss: Tensor) -> None:
        alive.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(loss))

    with watch():
        Trainer(keep).fit()
    assert alive == [0] * 14
