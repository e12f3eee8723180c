"""Which layer a value last went through, and how its shape ends."""

from __future__ import annotations

import pytest

from pytest_trainloop.source.facts import Call, activations, constant, criterion_of, trailing
from pytest_trainloop.source.read import read_source

PRELUDE = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"


def loss_call(body: str) -> Call:
    """The loss of a program that ends in one, read with its model in sight."""
    facts = read_source(PRELUDE + body, "train.py")
    return [call for trace in facts.traces for call in trace.calls if criterion_of(call)][-1]


def kinds(expression: str) -> list[str]:
    """What `expression`, made from logits `x`, last went through."""
    call = loss_call(f"def loss(net, x, y, flag):\n    return F.cross_entropy({expression}, y)\n")
    return [each.kind for each in activations(call.args[0])]


@pytest.mark.parametrize(
    "expression",
    [
        "F.softmax(x, dim=1)",
        "torch.softmax(x, -1)",
        "x.softmax(dim=1)",
        "nn.Softmax(dim=1)(x)",
        "nn.Sequential(nn.Linear(4, 4), nn.Softmax(dim=1))(x)",
        "nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Softmax(dim=1), nn.Dropout()))(x)",
        "nn.Dropout()(F.softmax(x, dim=1).view(-1, 10).cuda())",
        "F.softmax(x, dim=1)[:, :5]",
    ],
)
def test_a_softmax_is_seen_through_layers_and_moves(expression: str) -> None:
    assert kinds(expression) == ["softmax"]


@pytest.mark.parametrize(
    "expression",
    [
        "torch.log(F.softmax(x, dim=1))",
        "F.softmax(x, dim=1) * y",
        "net(F.softmax(x, dim=1))",
        "x if flag else F.softmax(x, dim=1)",
        "nn.Sequential(*net, nn.ReLU())(F.softmax(x, dim=1))",
        "nn.Sequential(nn.Linear(4, 4), nn.Softmax(dim=1))[0](x)",
        "net.softmax(x, y)",
    ],
)
def test_nothing_is_said_of_what_goes_on_to_be_changed_or_is_out_of_sight(expression: str) -> None:
    assert kinds(expression) == []


def test_each_way_to_a_value_has_its_own_activation() -> None:
    assert kinds("torch.sigmoid(x) if flag else F.softmax(x, dim=1)") == ["sigmoid", "softmax"]


@pytest.mark.parametrize(
    "expression",
    ["F.softmax(x, 0)", "x.softmax(0)", "nn.Softmax(dim=0)(x)", "nn.Sequential(nn.Softmax(0))(x)"],
)
def test_the_dimension_is_known_from_the_function_and_from_the_layer(expression: str) -> None:
    call = loss_call(f"def loss(x, y):\n    return F.cross_entropy({expression}, y)\n")
    (activation,) = activations(call.args[0])
    assert activation.dim is not None
    assert constant(activation.dim) == 0
    assert not activation.is_reshaped


def test_a_dimension_counts_only_until_the_tensor_is_reshaped() -> None:
    call = loss_call("def loss(x, y):\n    return F.cross_entropy(F.softmax(x, 0).t(), y)\n")
    assert [each.is_reshaped for each in activations(call.args[0])] == [True]


@pytest.mark.parametrize(
    ("maker", "expected"),
    [
        ("nn.CrossEntropyLoss()", "cross_entropy"),
        ("nn.CrossEntropyLoss(reduction='sum').cuda()", "cross_entropy"),
        ("nn.NLLLoss() if net else nn.CrossEntropyLoss()", ""),
        ("nn.CTCLoss()", ""),
        ("net.criterion", ""),
    ],
)
def test_a_loss_object_is_one_kind_of_loss_or_none(maker: str, expected: str) -> None:
    program = f"def train(net, x, y):\n    criterion = {maker}\n    return criterion(net(x), y)\n"
    facts = read_source(PRELUDE + program, "train.py")
    (call,) = facts.calls("criterion")
    assert criterion_of(call) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("nn.Linear(8, 1)(x)", "column"),
        ("torch.sigmoid(nn.Linear(8, 1)(x))", "column"),
        ("nn.Sequential(nn.Linear(8, 1), nn.Tanh())(x).float()", "column"),
        ("x.view(-1, 1)", "column"),
        ("x.view(-1).unsqueeze(1)", "column"),
        ("x.reshape(-1)[:, None]", "column"),
        ("nn.Linear(8, 1)(x).squeeze(-1)", "flat"),
        ("nn.Linear(8, 1)(x).squeeze()", "flat"),
        ("nn.Linear(8, 1)(x)[..., 0]", "flat"),
        ("nn.Linear(8, 4)(x).max(1)[0]", "flat"),
        ("0.9 * nn.Linear(8, 4)(x).max(dim=1).values", "flat"),
        ("nn.Linear(8, 4)(x).max(1, keepdim=True)[0]", "column"),
        ("nn.Linear(8, 4)(x)", "wide"),
        ("nn.Linear(8, 1)(x).mean(1)", ""),
        ("nn.Linear(8, 1)(x)[:, 0]", ""),
        ("nn.Linear(8, 1)(x).squeeze(0)", ""),
        ("x.view(-1) + y", ""),
        ("x.squeeze()", ""),
        ("x", ""),
    ],
)
def test_the_end_of_a_shape_is_known_from_layers_and_reshaping(
    expression: str, expected: str
) -> None:
    call = loss_call(f"def loss(x, y):\n    return F.mse_loss({expression}, y)\n")
    assert trailing(call.args[0]) == expected
