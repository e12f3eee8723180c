"""`@evaluates` on evaluations as people write them, frameworks and all, and on broken ones."""

from __future__ import annotations

import pytest

from tests.checks.evaluations import STYLES

TEST = """
import pytest
from tests.checks.evaluations import STYLES
from pytest_trainloop import evaluates

@evaluates
@pytest.mark.parametrize("style", {styles!r})
def test_style(style, tiny_loader):
    STYLES[style](tiny_loader)
"""

HEAD = """
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from pytest_trainloop import evaluates, trains

@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

"""


def run(pytester: pytest.Pytester, code: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=HEAD + code)
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:randomly")


def test_every_sound_evaluation_passes(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of their own, as for `overfits`."""
    pytester.makepyfile(test_it=TEST.format(styles=list(STYLES)))
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "ignore")
    result.assert_outcomes(passed=len(STYLES))


def test_what_is_not_judged_is_said(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "@evaluates\n"
        "def test_it(tiny_loader):\n"
        "    gru = nn.GRU(4, 4).eval()\n"
        "    with torch.no_grad():\n"
        "        for x, _ in tiny_loader: gru(x[:, None].expand(4, 4, 4))\n",
    )
    result.stdout.fnmatch_lines(
        [
            (
                "evaluates passed  test_it.py::test_it  2 calls of `gru`: changed nothing, said the"
                " same twice, samples not judged apart: its first dimension may be time"
            )
        ]
    )


def test_a_table_that_is_made_anew_is_no_change(pytester: pytest.Pytester) -> None:
    """Of a model that lives before the evaluation: one that it builds itself has no before."""
    result = run(
        pytester,
        """
from tests.checks.evaluations import Positions, put_back

@pytest.fixture
def positions():
    return Positions()

@evaluates
def test_it(positions, tiny_loader):
    put_back(positions, tiny_loader)
    assert len(positions.table) == 4
""",
    )
    result.assert_outcomes(passed=1)


BROKEN = {
    "a part that stays in train mode": (
        """
class Net(nn.Sequential):
    def train(self, mode=True):
        super().train(mode)
        self[1].train()
        return self

@evaluates
def test_it(tiny_loader):
    net = Net(nn.Linear(4, 8), nn.BatchNorm1d(8))
    net.eval()
    with torch.no_grad():
        for x, _ in tiny_loader:
            net(x)
""",
        [
            (
                "evaluates: evaluating `net` changes `1.running_mean`, `1.running_var` and"
                " `1.num_batches_tracked`"
            ),
            "  it is called at test_it.py:25",
            "  What to do: `1` (BatchNorm1d) is in train mode: put all of it into eval mode",
        ],
    ),
    "averaged weights that are not put back": (
        """
@evaluates
def test_it(model, tiny_loader):
    model.eval()
    with torch.no_grad():
        model[0].weight.mul_(0.5)
        for x, _ in tiny_loader:
            model(x)
""",
        ["evaluates: the evaluation changes `0.weight` of `model`"],
    ),
    "gradients that are left behind": (
        """
@evaluates
def test_it(model, tiny_loader):
    model.eval()
    for x, y in tiny_loader:
        F.cross_entropy(model(x.requires_grad_()), y).backward()
""",
        [
            (
                "evaluates: the evaluation changes the gradients of `0.weight`, `0.bias`,"
                " `1.weight` and 3 more"
            ),
            "  backward was called at test_it.py:17",
        ],
    ),
    "weights that are frozen for good": (
        """
@evaluates
def test_it(model, tiny_loader):
    model.eval().requires_grad_(False)
    for x, y in tiny_loader:
        model(x)
""",
        [
            (
                "evaluates: the evaluation switches `requires_grad` of `0.weight`, `0.bias`,"
                " `1.weight` and 3 more"
            )
        ],
    ),
    "a learning rate that goes down": (
        """
@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)

@evaluates
def test_it(model, optimizer, tiny_loader):
    model.eval()
    with torch.no_grad():
        for x, y in tiny_loader:
            model(x)
    optimizer.param_groups[0]["lr"] *= 0.1
