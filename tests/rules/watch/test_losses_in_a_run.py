"""Rules about criteria in watched runs: what they say, and what they are silent about."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pytest_trainloop import watch
from tests.rules.watch.conftest import Observed

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
HERE = "tests/rules/watch/test_losses_in_a_run.py"
CRITERIA = (
    *("softmax-before-cross-entropy", "sigmoid-before-bce-with-logits"),
    *("nll-without-log-softmax", "broadcast-loss"),
)
Loss = Callable[[Tensor, Tensor], Tensor]


def trained_with(loss: Loss, last: nn.Module | None = None, outputs: int = 3) -> None:
    """A loop whose loss is told the output of a network and class indices, both for 4 samples."""
    model = nn.Sequential(nn.Linear(4, outputs), *([last] if last else []))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        loss(model(torch.randn(4, 4)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()


SOFTMAX = (
    "softmax-before-cross-entropy: a softmax turns the input of the cross entropy into"
    " probabilities, and the cross entropy applies `log_softmax` itself"
)


def soft(labels: Tensor) -> Tensor:
    return 0.8 * F.one_hot(labels, 3) + 0.1


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(F.cross_entropy, id="function"),
        pytest.param(nn.CrossEntropyLoss(label_smoothing=0.1), id="module"),
        pytest.param(lambda p, y: F.nll_loss(p.log_softmax(1), y), id="in two steps"),
        pytest.param(lambda p, y: F.cross_entropy(p, soft(y)), id="soft targets"),
        pytest.param(lambda p, y: F.cross_entropy(p[:, None].transpose(1, 2), y[:, None]), id="2d"),
        pytest.param(lambda p, y: F.cross_entropy(p, y) / 2 + p.square().mean(), id="summand"),
    ],
)
def test_a_softmax_before_a_cross_entropy(observed: Observed, loss: Loss) -> None:
    assert observed(lambda: trained_with(loss, nn.Softmax(dim=1))) == [SOFTMAX]


def test_it_is_said_where_and_which_module_it_is() -> None:
    with watch() as run:
        trained_with(F.cross_entropy, nn.Softmax(dim=1))
    (one,) = run.observations
    assert one.where.startswith(f"{HERE}:")
    assert one.evidence == ("the softmax is `1` (Softmax) of `model`",)
    assert one.advice == (
        "give the loss the logits, and apply the softmax only where probabilities are used"
    )


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(
            lambda x, y: F.cross_entropy(x, y) + x.softmax(1).square().mean(), id="beside"
        ),
        pytest.param(lambda x, _: F.cross_entropy(x, x.detach().softmax(1)), id="of the target"),
        pytest.param(lambda x, _: F.cross_entropy(x, x.softmax(1)), id="of an attached target"),
        pytest.param(lambda x, y: F.cross_entropy(x.log_softmax(1), y), id="log_softmax twice"),
        pytest.param(lambda x, y: F.nll_loss((x.softmax(1) + 1e-8).log(), y), id="log of softmax"),
        pytest.param(lambda x, y: F.cross_entropy(x.softmax(1) @ torch.eye(3), y), id="attention"),
        pytest.param(
            lambda x, _: F.kl_div(x.log_softmax(1), x.detach().softmax(1), reduction="batchmean"),
            id="distillation",
        ),
    ],
)
def test_a_softmax_that_is_in_its_place(observed: Observed, loss: Loss) -> None:
    assert observed(lambda: trained_with(loss)) == []


SIGMOID = (
    "sigmoid-before-bce-with-logits: a sigmoid turns the input of"
    " `binary_cross_entropy_with_logits` into probabilities, and the loss applies the"
    " sigmoid itself"
)


def test_a_sigmoid_before_a_loss_on_logits(observed: Observed) -> None:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(p.squeeze(1), (y > 0).float())

    assert observed(lambda: trained_with(loss, nn.Sigmoid(), outputs=1)) == [SIGMOID]


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(F.binary_cross_entropy_with_logits, id="logits"),
        pytest.param(lambda x, y: F.binary_cross_entropy(x.sigmoid(), y), id="probabilities"),
        pytest.param(
            lambda x, y: (
                (1 - x.sigmoid()) ** 2 * F.binary_cross_entropy_with_logits(x, y, reduction="none")
            ).mean(),
            id="focal loss",
        ),
        pytest.param(
            lambda x, y: F.binary_cross_entropy_with_logits(x * x.sigmoid(), y), id="gate"
        ),
    ],
)
def test_a_sigmoid_that_is_in_its_place(observed: Observed, loss: Loss) -> None:
    assert observed(lambda: trained_with(lambda x, y: loss(x, F.one_hot(y, 3).float()))) == []


@pytest.mark.parametrize(("last", "told"), [(nn.Sigmoid(), True), (nn.Identity(), False)])
def test_values_tell_what_a_compiled_model_gives(
    observed: Observed, last: nn.Module, told: bool
) -> None:
    def loop() -> None:
        torch._dynamo.reset()
        model = nn.Sequential(nn.Linear(4, 3), last)
        compiled = torch.compile(model, backend="aot_eager")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            y = torch.ones(8, 3)
            F.binary_cross_entropy_with_logits(compiled(torch.randn(8, 4)), y).backward()
            optimizer.step()

    assert [said.partition(":")[0] for said in observed(loop)] == (
        ["sigmoid-before-bce-with-logits"] if told else []
    )


@pytest.mark.parametrize(
    ("last", "given"),
    [
        (nn.Softmax(dim=1), "probabilities"),
        (nn.Sigmoid(), "probabilities"),
        (nn.Identity(), "logits"),
        (nn.ReLU(), "logits"),
    ],
)
def test_a_likelihood_without_a_logarithm(observed: Observed, last: nn.Module, given: str) -> None:
    assert observed(lambda: trained_with(nn.NLLLoss(), last)) == [
        f"nll-without-log-softmax: `nll_loss` is given {given}, and it wants log-probabilities"
    ]


@pytest.mark.parametrize("last", [nn.LogSoftmax(dim=1), nn.LogSigmoid()])
def test_a_likelihood_of_logarithms(observed: Observed, last: nn.Module) -> None:
    assert observed(lambda: trained_with(nn.NLLLoss(), last)) == []


def test_a_likelihood_of_log_densities_and_of_looked_up_logarithms(observed: Observed) -> None:
    def density(x: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(3 - x.square(), y)

    def looked_up(x: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(torch.eye(4) @ x.log_softmax(1), y)

    assert observed(lambda: trained_with(density)) == []
    assert observed(lambda: trained_with(looked_up)) == []


BROADCASTING: dict[str, Loss] = {
    "mse_loss": F.mse_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
    "l1_loss": F.l1_loss,
    "difference": lambda p, t: ((p - t) ** 2).mean(),
}


@pytest.mark.parametrize("kind", BROADCASTING)
@pytest.mark.parametrize("column_is", ["prediction", "target"])
def test_a_column_that_is_compared_with_a_row(
    observed: Observed, kind: str, column_is: str
) -> None:
    loss, column = BROADCASTING[kind], column_is == "prediction"

    def loop() -> None:
        trained_with(
            lambda p, y: loss(p, y.float()) if column else loss(p[:, 0], y[:, None].float()),
            outputs=1,
        )

    shapes = ("(4, 1)", "(4,)") if column else ("(4,)", "(4, 1)")
    what = "the difference in the loss" if kind == "difference" else f"`{kind}`"
    (said,) = observed(loop)
    assert said == (
        f"broadcast-loss: {what} compares all with all: the prediction is {shapes[0]} and the"
        f" target {shapes[1]}, which broadcast to (4, 4)"
    )


@pytest.mark.parametrize(
    "shaped",
    [
        pytest.param(lambda p, y: (p, y[:, None].float()), id="both columns"),
        pytest.param(lambda p, y: (p[:, 0], y.float()), id="both rows"),
        pytest.param(lambda p, _: (p, torch.ones(4)), id="equal targets"),
        pytest.param(lambda p, _: (p, torch.tensor(1.0)), id="one target"),
        pytest.param(lambda p, _: (p, torch.randn(4, 4)), id="several targets for each"),
        pytest.param(lambda p, _: (p, torch.randn(3)), id="a grid of targets"),
        pytest.param(lambda p, y: (p[:, 0].unsqueeze(1), y.float()), id="lifted on purpose"),
        pytest.param(lambda p, _: (p, p[:, 0]), id="all pairs of predictions"),
    ],
)
def test_shapes_that_broadcast_on_purpose_or_not_at_all(
    observed: Observed, shaped: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        return torch.stack([kind(*shaped(p, y)) for kind in BROADCASTING.values()]).sum()

    assert observed(lambda: trained_with(loss, outputs=1)) == []


def test_a_loss_inside_of_a_checkpoint_is_not_recomputed_to_be_looked_at(
    observed: Observed,
) -> None:
    calls: list[int] = []

    def loss(p: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return F.mse_loss(p, y.float())

    def checkpointed(p: Tensor, y: Tensor) -> Tensor:
        out: Tensor = checkpoint(loss, p, y, use_reentrant=False)
        return out

    assert observed(lambda: trained_with(checkpointed, outputs=1)) == []
    # Forward and recomputation in each of 4 steps.
    assert len(calls) == 8


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_said_once_is_not_said_again(observed: Observed, number: int) -> None:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        return sum((F.cross_entropy(p, y) for _ in range(number)), torch.zeros(()))

    assert observed(lambda: trained_with(loss, nn.Softmax(dim=1))) == [SOFTMAX]
