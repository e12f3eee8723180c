"""Rules about optimizers in watched runs: what they say, and what they are silent about."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_trainloop import watch
from tests.rules.watch.conftest import Observed, batches, network, train

HERE = "tests/rules/watch/test_optimizers_in_a_run.py"


def test_a_layer_outside_of_the_optimizer(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.Adam(model[2].parameters())
        train(model, opt)

    assert observed(loop) == [
        (
            "parameters-not-in-optimizer: `0.weight` and `0.bias` get gradients but are in no"
            " optimizer, and did not move in 6 steps"
        )
    ]


def test_layers_that_are_frozen_or_have_an_optimizer_of_their_own(observed: Observed) -> None:
    def loop() -> None:
        frozen = network()
        frozen[0].requires_grad_(requires_grad=False)
        train(frozen, torch.optim.Adam(frozen[2].parameters()))
        model = network()
        train(model, *(torch.optim.Adam(layer.parameters()) for layer in (model[0], model[2])))

    assert observed(loop) == []


def test_the_optimizer_of_a_part_that_is_trained_later(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt, later = (torch.optim.Adam(layer.parameters()) for layer in (model[0], model[2]))
        train(model, opt)
        assert later is not None

    assert observed(loop) == []


def test_a_judge_that_gets_stray_gradients(observed: Observed) -> None:
    def loop() -> None:
        generator, judge = nn.Linear(4, 4), network()
        train(nn.Sequential(generator), torch.optim.Adam(generator.parameters()))
        opt = torch.optim.Adam(generator.parameters())
        for x, _ in batches():
            opt.zero_grad()
            judge(generator(x)).mean().backward()
            opt.step()

    assert observed(loop) == []


def test_a_head_that_is_replaced_after_the_optimizer_was_built(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.Adam(model.parameters())
        model[2] = nn.Linear(8, 2)
        gc.collect()
        train(model, opt)

    late, orphans = observed(loop)
    assert late == (
        "orphan-parameters: 2 parameters of `optimizer` (Adam, built at"
        f" {HERE}:{loop.__code__.co_firstlineno + 2}) belong to no model and never get a gradient"
    )
    assert orphans == (
        "parameters-after-optimizer: `2.weight` and `2.bias` became part of the model after"
        f" `optimizer` (Adam, built at {HERE}:{loop.__code__.co_firstlineno + 2}) had been built:"
        " no optimizer updates them"
    )


def test_a_head_that_is_handed_over(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.Adam(model[0].parameters())
        model[2] = nn.Linear(8, 2)
        opt.add_param_group({"params": model[2].parameters()})
        train(model, opt)

    assert observed(loop) == []


def test_parameters_that_no_module_owns(observed: Observed) -> None:
    def loop() -> None:
        point = nn.Parameter(torch.zeros(3))
        opt = torch.optim.SGD([point], lr=0.1)
        for _ in range(4):
            opt.zero_grad()
            (point - 1).square().sum().backward()
            opt.step()

    assert observed(loop) == []


class Hidden(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.blocks = [nn.Linear(4, 4) for _ in range(layers)]
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        out: torch.Tensor = self.head(x)
        return out


def test_layers_in_a_list(observed: Observed) -> None:
    def loop() -> None:
        model = Hidden(3)
        train(model, torch.optim.Adam(model.parameters()))

    assert observed(loop) == [
        (
            "unregistered-modules: `Hidden.blocks` holds 6 parameters that the loss depends on and"
            " torch does not know of: no optimizer updates them"
        )
    ]


def test_a_list_of_one_hides_a_module_on_purpose(observed: Observed) -> None:
    def loop() -> None:
        model = Hidden(1)
        train(model, torch.optim.Adam(model.parameters()))

    assert observed(loop) == []


def test_a_learning_rate_of_zero(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.Adam(model.parameters(), lr=0.0)
        train(model, opt)

    line = loop.__code__.co_firstlineno + 2
    assert observed(loop) == [
        (
            "zero-learning-rate: the learning rate is 0 in all 6 steps of `optimizer` (Adam,"
            f" built at {HERE}:{line})"
        )
    ]


@pytest.mark.parametrize(("dead", "speaks"), [(1, False), (3, True)])
def test_a_warm_up_from_zero(observed: Observed, dead: int, speaks: bool) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.Adam(model.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: min(1, step // dead))
        for x, y in batches():
            opt.zero_grad()
            F.cross_entropy(model(x), y).backward()
            opt.step()
            scheduler.step()

    said = observed(loop)
    assert [one.partition(" of `opt`")[0] for one in said] == (
        ["zero-learning-rate: the learning rate is 0 in the first 3 of 6 steps"] if speaks else []
    )


def test_frozen_parameters(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        opt = torch.optim.Adam(model[0].parameters())
        model[0].requires_grad_(requires_grad=False)
        other = torch.optim.Adam(model[2].parameters())
        train(model, opt, other)

    line = loop.__code__.co_firstlineno + 2
    assert observed(loop) == [
        (
            f"frozen-parameters: all 2 parameters of `optimizer` (Adam, built at {HERE}:{line})"
            " are frozen:"
            " its 6 steps changed nothing"
        )
    ]


def make_and_train(model: nn.Module, kind: type[torch.optim.Optimizer]) -> None:
    opt = kind(model.parameters(), lr=1e-3)  # type: ignore[call-arg]  # every optimizer has it
    train(model, opt, steps=2)


def test_an_optimizer_that_is_built_anew(observed: Observed) -> None:
    def loop() -> None:
        model = network()
        for _ in range(4):
            make_and_train(model, torch.optim.Adam)

    line = make_and_train.__code__.co_firstlineno + 1
    assert observed(loop) == [
        (
            f"optimizer-in-loop: `optimizer` (Adam, built at {HERE}:{line}) is built anew"
            " 3 times over the same parameters: what it has learned of them is lost each time"
        )
    ]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_optimizers_that_may_be_built_anew(
    observed: Observed, kind: type[torch.optim.Optimizer]
) -> None:
    def loop() -> None:
        model = network()
        start = {name: value.clone() for name, value in model.state_dict().items()}
        for _ in range(4):
            if kind is torch.optim.Adam:
                # Each client begins with the weights of the server.
                model.load_state_dict(start)
            make_and_train(model, kind)
        make_and_train(model, kind)
        make_and_train(network(), kind)

    assert observed(loop) == []


def test_a_group_that_is_made_longer_between_close_looks() -> None:
    model, head = network(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch() as run:
        for number, (x, y) in enumerate(batches(80)):
            optimizer.zero_grad()
            F.cross_entropy(head(model(x)), y).backward()
            if number == 70:
                optimizer.param_groups[0]["params"] += head.parameters()
            optimizer.step()
    assert [one.optimizers for one in run.parameters if one.reached] == [(0,)] * 6


def test_another_model_of_the_same_name_is_not_part_of_the_trained_one(observed: Observed) -> None:
    def explain() -> None:
        model = network()
        for x, _ in batches():
            model(x.requires_grad_()).sum().backward()

    def fit() -> None:
        model = network()
        train(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def loop() -> None:
        explain()
        fit()
        explain()

    assert observed(loop) == []
