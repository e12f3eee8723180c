"""Rules about gradients in watched runs: what they say, and what they are silent about."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_trainloop import watch
from tests.rules.watch.conftest import Observed, batches, network, train

HERE = "tests/rules/watch/test_gradients_in_a_run.py"


def test_gradients_that_are_never_cleared(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches():
            F.cross_entropy(model(x), y).backward()
            opt.step()

    (said,) = observed(loop)
    assert said.startswith(
        "missing-zero-grad: the gradients of `0.weight`, `0.bias`, `2.weight` and 1 more are not"
        f" cleared between steps of `opt` (SGD, built at {HERE}:"
    )
    assert said.endswith("): 5 of 6 steps also used those of the step before")


def test_gradients_that_are_cleared_before_the_step(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches():
            F.cross_entropy(model(x), y).backward()
            opt.zero_grad()
            opt.step()

    (said,) = observed(loop)
    assert said.startswith(
        "zero-grad-before-step: the gradients are cleared between `backward()` and the step of"
        f" `opt` (SGD, built at {HERE}:"
    )
    assert said.endswith("): none of its 6 steps had any")


def test_a_loop_without_a_step(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches():
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()

    assert observed(loop) == [
        (
            "missing-step: no optimizer stepped: 6 backward calls and 6 zero_grad calls of SGD,"
            " but no `step()`"
        )
    ]


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        trunk: torch.Tensor = self.trunk(x)
        out: torch.Tensor = self.head(trunk.detach())
        return out


def test_a_trunk_that_is_cut_off(observed: Observed) -> None:
    def loop() -> None:
        model = Cut()
        train(model, torch.optim.Adam(model.parameters()))

    (said,) = observed(loop)
    assert said.startswith(
        "detached-loss: no gradient reaches `trunk.weight` and `trunk.bias`, which"
        " `optimizer` (Adam"
    )
    assert said.endswith(") is to update")


def test_a_loss_that_is_made_anew(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches():
            opt.zero_grad()
            torch.tensor(F.cross_entropy(model(x), y).item(), requires_grad=True).backward()
            opt.step()

    (said,) = observed(loop)
    assert said.startswith(
        "detached-loss: no gradient reaches `0.weight`, `0.bias`, `2.weight` and 1 more, which"
        " `opt` (SGD"
    )


def test_a_part_that_the_loss_does_not_use_is_no_detached_loss(observed: Observed) -> None:
    class WithPooler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names, self.trunk = nn.Embedding(9, 4), nn.Linear(4, 2)
            self.pooler = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.trunk(x)
            return out

    def loop() -> None:
        model = WithPooler()
        train(model, torch.optim.AdamW(model.parameters()))

    assert observed(loop) == []


def test_a_frozen_trunk_is_no_detached_loss(observed: Observed) -> None:
    def loop() -> None:
        model = Cut()
        model.trunk.requires_grad_(requires_grad=False)
        train(model, torch.optim.AdamW(model.parameters()))

    assert observed(loop) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite(observed: Observed, value: float) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for number, (x, y) in enumerate(batches()):
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if number == 2:
                loss = loss * value
            loss.backward()
            opt.step()

    (said,) = observed(loop)
    assert said.startswith(
        f"non-finite-update: the loss is {value} at step 3, and `opt` (SGD, built at {HERE}:"
    )
    assert said.endswith(") updated 4 parameters with it")


def test_a_batch_that_is_left_out_is_no_such_update(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for number, (x, y) in enumerate(batches()):
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y) * (float("nan") if number == 2 else 1.0)
            if torch.isfinite(loss):
                loss.backward()
                opt.step()

    assert observed(loop) == []


@pytest.mark.parametrize("number", [2, 80, 99])
def test_a_loss_of_no_target_is_not_finite_and_changes_nothing(
    observed: Observed, number: int
) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for turn, (x, y) in enumerate(batches(100)):
            opt.zero_grad()
            # The mean over no target is nan, its gradient zero.
            target = torch.full_like(y, -100) if turn == number else y
            F.cross_entropy(model(x), target).backward()
            opt.step()

    assert observed(loop) == []


def test_gradients_that_are_dropped_are_no_such_update(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for turn, (x, y) in enumerate(batches(100)):
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y) * (float("nan") if turn in (2, 80) else 1.0)
            loss.backward()
            if not torch.isfinite(loss):
                opt.zero_grad()
            opt.step()

    assert observed(loop) == []


@pytest.mark.parametrize("closure", [False, True])
def test_a_late_update_that_is_not_finite(observed: Observed, closure: bool) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for turn, (x, y) in enumerate(batches(81)):

            def loss(x: Tensor = x, y: Tensor = y, turn: int = turn) -> Tensor:
                opt.zero_grad()
                value = F.cross_entropy(model(x), y) * (float("nan") if turn == 80 else 1.0)
                value.backward()
                return value

            if closure:
                opt.step(loss)
            else:
                loss()
                opt.step()

    (said,) = observed(loop)
    assert said.startswith("non-finite-update: the loss is nan at step 81, and ")


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float16, 2e3), (torch.bfloat16, 1e30), (torch.float32, 1e20)]
)
def test_a_norm_beyond_the_numbers_of_its_type_is_that_of_finite_gradients(
    dtype: torch.dtype, scale: float
) -> None:
    model = nn.Linear(64, 64, bias=False).to(dtype)
    opt = torch.optim.SGD(model.parameters(), lr=1e-12)
    with watch() as run:
        for _ in range(3):
            opt.zero_grad()
            (model(torch.ones(1, 64, dtype=dtype)).float().sum() * scale).backward()
            opt.step()
    assert run.observations == []
    assert run.gradient_norms == pytest.approx([64 * scale] * 3, rel=1e-2)


def test_a_clip_after_the_step(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches():
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    (said,) = observed(loop)
    assert said.startswith(
        f"misplaced-clip: gradients are clipped after the step of `opt` (SGD, built at {HERE}:"
    )
    assert said.endswith("), 6 of 6 times: the update has used them unclipped")


@pytest.mark.parametrize("norm", [1.0, float("inf")])
def test_a_clip_in_its_place(observed: Observed, norm: float) -> None:
    def loop() -> None:
        one, other = network(), network()
        opt_one = torch.optim.SGD(one.parameters(), lr=0.1)
        opt_other = torch.optim.SGD(other.parameters(), lr=0.1)
        for x, y in batches():
            opt_one.zero_grad()
            opt_other.zero_grad()
            (F.cross_entropy(one(x), y) + F.cross_entropy(other(x), y)).backward()
            nn.utils.clip_grad_norm_(one.parameters(), 1.0)
            opt_one.step()
            # Of the one: a norm to log. Of the other: not stepped so far.
            nn.utils.clip_grad_norm_(one.parameters(), float("inf"))
            nn.utils.clip_grad_norm_(other.parameters(), norm)
            opt_other.step()

    assert observed(loop) == []