""",
        ["evaluates: the evaluation changes the state or the learning rate of SGD"],
    ),
    "a recurrent layer that takes samples for time": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(4, 4), nn.Linear(4, 3)
    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])

@evaluates
def test_it(tiny_loader):
    net = Net().eval()
    with torch.no_grad():
        for x, _ in tiny_loader:
            net(torch.stack([x, x], 1))
""",
        [
            (
                "evaluates: what `net` gives for a sample depends on the other samples of its"
                " batch, from `cell` (GRU) on"
            )
        ],
    ),
    "a random crop of the data": (
        """
class Noisy(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, index): return torch.full((4,), float(index)) + torch.rand(4)

@evaluates
def test_it(model):
    model.eval()
    with torch.no_grad():
        for x in DataLoader(Noisy(), batch_size=2):
            model(x)
""",
        [
            (
                "evaluates: `model` is not given the same data under other random numbers: 6 of"
                " 8 samples are others"
            ),
            "  it is called at test_it.py:22",
        ],
    ),
    "centred over the batch": (
        """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
    def forward(self, x):
        return self.head(x) - self.head(x).mean(0)

@evaluates
def test_it(tiny_loader):
    net = Net().eval()
    with torch.no_grad():
        for x, _ in tiny_loader:
            net(x)
""",
        [
            ("evaluates: what `net` gives for a sample depends on the other samples of its batch"),
            "  among copies of itself, sample 0 of a batch gets a value that differs by * largest",
        ],
    ),
    "a body that trains only": (
        """
@evaluates
def test_it(model, tiny_loader):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in tiny_loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
""",
        [
            (
                "evaluates: cannot judge: the test body trains, and no evaluation was seen: no"
                " model was called without gradients and in eval mode, or on batches asked for"
                " without gradients"
            )
        ],
    ),
    "a model that its first call makes": (
        """
@evaluates
def test_it(tiny_loader):
    net = nn.LazyLinear(2).eval()
    with torch.no_grad():
        for x, _ in tiny_loader:
            net(x)
""",
        [
            (
                "evaluates: cannot judge: `net` gets its weights by its first call, inside of the"
                " evaluation"
            )
        ],
    ),
    "a forward that mixes before its next layer": (
        """
class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)
    def forward(self, x):
        return self.head(x) - self.head(x).mean(0)

@evaluates
def test_it(tiny_loader):
    net = nn.Sequential(nn.Linear(4, 4), Centred(), nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        for x, _ in tiny_loader:
            net(x)
""",
        [
            (
                "evaluates: what `net` gives for a sample depends on the other samples of its"
                " batch, from `1` (Centred) on"
            )
        ],
    ),
    "a model that is only mapped over": (
        """
@evaluates
def test_it(tiny_loader):
    net = nn.Linear(4, 2)
    with torch.no_grad():
        for x, _ in tiny_loader:
            torch.vmap(net)(x)
""",
        ["evaluates: cannot judge: the test body called no model"],
    ),
    "a model of chance": (
        """
import os

@evaluates
def test_it(tiny_loader):
    other = nn.Linear(4, 2)
    nn.init.constant_(other.weight, int.from_bytes(os.urandom(3), "big"))
    with torch.no_grad():
        for x, _ in tiny_loader:
            other(x)
""",
        ["evaluates: cannot judge: a second run of the body does not evaluate the same weights"],
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_evaluation_is_named(pytester: pytest.Pytester, broken: str) -> None:
    code, lines = BROKEN[broken]
    run(pytester, code).stdout.fnmatch_lines(lines)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("repeats=False, modes=False", "nn.Dropout(0.5)"),
        ("independent=False", "nn.BatchNorm1d(4, track_running_stats=False)"),
        ("tolerance=0.9", "nn.Linear(4, 3), nn.Softmax(0)"),
    ],
)
def test_what_is_by_design_is_switched_off_by_its_option(
    pytester: pytest.Pytester, options: str, code: str
) -> None:
    body = (
        "def test_it(tiny_loader):\n"
        f"    net = nn.Sequential(nn.Linear(4, 4), {code})\n"
        "    net.training = False\n"
        "    with torch.no_grad():\n"
        "        for x, _ in tiny_loader: net(x)\n"
    )
    assert "passed" not in run(pytester, f"@evaluates\n{body}").parseoutcomes()
    run(pytester, f"@evaluates({options})\n{body}").assert_outcomes(passed=1)


def test_it_works_with_classes_parameters_wider_fixtures_and_other_markers(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        """
@pytest.fixture(scope="module")
def net():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

def evaluate(model, loader):
    was = model.training
    model.eval()
    with torch.no_grad():
        for x, _ in loader:
            model(x)
    model.train(was)

@evaluates
@pytest.mark.parametrize("times", [1, 2])
class TestIt:
    def test_in_a_class(self, net, tiny_loader, times):
        for _ in range(times):
            evaluate(net, tiny_loader)

@pytest.mark.evaluates
@pytest.mark.xfail(strict=True)
def test_expected_to_fail(net, tiny_loader):
    for x, _ in tiny_loader:
        net(x)

@evaluates
@trains
def test_with_another(tiny_model, tiny_loader):
    optimizer = torch.optim.SGD(tiny_model.parameters(), lr=0.1)
    for x, y in tiny_loader:
        optimizer.zero_grad()
        F.cross_entropy(tiny_model(x), y).backward()
        optimizer.step()
    evaluate(tiny_model, tiny_loader)
""",
    )
    result.assert_outcomes(passed=3, xfailed=1)


def test_everything_is_put_back(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
CALL, TRAIN = nn.Module.__call__, nn.Module.train

@evaluates
def test_it(tiny_loader):
    net = nn.Linear(4, 2)
    assert nn.Module.__call__ is not CALL
    with torch.no_grad():
        for x, _ in tiny_loader: net(x)

@evaluates
def test_that_raises(tiny_loader):
    net = nn.Linear(4, 2)
    with torch.no_grad():
        for x, _ in tiny_loader: net(x)
    raise RuntimeError("of the user")

def test_after():
    assert (nn.Module.__call__, nn.Module.train) == (CALL, TRAIN)
""",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["E       RuntimeError: of the user"])
    result.stdout.no_fnmatch_line("*pytest_trainloop*calls.py*")


def test_a_wrong_tolerance_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@pytest.mark.evaluates(tolerance=2.0)\ndef test_it(): pass\n")
    result.stdout.fnmatch_lines(
        [("usage error: @pytest.mark.evaluates: `tolerance` is between 0 and 1, not 2.0")]
    )
