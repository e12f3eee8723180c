"""Rules about seeds, data order and kept states in watched runs: what they say, and when not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pytest_trainloop import watch
from tests.rules.watch.conftest import Observed, batches, network

HERE = "tests/rules/watch/test_chance_and_state_in_a_run.py"


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: object = None,
) -> None:
    for x, y in batches(4) if loader is None else loader:  # type: ignore[attr-defined]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def built(*layers: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), *layers, nn.Linear(8, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def dataset() -> TensorDataset:
    return TensorDataset(torch.randn(8, 4), torch.arange(8) % 2)


# Seeds


def set_seed(seed: int) -> None:
    torch.manual_seed(seed)


SEEDED = "seed-in-loop: the seed 7 is set again while training goes on: {} times, what is trained"
SEEDED += " next draws the same random numbers"


def set_seed_by_module(seed: int) -> None:
    torch.random.manual_seed(seed)


@pytest.mark.parametrize("seed", [set_seed, set_seed_by_module])
def test_a_seed_in_each_epoch(observed: Observed, seed: Callable[[int], object]) -> None:
    def loop() -> None:
        data = batches(4)
        model, optimizer = built(nn.Dropout(0.5))
        for _ in range(3):
            seed(7)
            train(model, optimizer, data)

    assert observed(loop) == [SEEDED.format(3)]


def test_a_seed_in_each_step(observed: Observed) -> None:
    def loop() -> None:
        model, optimizer = built(nn.Dropout(0.5))
        for batch in batches(5):
            torch.manual_seed(7)
            train(model, optimizer, [batch])

    assert observed(loop) == [SEEDED.format(5)]


def test_a_seed_that_makes_each_epoch_shuffle_alike(observed: Observed) -> None:
    def loop() -> None:
        loader = DataLoader(dataset(), batch_size=4, shuffle=True)
        model, optimizer = built()
        for _ in range(2):
            torch.manual_seed(7)
            train(model, optimizer, loader)

    assert observed(loop) == [SEEDED.format(2)]


def test_an_evaluation_that_leaves_its_seed_behind(observed: Observed) -> None:
    def evaluate() -> None:
        torch.manual_seed(7)
        torch.randn(3)

    def loop() -> None:
        data = batches(4)
        model, optimizer = built(nn.Dropout(0.5))
        for _ in range(3):
            train(model, optimizer, data)
            evaluate()

    # The last one is followed by no training.
    assert observed(loop) == [SEEDED.format(2)]


def seeded_once(data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    torch.manual_seed(7)
    model, optimizer = built(nn.Dropout(0.5))
    train(model, optimizer, data)


def seeded_by_epoch(data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    model, optimizer = built(nn.Dropout(0.5))
    for epoch in range(3):
        torch.manual_seed(7 + epoch)
        train(model, optimizer, data)


def seeded_for_a_moment(data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    model, optimizer = built(nn.Dropout(0.5))
    for _ in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            torch.randn(3)
        train(model, optimizer, data)


def seeded_for_each_model(data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for _ in range(3):
        seeded_once(data)


def seeded_for_nothing(data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Nothing is drawn in training, but for what a loader draws when it begins."""
    loader = DataLoader(dataset(), batch_size=4)
    model, optimizer = built()
    for _ in range(3):
        torch.manual_seed(7)
        train(model, optimizer, loader)
        train(model, optimizer, data)


