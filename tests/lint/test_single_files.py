"""What is said of a file is the same whether it is linted alone or with its project."""

from __future__ import annotations

from tests.lint.project import MakeProject

MODEL = """\
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 4)

    def forward(self, x):
        return self.fc(x).softmax(dim=1){comment}
"""
LOOP = """\
from helpers.updates import note
from nets import Net
from torch import nn


def train(loader, optimizer):
    model, criterion = Net(), nn.CrossEntropyLoss()
    for x, y in loader:
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        note(optimizer)
"""
UPDATES = {
    "clears": "def note(optimizer):\n    optimizer.zero_grad()\n",
    "keeps": "def note(optimizer):\n    print(optimizer)\n",
}


def files(update: str, comment: str = "") -> dict[str, str | bytes]:
    """A project of three files: the model, the loop, and what it does after a step."""
    return {
        "pyproject.toml": "",
        "nets.py": MODEL.format(comment=comment),
        "helpers/updates.py": UPDATES[update],
        "train.py": LOOP,
    }


def test_a_file_given_by_name_is_read_with_what_it_imports(project: MakeProject) -> None:
    made = project(files("keeps"))
    assert made.json("train.py").places == [("train.py", 10, "missing-zero-grad")]
    made.write(files("clears"))
    assert made.json("train.py").places == []
    assert made.json("-", "--stdin-filename", "train.py").places == []


def test_a_problem_in_a_file_that_was_not_given_is_not_told(project: MakeProject) -> None:
    made = project(files("clears"))
    assert made.json(".").places == [("nets.py", 10, "softmax-before-cross-entropy")]
    assert made.json("train.py", "helpers").places == []


def test_a_comment_that_another_file_makes_necessary_is_not_unused(project: MakeProject) -> None:
    ignore = "  # trainloop: ignore[softmax-before-cross-entropy]"
    made = project(files("clears", ignore))
    assert made.json(".").places == []
    assert made.json("nets.py").places == []
    made.write({"train.py": "import torch\n"})
    assert made.json(".").places == [("nets.py", 10, "unused-suppression")]


def test_what_is_excluded_is_not_read_either(project: MakeProject) -> None:
    made = project(files("keeps"))
    assert made.json("train.py").places != []
    made.write({"pyproject.toml": "[tool.trainloop-lint]\nexclude = ['helpers']\n"})
    assert made.json("train.py").places == []
