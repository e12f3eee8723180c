"""What stands under the first line of a failure: numbers, questions, where, what to write."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pytest_trainloop import watch
from pytest_trainloop.checks._evidence import in_ascii, numbers
from pytest_trainloop.checks._labels import do_labels_follow
from pytest_trainloop.runtime.non_finite import FindNonFinite, Origin
from pytest_trainloop.runtime.observe import Observer
from pytest_trainloop.runtime.record import Run
from pytest_trainloop.runtime.trend import sparkline

LOOP = """
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train(x, y, lr=0.01, epochs=20, act=nn.Identity()):
    model = nn.Linear(x.shape[1], 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(epochs):
        for inputs, labels in DataLoader(TensorDataset(x, y), batch_size=4):
            optimizer.zero_grad()
            out = act(model(inputs))
            loss = F.cross_entropy(out, labels)
            loss.backward()
            optimizer.step()


X, Y = torch.eye(4), torch.tensor([0, 1, 0, 1])


@pytest.mark.{marker}
def test_it():
    {body}
"""
OPTIMIZER = "`optimizer` (SGD, built at test_it.py:10)"
REPRODUCE = "  To reproduce: pytest -p trainloop 'test_it.py::test_it'"
ANSWERS = (
    "  did backward run? yes, 20 times, the last at test_it.py:16",
    "  did it reach parameters? yes, 2 of 2",
    "  are they in the optimizer? yes, `optimizer` has 2 of 2",
    "  is the learning rate above zero? yes, up to 0.01",
    "  did step run? yes, 20 times",
    "  did they move? yes, 2 of 2",
)


def expect(pytester: pytest.Pytester, body: str, *lines: str, marker: str = "overfits") -> None:
    """Run the test, and expect that its failure is these lines; `*` stands for numbers, plots."""
    pytester.makepyfile(test_it=LOOP.format(body=body, marker=marker))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    # In fnmatch, a question mark stands for any character, as it should.
    result.stdout.fnmatch_lines(["____*", *lines, REPRODUCE], consecutive=True)


def test_every_question_up_to_the_first_no(pytester: pytest.Pytester) -> None:
    expect(
        pytester,
        "train(X, Y, lr=0.0)",
        f"overfits: the learning rate is 0 in all 20 steps of {OPTIMIZER}",
        "  loss * → * in 20 steps  ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁",
        "  gradient norm * → *  ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁",
        "  learning rate 0 in 20 steps",
        "  `optimizer`: none of 2 parameters moved",
        *ANSWERS[:3],
        "  is the learning rate above zero? no",
        "  Where: test_it.py:17",
        (
            "  What to do: give the optimizer a learning rate above 0, or let the warm-up begin"
            " above 0"
        ),
        "  The rule: trainloop-lint --explain zero-learning-rate",
    )


def test_a_parameter_that_no_gradient_reaches(pytester: pytest.Pytester) -> None:
    expect(
        pytester,
        "train(X, Y, act=lambda out: out.detach().requires_grad_())",
        (
            f"overfits: the loss is cut off from the parameters of {OPTIMIZER}: no gradient reaches"
            " `weight` and `bias`"
        ),
        "  loss * → * in 20 steps  *",
        "  learning rate 0.01 in 20 steps",
        "  `optimizer`: none of 2 parameters moved",
        ANSWERS[0],
        "  did it reach parameters? no",
        "  Where: test_it.py:16",
        (
            "  What to do: look for `.detach()`, `.data`, `.item()`, `torch.tensor(...)` or"
            " `no_grad` between the model and the loss"
        ),
        "  The rule: trainloop-lint --explain detached-loss",
    )


def test_labels_that_do_not_follow_inputs(pytester: pytest.Pytester) -> None:
    expect(
        pytester,
        "train(X[[0, 1, 0, 1]], torch.tensor([0, 1, 1, 0]))",
        (
            "overfits: the labels do not follow the inputs: in the frozen batch, 4 of 4 inputs have"
            " an equal one with another label"
        ),
        "  loss * → * in 20 steps  *",
        "  gradient norm * → *  *",
        "  learning rate 0.01 in 20 steps",
        "  `optimizer`: 2 of 2 parameters moved, by up to * % of their norm",
        *ANSWERS,
        "  do labels follow inputs? no",
        (
            "  What to do: look at what the dataset does to its inputs (a wrong index, a"
            " normalisation that leaves nothing, a constant image)"
        ),
    )


def test_a_loss_that_settles_and_all_questions_are_answered_yes(pytester: pytest.Pytester) -> None:
    expect(
        pytester,
        "train(X, Y, lr=50.0, epochs=99, act=lambda out: F.hardtanh(out / 20, -0.1, 0.1))",
        "overfits: the loss settled at * on one frozen batch; * was to be reached",
        "  loss * → * in 99 steps  █*",
        "  gradient norm * → *  *",
        "  learning rate 50 in 99 steps",
        "  `optimizer`: 2 of 2 parameters moved, by up to * % of their norm",
        "  did backward run? yes, 99 times, the last at test_it.py:16",
        *ANSWERS[1:3],
        "  is the learning rate above zero? yes, up to 50",
        "  did step run? yes, 99 times",
        ANSWERS[5],
        "  do labels follow inputs? yes, no equal inputs of the batch have different labels",
        (
            "  What to do: look for a loss that cannot go lower (softmax before cross entropy),"
            " labels that do not follow the inputs, or a part of the model that is not trained; a"
            " loss with a higher floor takes @overfits(fall=...)"
        ),
    )


@pytest.mark.parametrize(
    ("body", "rate", "wrong", "what", "right", "verb"),
    [
        ("train(X, Y, lr=1e-6)", "1e-06", "low", "does not fall on one frozen batch (* → *)",
         "0.001", "raise"),
        ("train(X, Y, lr=300.0, act=lambda out: out ** 3)", "300", "high", "is nan at step *",
         "0.3", "lower"),
    ],
)  # fmt: skip
def test_a_rate_is_blamed_if_the_loop_learns_with_another(
    pytester: pytest.Pytester, body: str, rate: str, wrong: str, what: str, right: str, verb: str
) -> None:
    expect(
        pytester,
        body,
        (
            f"overfits: the learning rate {rate} of {OPTIMIZER} is too {wrong}: the loss {what},"
            f" with {right} it falls"
        ),
        "  loss * → * in 20 steps  *",
        "  gradient norm * → *  *",
        f"  learning rate {rate} in 20 steps",
        "  `optimizer`: 2 of 2 parameters moved*",
        f"  with {right}: loss * → * in * steps  *",
        "  Where: test_it.py:10",
        f"  What to do: {verb} the learning rate towards {right}",
    )


STABLE = (
    "  What to do: keep its input where it is defined: add a small number, clamp, or take the"
    " version that is stable (`log_softmax`, `logsumexp`, `..._with_logits`)"
)
DATA = "  What to do: look at what the data holds, before the model sees it"


@pytest.mark.parametrize(
    ("body", "cause", "where", "advice"),
    [
        (
            "train(X, Y, act=lambda out: (out - 9).log())",
            "the loss is nan at step 1: `log` makes nan of finite values at test_it.py:25",
            "test_it.py:25",
            STABLE,
        ),
        (
            "train(X, Y, act=lambda out: (out * 0).log() * 0)",
            "the loss is nan at step 1: `log` makes -inf of finite values at test_it.py:25",
            "test_it.py:25",
            STABLE,
        ),
        (
            "train(X, Y, act=lambda out: out.masked_fill(out < 9, -float('inf')).log_softmax(1))",
            "the loss is nan at step 1: `log_softmax` makes nan of -inf at test_it.py:25",
            "test_it.py:25",
            STABLE,
        ),
        (
            "x = X.clone(); x[0, 0] = float('nan'); train(x, Y)",
            "the loss is nan at step 1: `getitem` is given nan at test_it.py:12",
            "test_it.py:12",
            DATA,
        ),
        (
            "train(X, Y, act=lambda out: out + ((out - out.detach()) ** 2).sum().sqrt())",
            (
                "the loss is nan at step 2: the gradient of `weight` and `bias` is not finite at"
                " step 1, although the loss is"
            ),
            "test_it.py:16",
            (
                "  What to do: look for a root, norm or division whose derivative is not finite at"
                " 0; `torch.autograd.set_detect_anomaly(True)` names the operation"
            ),
        ),
    ],
)
def test_where_nan_comes_from(
    pytester: pytest.Pytester, body: str, cause: str, where: str, advice: str
) -> None:
    expect(
        pytester,
        body,
        f"overfits: {cause}",
        "  loss * → nan in 20 steps*",
        "  gradient norm *",
        "  learning rate 0.01 in 20 steps",
        "  `optimizer`: *",
        f"  Where: {where}",
        advice,
        "  The rule: trainloop-lint --explain non-finite-update",
    )


def test_a_body_that_fails_when_it_is_tried_again_fails_as_it_did_first(
    pytester: pytest.Pytester,
) -> None:
    expect(
        pytester,
        "import builtins; builtins.runs = getattr(builtins, 'runs', 0) + 1\n"
        "    assert builtins.runs == 1\n"
        "    train(X, Y, lr=1e-6)",
        "overfits: the loss does not fall on one frozen batch: * → * in 20 steps",
        "  loss * → * in 20 steps  *",
        "  gradient norm * → *  *",
        "  learning rate 1e-06 in 20 steps",
        "  `optimizer`: * of 2 parameters moved, by up to * % of their norm*",
        *ANSWERS[:3],
        "  is the learning rate above zero? yes, up to 1e-06",
        "  did step run? yes, 20 times",
        "  did they move? yes, * of 2",
        "  do labels follow inputs? yes, no equal inputs of the batch have different labels",
        (
            "  What to do: look for a wrong sign or a too high learning rate (the loss rises),"
            " labels that do not follow the inputs or a part that is not trained (it stays); a slow"
            " loop takes @overfits(steps=...)"
        ),
    )


def test_a_body_that_takes_long_is_not_tried_again(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By what is loaded: `pytester` forgets modules that a parent package still holds.
    monkeypatch.setattr(import_module("pytest_trainloop.checks._body"), "_PATIENCE_S", 0.0)
    pytester.makepyfile(test_it=LOOP.format(body="train(X, Y, lr=1e-6)", marker="overfits"))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["overfits: the loss does not fall on one frozen batch: *"])


def test_a_broken_rule_stands_above_the_numbers_of_its_run(pytester: pytest.Pytester) -> None:
    expect(
        pytester,
        "train(X, Y, act=lambda out: out.softmax(1))",
        (
            "softmax-before-cross-entropy: a softmax turns the input of the cross entropy into"
            " probabilities, and the cross entropy applies `log_softmax` itself"
        ),
        "  Where: test_it.py:16",
        (
            "  What to do: give the loss the logits, and apply the softmax only where probabilities"
            " are used"
        ),
        "  The rule: trainloop-lint --explain softmax-before-cross-entropy",
        "  loss * → * in 20 steps  *",
        "  gradient norm * → *  *",
        "  learning rate 0.01 in 20 steps",
        "  `optimizer`: 2 of 2 parameters moved, by up to * % of their norm",
        marker="trainloop",
    )


def test_a_terminal_without_unicode_gets_plots_it_can_show(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    pytester.makepyfile(test_it=LOOP.format(body="train(X, Y, lr=0.0)", marker="overfits"))
    result = pytester.runpytest_subprocess("-p", "trainloop", "-p", "no:cacheprovider")
    result.stdout.re_match_lines([r"  loss \S+ -> \S+ in 20 steps  _{20}$"])
    assert result.stdout.str().isascii()
    assert "\\u" not in result.stdout.str()


@given(st.lists(st.floats(), min_size=1))
def test_a_plot_is_as_long_in_ascii(values: list[float]) -> None:
    plot = sparkline(values)
    assert in_ascii(plot).isascii()
    assert len(in_ascii(plot)) == len(plot)
    steps = [[a == b for a, b in pairwise(line)] for line in (plot, in_ascii(plot))]
    assert steps[0] == steps[1]


def recorded(loop: Callable[[], object]) -> Run:
    with watch() as run:
        loop()
    return run


def test_groups_have_their_own_rates_and_movement() -> None:
    def loop() -> None:
        body, head = nn.Linear(4, 4), nn.Linear(4, 2)
        groups: list[dict[str, Any]] = [
            {"params": body.parameters(), "lr": 0.0},
            {"params": head.parameters()},
        ]
        opt = torch.optim.SGD(groups, lr=0.5)
        schedule = torch.optim.lr_scheduler.StepLR(opt, 1, 0.5)
        for _ in range(3):
            opt.zero_grad()
            head(body(torch.ones(3, 4))).pow(2).mean().backward()
            opt.step()
            schedule.step()

    lines = numbers(recorded(loop))
    assert lines[2:5] == [
        "learning rate of group 1 0 in 3 steps",
        "learning rate of group 2 0.5 → 0.125  █▃▁",
        "group 1 of `opt`: none of 2 parameters moved",
    ]
    assert lines[5].startswith("group 2 of `opt`: 2 of 2 parameters moved, by up to ")


def test_parameters_that_stayed_are_named() -> None:
    def loop() -> None:
        model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
        opt = torch.optim.SGD(model.parameters(), lr=0.5)
        model["used"](torch.ones(1, 2)).sum().backward()
        opt.step()

    assert numbers(recorded(loop))[-1].endswith(
        " % of their norm; not `unused.weight` and `unused.bias`"
    )


SAME, OTHER = torch.zeros(4, 3), torch.arange(12.0).view(4, 3)
MIXED = torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((SAME, MIXED), "no"),
        ([SAME, MIXED], "no"),
        ({"input_ids": SAME, "labels": MIXED}, "no"),
        ((OTHER, MIXED), "yes, no equal inputs of the batch have different labels"),
        ((SAME, MIXED * 0), "yes, no equal inputs of the batch have different labels"),
        (
            (OTHER[[0, 0, 1, 2, 3]], torch.arange(5)),
            "mostly: 2 of 5 inputs have an equal one with another label",
        ),
        (SAME, None),
        ((SAME,), None),
        ((SAME, MIXED, MIXED), None),
        ((SAME, "text"), None),
        ((SAME, MIXED[:3]), None),
        ((SAME[:1], MIXED[:1]), None),
        ({"input_ids": SAME, "mask": SAME, "labels": MIXED}, None),
        ((torch.tensor(1.0), torch.tensor(1)), None),
    ],
)
def test_labels_are_compared_where_it_is_plain_what_they_are(
    batch: object, said: str | None
) -> None:
    answer = do_labels_follow(batch)
    assert (None if answer is None else answer.said) == said
    assert answer is None or (answer.cause is not None) == (said == "no")


def origin(work: Callable[[], object]) -> Origin | None:
    finder = FindNonFinite()
    with Observer(Run(), (finder,)):
        work()
    return finder.origin


def test_finite_operations_have_no_origin_and_infinities_may_be_meant() -> None:
    x = torch.ones(3)
    assert origin(lambda: x.log().exp() / 2) is None
    assert origin(lambda: x.masked_fill(x > 0, float("-inf"))) is None
    assert origin(lambda: torch.empty(10_000)) is None


def test_the_search_ends_with_its_run() -> None:
    finder = FindNonFinite()
    with Observer(Run(), (finder,)):
        pass
    torch.zeros(1).log()
    assert finder.origin is None
