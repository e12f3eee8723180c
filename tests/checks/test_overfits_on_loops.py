"""`@overfits` on loops as people write them, frameworks and all."""

from __future__ import annotations

import pytest

from tests.runtime.training_loops import STYLES

TEST = """
import pytest
from tests.runtime.training_loops import STYLES
from pytest_trainloop import overfits

@overfits{options}
@pytest.mark.parametrize("style", {styles!r})
def test_style(style):
    STYLES[style]()
"""


def run(pytester: pytest.Pytester, style: str, options: str = "") -> pytest.RunResult:
    pytester.makepyfile(test_it=TEST.format(styles=[style], options=options))
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", "-W", "ignore")


def test_every_sound_loop_passes(
    pytester: pytest.Pytester, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in one process of their own: frameworks are slow to load, and some load only once."""
    styles = [name for name in STYLES if name != "two_optimizers_in_turn"]
    pytester.makepyfile(test_it=TEST.format(styles=styles, options=""))
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "ignore")
    result.assert_outcomes(passed=len(styles))


def test_adversaries_cannot_be_judged_together(pytester: pytest.Pytester) -> None:
    result = run(pytester, "two_optimizers_in_turn")
    result.stdout.fnmatch_lines(
        [
            (
                "overfits: cannot judge: `opt_d` and `opt_g` are trained on losses of their own,"
                " which do not all fall"
            ),
            "  `opt_d` (Adam, built at *training_loops.py:*): loss * in 12 steps  █*",
            "  `opt_g` (Adam, built at *training_loops.py:*): loss * in 12 steps  ▁*",
        ]
    )


def test_one_of_two_adversaries_can_be_named(pytester: pytest.Pytester) -> None:
    run(pytester, "two_optimizers_in_turn", '(optimizer="opt_d")').assert_outcomes(passed=1)


def test_an_optimizer_that_does_not_exist_is_said_to(pytester: pytest.Pytester) -> None:
    result = run(pytester, "plain", '(optimizer="opt_d")')
    result.stdout.fnmatch_lines(
        ["overfits: cannot judge: no optimizer is called `opt_d`; seen: `optimizer`"]
    )


BROKEN = """
import torch
import torch.nn.functional as F
from torch import nn
from pytest_trainloop import overfits

@overfits
def test_it(tiny_loader):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    parameters = model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(60):
        for x, y in tiny_loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
"""


@pytest.mark.parametrize(
    ("before", "after", "cause"),
    [
        (
            "            loss.backward()\n",
            "            loss.detach().requires_grad_().backward()\n",
            (
                "the loss is cut off from the parameters of `optimizer` (AdamW, built at"
                " test_it.py:10): no gradient reaches `0.weight`, `0.bias`, `2.weight` and 1 more"
            ),
        ),
        (
            "            optimizer.step()\n",
            "            optimizer.zero_grad(); optimizer.step()\n",
            (
                "the gradients are gone when `optimizer` (AdamW, built at test_it.py:10) steps:"
                " none of `0.weight`, `0.bias`, `2.weight` and 1 more has one"
            ),
        ),
        (
            "parameters = model.parameters()",
            "import copy; parameters = copy.deepcopy(model).parameters()",
            (
                "`optimizer` (AdamW, built at test_it.py:10) updates no parameter that the loss"
                " depends on: the loss depends on `0.weight`, `0.bias`, `2.weight` and 1 more"
            ),
        ),
        (
            "            optimizer.step()\n",
            "",
            (
                "no optimizer stepped: 120 backward calls, the last at test_it.py:15, and no"
                " `optimizer.step()` after it"
            ),
        ),
        (
            "lr=1e-2",
            "lr=1e-2, maximize=True",
            (
                "`optimizer` (AdamW, built at test_it.py:10) has `maximize=True`, so training"
                " raises the `cross_entropy`: "
            ),
        ),
        (
            "F.cross_entropy(model(x), y)",
            "F.cross_entropy(model(x), y) / 0",
            "the loss is inf at step 1",
        ),
        (
            "F.cross_entropy(model(x), y)",
            "F.cross_entropy(model(x).clamp(0, 0), y)",
            "all gradients are zero when `optimizer` (AdamW, built at test_it.py:10) steps: those",
        ),
        (
            "F.cross_entropy(model(x), y)",
            "F.cross_entropy(model(x), y) + 9",
            "the loss settled at 9.0",
        ),
    ],
)
def test_a_broken_loop_fails_with_its_cause_in_the_first_line(
    pytester: pytest.Pytester, before: str, after: str, cause: str
) -> None:
    assert before in BROKEN
    pytester.makepyfile(test_it=BROKEN.replace(before, after))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    assert f"\noverfits: {cause}" in result.stdout.str()