def seeded_with_shuffling_of_its_own(_data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    generator = torch.Generator().manual_seed(1)
    loader = DataLoader(dataset(), batch_size=4, shuffle=True, generator=generator)
    model, optimizer = built()
    for _ in range(3):
        torch.manual_seed(7)
        train(model, optimizer, loader)


def seeded_from_the_same_start(data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Two trainings that are compared, with weights that are put back in between."""
    model, optimizer = built(nn.Dropout(0.5))
    start = copy.deepcopy(model.state_dict())
    for _ in range(3):
        torch.manual_seed(7)
        model.load_state_dict(start)
        train(model, optimizer, data)


@pytest.mark.parametrize(
    "loop",
    [
        seeded_once,
        seeded_by_epoch,
        seeded_for_a_moment,
        seeded_for_each_model,
        seeded_for_nothing,
        seeded_with_shuffling_of_its_own,
        seeded_from_the_same_start,
    ],
)
def test_seeds_that_repeat_nothing(
    observed: Observed, loop: Callable[[list[tuple[torch.Tensor, torch.Tensor]]], None]
) -> None:
    data = batches(4)
    assert observed(lambda: loop(data)) == []


# Data order


def sampler_of(data: TensorDataset, *, shuffle: bool = True) -> DistributedSampler[object]:
    return DistributedSampler(data, num_replicas=2, rank=0, shuffle=shuffle)


def test_a_sampler_that_is_never_told_the_epoch() -> None:
    data = dataset()
    loader = DataLoader(data, batch_size=2, sampler=sampler_of(data))
    with watch() as run:
        model, optimizer = built()
        for _ in range(3):
            train(model, optimizer, loader)
    (one,) = run.observations
    assert f"{one.rule}: {one.message}" == (
        "missing-set-epoch: `DistributedSampler` shuffled all 3 passes over `TensorDataset` alike:"
        " by seed 0 and epoch 0"
    )
    assert one.advice == "tell it the epoch before each pass: `loader.sampler.set_epoch(epoch)`"
    assert one.where.startswith(f"{HERE}:")


class Counting(DistributedSampler[object]):
    def __iter__(self) -> Iterator[object]:
        self.epoch += 1
        return super().__iter__()


def told_the_epoch(data: TensorDataset) -> None:
    sampler = sampler_of(data)
    loader = DataLoader(data, batch_size=2, sampler=sampler)
    model, optimizer = built()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        train(model, optimizer, loader)


def counts_epochs_itself(data: TensorDataset) -> None:
    loader = DataLoader(data, batch_size=2, sampler=Counting(data, num_replicas=2, rank=0))
    model, optimizer = built()
    for _ in range(3):
        train(model, optimizer, loader)


def does_not_shuffle(data: TensorDataset) -> None:
    loader = DataLoader(data, batch_size=2, sampler=sampler_of(data, shuffle=False))
    model, optimizer = built()
    for _ in range(3):
        train(model, optimizer, loader)


def is_trained_on_once(data: TensorDataset) -> None:
    loader = DataLoader(data, batch_size=2, sampler=sampler_of(data))
    for _ in range(2):
        model, optimizer = built()
        train(model, optimizer, loader)
        with torch.no_grad():
            for x, _ in loader:
                model(x)


@pytest.mark.parametrize(
    "loop", [told_the_epoch, counts_epochs_itself, does_not_shuffle, is_trained_on_once]
)
def test_samplers_that_are_in_order(
    observed: Observed, loop: Callable[[TensorDataset], None]
) -> None:
    data = dataset()
    assert observed(lambda: loop(data)) == []


# Kept states


def test_a_best_state_that_is_not_a_copy() -> None:
    with watch() as run:
        model, optimizer = built()
        train(model, optimizer)
        best_state = model.state_dict()
        train(model, optimizer)
        model.load_state_dict(best_state)
    (one,) = run.observations
    assert f"{one.rule}: {one.message}" == (
        "aliased-best-state: loading `best_state` puts nothing back: it holds the weights of"
        " `model` themselves, not a copy, and 4 steps changed them since"
    )
    assert one.evidence[0].startswith(f"the state dict was taken at {HERE}:")
    assert one.advice == (
        "keep a copy when the state is taken: `copy.deepcopy(model.state_dict())`"
    )


def test_a_shallow_copy_is_no_copy(observed: Observed) -> None:
    def loop() -> None:
        model, optimizer = built()
        best = dict(model.state_dict())
        train(model, optimizer)
        model.load_state_dict(best)

    (said,) = observed(loop)
    assert said.startswith("aliased-best-state: loading `best` puts nothing back")


def keeps_a_copy(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    best = copy.deepcopy(model.state_dict())
    train(model, optimizer)
    model.load_state_dict(best)


def follows_another(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    target = copy.deepcopy(model)
    state = model.state_dict()
    train(model, optimizer)
    target.load_state_dict(state)


def replaces_some(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    state = model.state_dict()
    train(model, optimizer)
    state["0.weight"] = torch.zeros(8, 4)
    model.load_state_dict(state)


def loads_at_once(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    train(model, optimizer)
    model.load_state_dict(model.state_dict())
    train(model, optimizer)


@pytest.mark.parametrize("loop", [keeps_a_copy, follows_another, replaces_some, loads_at_once])
def test_states_that_are_kept_well(
    observed: Observed, loop: Callable[[nn.Module, torch.optim.Optimizer], None]
) -> None:
    assert observed(lambda: loop(*built())) == []


# Losses that are left out


@contextmanager
def scaled(*, enabled: bool) -> Iterator[torch.amp.GradScaler]:
    yield torch.amp.GradScaler("cpu", enabled=enabled)


@pytest.mark.parametrize("by_scaler", [False, True])
def test_a_run_that_leaves_all_out_at_its_end(observed: Observed, by_scaler: bool) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        with scaled(enabled=by_scaler) as scaler:
            for number, (x, y) in enumerate(batches(12)):
                opt.zero_grad()
                loss = F.cross_entropy(model(x), y) * (1.0 if number < 2 else math.nan)
                scaler.scale(loss).backward()
                if by_scaler or torch.isfinite(loss):
                    scaler.step(opt)
                scaler.update()

    (said,) = observed(loop)
    assert said.startswith(
        "silent-nan-skip: the last 10 losses are not finite, and all of them are left out: the run"
        f" went on for nothing after step 2 of `opt` (SGD, built at {HERE}:"
    )


@pytest.mark.parametrize("broken", [range(2, 6), range(2, 11), range(8, 12)])
def test_a_run_that_recovers_or_has_not_shown_that_it_does_not(
    observed: Observed, broken: range
) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for number, (x, y) in enumerate(batches(12)):
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y) * (math.nan if number in broken else 1.0)
            loss.backward()
            if torch.isfinite(loss):
                opt.step()

    assert observed(loop) == []
    with watch() as run:
        loop()
    assert len(run.losses) == 12 - len(broken)
    assert all(map(math.isfinite, run.losses))


def test_losses_that_overflow_by_their_scale_alone(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=1)
        for x, y in batches(12):
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y) * 1e10
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()

    assert observed(loop) == []
