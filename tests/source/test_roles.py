"""What part a value plays, told by what made it and, where that is out of sight, by its name."""

from __future__ import annotations

import pytest

from pytest_trainloop.source.facts import Call, is_forward, is_optimizer, is_scaler
from pytest_trainloop.source.read import read_source


def last_call(code: str) -> Call:
    """The last call of a program."""
    return read_source(f"import torch\n{code}\n", "train.py").traces[0].calls[-1]


@pytest.mark.parametrize(
    "code",
    [
        "kind = bnb.optim.AdamW8bit if small else torch.optim.AdamW\nmade = kind(ps)",
        "from bitsandbytes.optim import AdamW8bit\nkind = AdamW8bit\nmade = kind(ps)",
        "optimizer = getattr(torch.optim, args.optim)(ps)\nmade = optimizer",
        "optim_d = registry[args.optim](ps)\nmade = optim_d",
        "class Trainer: pass\nself = Trainer()\nself.optimizer = chosen(ps)\nmade = self.optimizer",
        "model, optimizer = make(args)\nmade = optimizer",
    ],
)
def test_an_optimizer_is_told_by_its_class_or_by_the_name_it_is_given(code: str) -> None:
    receiver = last_call(f"{code}\nmade.step()").receiver
    assert receiver is not None
    assert is_optimizer(receiver)


@pytest.mark.parametrize(
    "code",
    [
        "made = registry[args.optim](ps)",
        "import deepspeed\nengine, optimizer, _, _ = deepspeed.initialize(args)\nmade = engine",
        "optimizer_config = load(path)\nmade = optimizer_config",
        "optimizer = torch.zeros(2)\nmade = optimizer",
    ],
)
def test_a_name_says_nothing_of_what_is_known_or_called_otherwise(code: str) -> None:
    receiver = last_call(f"{code}\nmade.step()").receiver
    assert receiver is not None
    assert not is_optimizer(receiver)


@pytest.mark.parametrize(
    "code",
    [
        "model = registry[args.arch](10)",
        "net = getattr(zoo, args.arch)()",
        "self.generator = chosen(args)\nnet = self.generator",
        "net, optimizer = make(args)",
    ],
)
def test_a_model_is_told_by_the_name_it_is_given(code: str) -> None:
    name = code.rpartition("\n")[2].partition(" = ")[0].partition(",")[0]
    assert is_forward(last_call(f"{code}\nout = {name}(x)"))


@pytest.mark.parametrize("code", ["model_out = run(x)", "net = torch.zeros(3).abs()"])
def test_what_a_model_gives_is_no_model(code: str) -> None:
    assert not is_forward(last_call(f"{code}\nout = {code.partition(' = ')[0]}(x)"))


def test_what_a_model_out_of_sight_computes_is_no_model() -> None:
    code = "model = make()\nfor teacher in model(x):\n    teacher(x)"
    assert not is_forward(last_call(code))
    assert not is_forward(last_call("model = make()\nstudent, teacher = model(x)\nteacher(x)"))


def test_what_is_in_sight_and_gives_something_unknown_leaves_the_name_to_speak() -> None:
    code = "def instantiate(config): return config.make()\noptimizer = instantiate(config)"
    receiver = last_call(f"{code}\noptimizer.step()").receiver
    assert receiver is not None
    assert is_optimizer(receiver)


@pytest.mark.parametrize(
    ("made", "is_one"),
    [("kwargs.get('scaler')", True), ("StandardScaler()", False), ("torch.ones(1)", False)],
)
def test_a_loss_scaler_is_told_by_its_name_if_no_class_says_otherwise(
    made: str, is_one: bool
) -> None:
    receiver = last_call(f"scaler: GradScaler = {made}\nscaler.update()").receiver
    assert receiver is not None
    assert is_scaler(receiver) is is_one
