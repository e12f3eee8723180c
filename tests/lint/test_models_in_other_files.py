"""A loss in one file, the model that it does not fit in another."""

from __future__ import annotations

import pytest

from tests.lint.project import MakeProject

MODEL = """\
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 4)
        self.last = {last}

    def forward(self, x):
        return self.last(self.fc(x))
"""

LOOP = """\
from torch import nn

from nets.small import Net


def train(loader, optimizer):
    model = Net()
    criterion = {criterion}
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
"""


@pytest.mark.parametrize(
    ("last", "criterion", "rule"),
    [
        ("nn.Softmax(dim=1)", "nn.CrossEntropyLoss()", "softmax-before-cross-entropy"),
        ("nn.Sigmoid()", "nn.BCEWithLogitsLoss()", "sigmoid-before-bce-with-logits"),
        ("nn.Softmax(dim=1)", "nn.NLLLoss()", "nll-without-log-softmax"),
        ("nn.LogSoftmax(dim=0)", "nn.NLLLoss()", "softmax-over-batch"),
    ],
)
def test_the_problem_is_shown_where_the_model_applies_the_activation(
    project: MakeProject, last: str, criterion: str, rule: str
) -> None:
    files: dict[str, str | bytes] = {
        "nets/small.py": MODEL.format(last=last),
        "train.py": LOOP.format(criterion=criterion),
    }
    said = project(files).lint(".", "--output-format", "json")
    assert said.places == [("nets/small.py", 11, rule)]
    assert "train.py:11" in said.problems[0]["message"]


@pytest.mark.parametrize(
    ("last", "criterion"),
    [
        ("nn.Identity()", "nn.CrossEntropyLoss()"),
        ("nn.LogSoftmax(dim=1)", "nn.NLLLoss()"),
        ("nn.Sigmoid()", "nn.BCELoss()"),
    ],
)
def test_a_model_that_fits_its_loss_is_no_problem(
    project: MakeProject, last: str, criterion: str
) -> None:
    files: dict[str, str | bytes] = {
        "nets/small.py": MODEL.format(last=last),
        "train.py": LOOP.format(criterion=criterion),
    }
    assert project(files).lint(".").exit_code == 0


def test_the_message_names_the_softmax_the_loss_and_what_to_write(project: MakeProject) -> None:
    files: dict[str, str | bytes] = {
        "nets/small.py": MODEL.format(last="nn.Softmax(dim=1)"),
        "train.py": LOOP.format(criterion="nn.CrossEntropyLoss()"),
    }
    said = project(files).lint(".")
    assert said.out == (
        "nets/small.py:11:16: softmax-before-cross-entropy: `self.last(self.fc(x))` turns the input"
        " of `nn.CrossEntropyLoss` (train.py:11) into probabilities, and the loss applies"
        " `log_softmax` itself\n"
        "  11 |         return self.last(self.fc(x))\n"
        "     |                ^^^^^^^^^^^^^^^^^^^^^\n"
        "  help: give the loss the logits, and apply the softmax only where probabilities are"
        " used\n"
        "\n"
        "1 problem in 1 of 2 files\n"
    )
