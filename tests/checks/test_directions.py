"""`@overfits` on losses that are to be raised: by mistake, and on purpose."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytest_trainloop.runtime.direction import pull_of

LOOP = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical
from torch.utils.data import DataLoader, TensorDataset

from pytest_trainloop import overfits


def batches(of=lambda y: y):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(8) % 2
    x = torch.randn(8, 4, generator=generator) + 2 * y[:, None]
    return DataLoader(TensorDataset(x, of(y)), batch_size=4)


def train(loss_of, loader=None, **options):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, **options)
    for _ in range(20):
        for x, y in loader or batches():
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()

"""

WRONG = {
    "cross entropy": ("lambda out, y: -F.cross_entropy(out, y)", "cross_entropy"),
    "the average of a cross entropy": (
        "lambda out, y: -F.cross_entropy(out, y, reduction='none').mean() / 4",
        "cross_entropy",
    ),
    "mean squared error": ("lambda out, y: -F.mse_loss(out[:, 0], y.float())", "mse_loss"),
    "absolute error": ("lambda out, y: -nn.L1Loss()(out[:, 0], y.float())", "l1_loss"),
    "binary cross entropy": (
        "lambda out, y: -F.binary_cross_entropy(out[:, 0].sigmoid(), y.float())",
        "binary_cross_entropy",
    ),
    "binary cross entropy with logits": (
        "lambda out, y: -(2 * F.binary_cross_entropy_with_logits(out[:, 0], y.float()))",
        "binary_cross_entropy_with_logits",
    ),
}


@pytest.mark.parametrize("loss", WRONG)
def test_a_negated_criterion_is_named(pytester: pytest.Pytester, loss: str) -> None:
    code, kind = WRONG[loss]
    pytester.makepyfile(test_it=f"{LOOP}@overfits\ndef test_it():\n    train({code})\n")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            rf"overfits: the loss is negated .*, so training raises the `{kind}`: \S+ → \S+ in .*",
            r"  loss -.*",
            r"  gradient norm .*",
            r"  learning rate 0.01 in \d+ steps",
            r"  `optimizer`: 4 of 4 parameters moved.*",
            r"  Where: test_it.py:23",
            r"  What to do: back-propagate the criterion as it is: an optimizer lowers what .*",
            r"  To reproduce: pytest -p trainloop 'test_it.py::test_it'",
        ]
    )


MEANT = {
    "log-likelihood": "train(lambda out, y: -Categorical(logits=out).log_prob(y).mean())",
    "log-likelihood that is maximized": (
        "train(lambda out, y: Categorical(logits=out).log_prob(y).mean(), maximize=True)"
    ),
    "minus a cross entropy that is maximized": (
        "train(lambda out, y: -F.cross_entropy(out, y), maximize=True)"
    ),
    "policy gradient": (
        "train(lambda out, y: -(Categorical(logits=out).log_prob(y) * (2 * y - 0.5)).mean())"
    ),
    "policy gradient by cross entropy": (
        "train(lambda out, y: -(-F.cross_entropy(out, y, reduction='none') * (y + 1)).mean())"
    ),
    "contrast": ("train(lambda out, y: -F.cosine_similarity(out, F.one_hot(y, 2).float()).mean())"),
    "a classifier that is to be fooled": """
    torch.manual_seed(0)
    classifier = nn.Linear(4, 2).requires_grad_(False)
    shift = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(shift.parameters(), lr=0.01)
    for _ in range(20):
        for x, y in batches():
            optimizer.zero_grad()
            loss = -F.cross_entropy(classifier(x + shift(x)), y)
            loss.backward()
            optimizer.step()
    """,
    "inputs that are to fool": """
    classifier = nn.Linear(4, 2)
    noise = nn.Embedding(1, 4)
    optimizer = torch.optim.Adam(noise.parameters(), lr=0.01)
    for _ in range(20):
        for x, y in batches():
            optimizer.zero_grad()
            loss = -F.cross_entropy(classifier(x + noise.weight), y)
            loss.backward()
            optimizer.step()
    """,
    "a generator": """
    gen, disc = nn.Linear(2, 4), nn.Linear(4, 1)
    opt_d = torch.optim.Adam(disc.parameters(), lr=0.001)
    opt_g = torch.optim.Adam(gen.parameters(), lr=0.01)
    for _ in range(20):
        for x, y in batches():
            fake, no = gen(torch.randn(4, 2)), torch.zeros(4, 1)
            opt_d.zero_grad()
            F.binary_cross_entropy_with_logits(disc(fake.detach()), no).backward()
            opt_d.step()
            opt_g.zero_grad()
            (-F.binary_cross_entropy_with_logits(disc(fake), no)).backward()
            opt_g.step()
    """,
}


@pytest.mark.parametrize("loss", MEANT)
def test_a_loss_that_is_meant_to_be_negated(pytester: pytest.Pytester, loss: str) -> None:
    options = '(optimizer="opt_g")' if "opt_g" in MEANT[loss] else ""
    pytester.makepyfile(
        test_it=f"{LOOP}@overfits{options}\ndef test_it():\n    {MEANT[loss].strip()}\n"
    )
    result = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "--trainloop-ignore=parameters-not-in-optimizer"
    )
    assert "is negated" not in result.stdout.str()
    result.assert_outcomes(passed=1)


def pull(loss: Tensor) -> tuple[str, bool]:
    found = pull_of([loss], "here")
    return found.kind, found.negated


def test_the_direction_is_read_from_the_graph_or_not_known() -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    layer = nn.Linear(3, 2)
    loss = F.cross_entropy(layer(x), y)
    assert pull(loss) == ("cross_entropy", False)
    assert pull(-loss) == ("cross_entropy", True)
    assert pull(loss.neg().neg()) == ("cross_entropy", False)
    assert pull((-loss / 3) * 65536.0) == ("cross_entropy", True)
    unknown = ("", False)
    assert pull(loss * -1.0) == unknown  # a reward may be negative
    assert pull(-loss + layer.weight.norm()) == unknown
    assert pull(-F.cross_entropy(layer(x).relu(), y)) == unknown
    assert pull(-F.mse_loss(layer(x), layer(-x))) == unknown
    assert pull(-F.nll_loss(layer(x).softmax(1), y)) == unknown
    assert pull(-layer(x).mean()) == unknown
    assert pull(torch.ones(1).requires_grad_()[0]) == unknown
