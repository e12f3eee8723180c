"""`@accumulates` on loops as people write them, frameworks and all, and on broken ones."""

from __future__ import annotations

import pytest

from tests.checks.accumulations import STYLES

TEST = """
import pytest
from tests.checks.accumulations import STYLES
from pytest_trainloop import accumulates

@accumulates
@pytest.mark.parametrize("style", {styles!r})
def test_style(style, tiny_dataset, accumulation):
    STYLES[style](tiny_dataset, accumulation)
"""

HEAD = """
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from pytest_trainloop import accumulates, overfits

def train(data, accumulation, loss_of, *, epochs=2, model=None, after=None, before_step=None):
    torch.manual_seed(0)
    model = model or nn.Linear(4, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    sched = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)
    for _ in range(epochs):
        for i, (x, y) in enumerate(DataLoader(data, accumulation.batch_size), 1):
            loss_of(model, x, y).backward()
            if after: after(model, sched)
            if i % accumulation.steps == 0:
                if before_step: before_step(model)
                opt.step()
                opt.zero_grad()

"""


def run(pytester: pytest.Pytester, code: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=HEAD + code)
    options = ("-p", "no:cacheprovider", "-p", "no:randomly", "-W", "ignore")
    return pytester.runpytest_inprocess(*options)


def test_every_sound_loop_passes(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of their own, as for `overfits`."""
    pytester.makepyfile(test_it=TEST.format(styles=list(STYLES)))
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "ignore")
    result.assert_outcomes(passed=len(STYLES))


def body(code: str, options: str = "") -> str:
    """A test that calls `train` with these arguments."""
    return (
        f"@accumulates{options}\n"
        "def test_it(tiny_dataset, accumulation):\n"
        "    k = accumulation.steps\n"
        "    mean = lambda model, x, y: F.cross_entropy(model(x), y) / k\n"
        f"    train(tiny_dataset, accumulation, {code})\n"
    )


BROKEN = {
    "a loss that is divided twice": (
        body("lambda model, x, y: mean(model, x, y) / k"),
        [
            (
                "accumulates: the gradients of 4 micro-batches are 0.25 times those of one batch of"
                " 8: the loss is divided twice"
            ),
            "  `model.weight`: gradient norm * instead of * at update 1",
            "  it steps at test_it.py:19",
        ],
    ),
    "an undivided loss whose gradients are clipped": (
        body(
            "lambda model, x, y: mean(model, x, y) * k,"
            " before_step=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 1e-3)"
        ),
        [
            (
                "accumulates: the gradients of 4 micro-batches are 4 times those of one batch of 8:"
                " the loss is not divided by the number of micro-batches"
            ),
            "  gradient norm before clipping * instead of * at update 1",
            "  it steps at test_it.py:19",
            "  What to do: divide it: `(loss / accumulation_steps).backward()`",
        ],
    ),
    "means over different numbers": (
        body(
            "lambda model, x, y: F.cross_entropy(model(x), y.masked_fill("
            "torch.isin(x[:, 0], tiny_dataset.tensors[0][[0, 2], 0]), -100)) / k"
        ),
        [
            (
                "accumulates: the gradient of `model.weight` is not that of one batch of 8: the"
                " mean over micro-batches is not the mean over what they hold"
            )
        ],
    ),
    "a schedule of micro-batches": (
        body("mean, after=lambda model, sched: sched.step()"),
        [
            (
                "accumulates: the learning rate of `opt` (SGD, built at test_it.py:11) at update 1"
                " is 0.00625, not 0.05: its scheduler counts micro-batches"
            )
        ],
    ),
    "weights that decay by hand": (
        body("mean, after=lambda model, sched: model.weight.data.mul_(0.9)"),
        [
            (
                "accumulates: `model.weight` is not the same before the first update: something"
                " writes to weights with every micro-batch"
            )
        ],
    ),
    "an optimizer that is told of micro-batches": (
        body("mean, before_step=lambda m: None").replace("train(tiny", "told(tiny")
        + """
class Told(torch.optim.SGD):
    k = 1
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(0.5 ** self.k)
        super().step()

def told(data, accumulation, loss_of, before_step):
    model = nn.Linear(4, 2)
    opt = Told(model.parameters(), lr=0.1)
    opt.k = accumulation.steps
    for i, (x, y) in enumerate(DataLoader(data, accumulation.batch_size), 1):
        loss_of(model, x, y).backward()
        if i % accumulation.steps == 0:
            opt.step()
""",
        [
            (
                "accumulates: `model.weight` is not what one batch makes of it, with the same"
                " gradients and learning rate"
            )
        ],
    ),
    "other weights": (
        body("mean, model=nn.Linear(4, 2 * accumulation.steps)"),
        [("accumulates: cannot judge: the two runs begin with other weights in `model.weight`")],
    ),
    "a remainder that leaks": (
        body("mean", "(steps=2, batch_size=3)").replace("train(", "leaking(")
        + """
def leaking(data, accumulation, loss_of):
    model = nn.Linear(4, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        for i, (x, y) in enumerate(DataLoader(data, accumulation.batch_size), 1):
            loss_of(model, x, y).backward()
            if i % accumulation.steps == 0:
                opt.step()
                opt.zero_grad()
""",
        [
            (
                "accumulates: update 2 of `opt` (SGD, built at test_it.py:*) is made from 3"
                " micro-batches, not from 2: what was left at the end of an epoch leaks into the"
                " next one"
            )
        ],
    ),
    "noise": (
        body("lambda model, x, y: mean(model, x + torch.randn_like(x), y)"),
        [
            (
                "accumulates: cannot judge: random numbers are drawn between a batch and its"
                " backward, so the gradients differ by design"
            )
        ],
    ),
    "other data": (
        body("mean").replace("train(tiny", "shuffled(tiny")
        + """
def shuffled(data, accumulation, loss_of):
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(accumulation.steps))
    more = TensorDataset(*(torch.cat([one, one + 1])[torch.cat([order, order + 8])[:9]]
                           for one in data.tensors))
    train(TensorDataset(*(one[accumulation.steps > 1:] for one in more.tensors)), accumulation,
          loss_of, model=nn.Linear(4, 9))
""",
        [
            (
                "accumulates: cannot judge: the first update is not made from the same data in both"
                " runs"
            )
        ],
    ),
    "data of which nothing is known": (
        body("mean").replace("train(tiny", "drawn(tiny")
        + """
def drawn(data, accumulation, loss_of):
    model = nn.Linear(4, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(accumulation.steps):
        loss_of(model, torch.randn(accumulation.batch_size, 4) + accumulation.steps,
                torch.zeros(accumulation.batch_size).long()).backward()
    opt.step()
""",
        [
            (
                "accumulates: cannot judge: the gradient of `model.weight` differs, and no data"
                " loader showed whether both runs were given the same data"
            )
        ],
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_loop_is_named(pytester: pytest.Pytester, broken: str) -> None:
    code, lines = BROKEN[broken]
    run(pytester, code).stdout.fnmatch_lines(lines)


@pytest.mark.parametrize("option", ["steps=1", "batch_size=0", "updates=0", "tolerance=1.0"])
def test_options_out_of_range_are_usage_errors(pytester: pytest.Pytester, option: str) -> None:
    result = run(pytester, f"@pytest.mark.accumulates({option})\ndef test_it(accumulation): pass\n")
    result.stdout.fnmatch_lines(
        [f"usage error: @pytest.mark.accumulates: `{option.partition('=')[0]}` is *"]
    )


def test_the_fixture_is_needed(pytester: pytest.Pytester) -> None:
    result = run(pytester, "@accumulates\ndef test_it(): pass\n")
    result.stdout.fnmatch_lines(
        [
            (
                "usage error: @accumulates needs the fixture `accumulation`: how many micro-batches"
                " of which size make an update"
            )
        ]
    )


def test_it_works_with_classes_parameters_and_other_markers(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture
def sizes(accumulation):
    return accumulation

@accumulates(steps=2, batch_size=2)
@pytest.mark.parametrize("factor", [1, pytest.param(2, marks=pytest.mark.xfail(strict=True))])
class TestIt:
    def test_in_a_class(self, tiny_dataset, accumulation, sizes, factor):
        assert sizes is accumulation
        scale = 1 if accumulation.steps == 1 else factor
        train(tiny_dataset, accumulation,
              lambda m, x, y: scale * F.cross_entropy(m(x), y) / accumulation.steps)

@accumulates
@overfits
def test_with_another(tiny_dataset, accumulation):
    train(tiny_dataset, accumulation, lambda m, x, y: F.cross_entropy(m(x), y) / accumulation.steps,
          epochs=20)

def test_alone(accumulation):
    assert (accumulation.steps, accumulation.batch_size) == (4, 2)
""",
    )
    result.assert_outcomes(passed=3, xfailed=1)


def test_everything_is_put_back(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
BEFORE = [F.dropout, F.scaled_dot_product_attention, torch.autocast.__enter__]

@accumulates
def test_it(tiny_dataset, accumulation):
    assert F.dropout is not BEFORE[0]
    raise RuntimeError("of the user")

def test_after():
    assert [F.dropout, F.scaled_dot_product_attention, torch.autocast.__enter__] == BEFORE
""",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E       RuntimeError: of the user"])
