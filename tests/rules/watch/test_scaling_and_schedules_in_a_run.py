"""Rules about loss scaling, schedules and accumulation in watched runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from tests.rules.watch.conftest import Observed, batches, network

HERE = "tests/rules/watch/test_scaling_and_schedules_in_a_run.py"


def scaled_loop(*, unscale: bool, norm: float | None, bypass: bool = False) -> None:
    model = network()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for x, y in batches():
        opt.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if unscale:
            scaler.unscale_(opt)
        if norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), norm)
        if bypass:
            opt.step()
        else:
            scaler.step(opt)
            scaler.update()


def test_a_clip_of_scaled_gradients(observed: Observed) -> None:
    assert observed(lambda: scaled_loop(unscale=False, norm=1.0)) == [
        (
            "clip-before-unscale: gradients are clipped to 1 while they still carry the loss scale"
            " of 1024: unscaled, that is 0.000977"
        )
    ]


@pytest.mark.parametrize(
    ("unscale", "norm"), [(True, 1.0), (False, 1024.0), (False, float("inf")), (False, None)]
)
def test_clips_of_unscaled_gradients(observed: Observed, unscale: bool, norm: float | None) -> None:
    assert observed(lambda: scaled_loop(unscale=unscale, norm=norm)) == []


def test_a_step_past_the_scaler(observed: Observed) -> None:
    line = scaled_loop.__code__.co_firstlineno + 2
    assert observed(lambda: scaled_loop(unscale=False, norm=None, bypass=True)) == [
        (
            f"step-bypasses-scaler: `opt` (SGD, built at {HERE}:{line}) used gradients that still"
            " carry the loss scale of 1024: 6 steps went past the scaler"
        )
    ]


def test_a_step_after_unscaling_needs_no_scaler(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for x, y in batches():
            opt.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            scaler.unscale_(opt)
            opt.step()
            scaler.update()

    assert observed(loop) == []


@pytest.mark.parametrize("by_hand", [True, False])
def test_gradients_that_are_unscaled_by_hand(observed: Observed, by_hand: bool) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=by_hand)
        for x, y in batches():
            opt.zero_grad()
            scaler.scale(F.cross_entropy(model(x), y)).backward()
            for parameter in model.parameters() if by_hand else ():
                assert parameter.grad is not None
                parameter.grad /= 1024.0
            opt.step()

    assert observed(loop) == []


def test_an_update_that_the_scaler_leaves_out(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for number, (x, y) in enumerate(batches()):
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y) * (float("inf") if number == 2 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()

    assert observed(loop) == []


def scheduled_loop(*, first: bool, told: bool = False) -> None:
    model = network()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = lr_scheduler.StepLR(opt, step_size=100)
    for number, (x, y) in enumerate(batches()):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if not first:
            opt.step()
        scheduler.step(number) if told else scheduler.step()
        if first:
            opt.step()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_scheduler_that_steps_first(observed: Observed) -> None:
    line = scheduled_loop.__code__.co_firstlineno + 2
    assert observed(lambda: scheduled_loop(first=True)) == [
        (
            f"scheduler-before-optimizer: the StepLR of `opt` (SGD, built at {HERE}:{line}) steps"
            " before it: the first learning rate of the schedule is never used"
        )
    ]


def test_a_scheduler_that_steps_last(observed: Observed) -> None:
    assert observed(lambda: scheduled_loop(first=False)) == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_scheduler_that_is_told_the_epoch(observed: Observed) -> None:
    assert observed(lambda: scheduled_loop(first=True, told=True)) == []


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_a_scheduler_that_catches_up_before_the_loop(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = lr_scheduler.StepLR(opt, step_size=100)
        scheduler.step()
        for x, y in batches():
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
            scheduler.step()

    assert observed(loop) == []


def examples(number: int = 12) -> DataLoader[tuple[torch.Tensor, ...]]:
    inputs, targets = torch.randn(number, 4), torch.arange(number) % 2
    return DataLoader(TensorDataset(inputs, targets), batch_size=4)


def epochs_loop(kind: str, horizon: int, *, each_batch: bool, epochs: int = 4) -> None:
    model, loader = network(), examples()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler: lr_scheduler.LRScheduler = (
        lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=horizon)
        if kind == "OneCycleLR"
        else lr_scheduler.CosineAnnealingLR(opt, T_max=horizon)
    )
    for _ in range(epochs):
        for x, y in loader:
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
            if each_batch:
                scheduler.step()
        if not each_batch:
            scheduler.step()


def test_a_schedule_of_epochs_that_steps_at_each_batch(observed: Observed) -> None:
    assert observed(lambda: epochs_loop("CosineAnnealingLR", 4, each_batch=True)) == [
        (
            "scheduler-wrong-cadence: the CosineAnnealingLR is made for 4 epochs, and steps at each"
            " of the 12 batches: it is through in 4 batches"
        )
    ]


def test_a_schedule_of_batches_that_steps_once_an_epoch(observed: Observed) -> None:
    assert observed(lambda: epochs_loop("OneCycleLR", 12, each_batch=False)) == [
        (
            "scheduler-wrong-cadence: the OneCycleLR is made for 12 batches, and steps once an"
            " epoch: it ends after 4 of them"
        )
    ]


@pytest.mark.parametrize(
    ("kind", "horizon", "each_batch"),
    [
        ("CosineAnnealingLR", 4, False),
        ("CosineAnnealingLR", 12, True),
        ("CosineAnnealingLR", 6, True),
        ("OneCycleLR", 12, True),
        ("OneCycleLR", 100, True),
    ],
)
def test_schedules_that_step_as_they_are_made(
    observed: Observed, kind: str, horizon: int, each_batch: bool
) -> None:
    assert observed(lambda: epochs_loop(kind, horizon, each_batch=each_batch)) == []


def accumulating_loop(style: str, number: int = 20) -> None:
    """Five batches an epoch, an update for two."""
    model, loader = network(), examples(number)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    count = 0
    for _ in range(3):
        if style == "cleared":
            opt.zero_grad()
        if style != "counted on":
            count = 0
        for x, y in loader:
            count += 1
            (F.cross_entropy(model(x), y) / 2).backward()
            if count % 2 == 0 or (style == "flushed" and count == len(loader)):
                opt.step()
                opt.zero_grad()


@pytest.mark.parametrize(
    ("style", "fate"),
    [
        ("cleared", "are cleared before any update used them"),
        ("leaked", "make the first update of the next epoch a larger one"),
    ],
)
def test_micro_batches_that_are_left(observed: Observed, style: str, fate: str) -> None:
    assert observed(lambda: accumulating_loop(style)) == [
        (
            "dropped-accumulation-tail: 1 of 2 micro-batches are left at the end of an epoch,"
            f" and {fate}"
        )
    ]


@pytest.mark.parametrize(
    ("style", "number"), [("flushed", 20), ("counted on", 20), ("cleared", 16), ("leaked", 16)]
)
def test_micro_batches_that_are_all_used(observed: Observed, style: str, number: int) -> None:
    assert observed(lambda: accumulating_loop(style, number)) == []
