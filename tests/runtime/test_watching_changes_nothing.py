"""A watched run computes, bit for bit, what it computes unwatched, whoever wrote the loop."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

from pytest_trainloop import watch
from pytest_trainloop.runtime.fingerprint import rng_digests
from pytest_trainloop.runtime.record import Run
from pytest_trainloop.runtime.seed import seeded
from tests.runtime.training_loops import STYLES

# Frameworks warn of much that is none of our business.
pytestmark = pytest.mark.filterwarnings("ignore")
FRAMEWORKS = {
    "accelerate",
    "hugging_face_trainer",
    "ignite",
    "lightning_automatic",
    "lightning_manual",
    # Compiling the first script draws random numbers too.
    "scripted_model",
}
EVERY_STYLE = pytest.mark.parametrize("style", STYLES)


def patched_places() -> list[Any]:
    """What watching replaces, and the hooks that it registers."""
    from torch.optim import optimizer
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    return [
        torch.autograd.backward,
        torch.autograd.grad,
        torch.Tensor.backward,
        torch.amp.GradScaler.scale,
        torch.amp.GradScaler.step,
        torch.amp.GradScaler.unscale_,
        torch.manual_seed,
        torch.random.manual_seed,
        torch.nn.Module.state_dict,
        torch.nn.Module.load_state_dict,
        torch.nn.Module.zero_grad,
        torch.nn.Module.train,
        torch.nn.utils.clip_grad._clip_grads_with_norm_,
        optimizer.Optimizer.zero_grad,
        torch.optim.lr_scheduler.LRScheduler._update_lr,
        _BaseDataLoaderIter.__next__,
        optimizer.Optimizer.__init__,
        dict(optimizer._global_optimizer_pre_hooks),
        dict(optimizer._global_optimizer_post_hooks),
    ]


@dataclass(frozen=True)
class Both:
    """What a loop did unwatched, then watched."""

    losses: list[float]
    weights: list[torch.Tensor]
    rng: dict[str, bytes]
    watched_losses: list[float]
    watched_weights: list[torch.Tensor]
    watched_rng: dict[str, bytes]
    run: Run


@cache
def both(style: str) -> Both:
    """Run a loop twice from the same state of all generators, the second time watched."""
    if style in FRAMEWORKS:
        # Importing one draws random numbers, and it is imported in its first run.
        STYLES[style]()
    with seeded(0):
        losses, weights = STYLES[style]()
        rng = rng_digests()
    with seeded(0), watch() as run:
        watched_losses, watched_weights = STYLES[style]()
        watched_rng = rng_digests()
    return Both(losses, weights, rng, watched_losses, watched_weights, watched_rng, run)


@EVERY_STYLE
def test_losses_and_weights_are_bit_equal(style: str) -> None:
    pair = both(style)
    assert pair.watched_losses == pair.losses
    assert all(map(torch.equal, pair.watched_weights, pair.weights))


@EVERY_STYLE
def test_the_random_number_generators_are_where_they_would_be(style: str) -> None:
    assert both(style).watched_rng == both(style).rng


@EVERY_STYLE
def test_the_record_holds_the_losses_of_the_loop(style: str) -> None:
    losses, run = both(style).losses, both(style).run
    if style == "accelerate":
        # Two micro-batches a step, which Accelerate divides by two.
        pairs = zip(losses[::2], losses[1::2], strict=True)
        losses = [(first + second) / 2 for first, second in pairs]
    if style == "nanogpt":
        # The loop itself remembers the last micro-batch only.
        losses = [step.backwards[-1].loss * 2 for step in run.steps]  # type: ignore[operator]
        assert losses == pytest.approx(both(style).losses, rel=1e-6)
        losses = [sum(b.loss or 0.0 for b in step.backwards) for step in run.steps]
    assert run.losses == pytest.approx(losses, rel=1e-6)


@EVERY_STYLE
def test_a_sound_loop_has_no_stale_gradients_and_moves_all_it_trains(style: str) -> None:
    run = both(style).run
    assert [step.stale for step in run.steps if step.stale] == []
    assert [step.without_gradient for step in run.steps if step.without_gradient] == []
    assert [p.name for p in run.parameters if not p.moved or not p.optimizers] == []
    assert [p.name for p in run.parameters if p.model is None] == []


@EVERY_STYLE
def test_every_rule_is_silent_about_a_sound_loop(style: str) -> None:
    said = [f"{one.rule}: {one.message}" for one in both(style).run.observations]
    assert said == []


@EVERY_STYLE
def test_places_are_in_the_code_of_the_user(style: str) -> None:
    run = both(style).run
    places = {backward.where for backward in run.backwards} | {step.where for step in run.steps}
    places |= {optimizer.built for optimizer in run.optimizers}
    assert {place.rpartition(":")[0] for place in places} == {"tests/runtime/training_loops.py"}


@pytest.mark.parametrize("ending", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_everything_is_put_back_whatever_the_run_ends_with(
    ending: type[BaseException] | None,
) -> None:
    before = patched_places()
    with nullcontext() if ending is None else pytest.raises(ending), watch():
        STYLES["plain"]()
        if ending is not None:
            raise ending
    assert patched_places() == before


def test_watches_nest() -> None:
    before = patched_places()
    with watch() as outer:
        STYLES["plain"]()
        with watch() as inner:
            STYLES["plain"]()
        STYLES["plain"]()
    assert inner.training_steps == 12
    assert [optimizer.steps for optimizer in outer.optimizers] == [12, 12, 12]
    assert outer.losses[12:24] == inner.losses
    assert patched_places() == before


def test_what_a_loop_keeps_of_its_own_variables_stays_as_it_was() -> None:
    def train(rate: float = 0.1, steps: int = 3) -> list[list[str]]:
        config = locals()
        model = torch.nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        kept = []
        for _ in range(steps):
            model.train()
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
            model.eval()
            kept.append(sorted(config))
        return kept

    with watch():
        assert train() == [["rate", "steps"]] * 3


def test_a_mode_that_a_function_called_train_switches_keeps_nothing_alive() -> None:
    def train() -> None:
        model = torch.nn.Linear(4, 2)
        optimizer = torch.optim.SGD(model.parameters())
        loss = model(torch.ones(1, 4)).sum()
        loss.backward()
        optimizer.step()
        model.train()
        loss_ref = weakref.ref(loss)
        del loss
        assert loss_ref() is None

    with watch():
        train()


def test_the_modes_that_a_function_called_train_switches_are_seen() -> None:
    def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.train()
        for _ in range(2):
            model(torch.ones(1, 4)).sum().backward()
            optimizer.step()
        model.eval()

    model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters())
    with watch() as run:
        train(model, optimizer)
        train(model, optimizer)
    assert [switch.train for switch in run.mode_switches] == [False, True, False]
