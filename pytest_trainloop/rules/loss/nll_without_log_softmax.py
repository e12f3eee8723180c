"""The rule `nll-without-log-softmax`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.rules.loss._activated_inputs import (
    activated_inputs,
    loss_text,
    where,
)
from pytest_trainloop.rules.loss._loss_calls_in_text import calls_of

if TYPE_CHECKING:
    from pytest_trainloop.rules._rule import Observation
    from pytest_trainloop.runtime.record import Run
    from pytest_trainloop.runtime.sightings import Criterion
    from pytest_trainloop.source.facts import Activation, FileFacts

#: Values of unknown origin are taken for probabilities if so many, in so many batches, sum to 1.
_MANY_VALUES, _MANY_LOOKS = 64, 3
_NAMED = ("softmax", "sigmoid")


class NllWithoutLogSoftmax(Rule):
    """A negative log-likelihood is given probabilities or logits.

    Symptom: the loss is negative. With probabilities it creeps towards -1 and the model learns
    little; with logits it falls for ever, and training diverges.

    Why: `NLLLoss` only picks the number of the right class and turns its sign. It is a
    likelihood if the numbers are log-probabilities: without the logarithm a wrong prediction
    costs next to nothing, and without the softmax nothing keeps the numbers from growing.

    What torch does: nothing. It cannot tell logarithms from other numbers.

    Limits: the linter has to see the model from the loss, in the same file or in another one that
    is linted. A run shows it by what computed the input, and by its values where that is hidden.
    """

    since = "0.1"
    triggers = ("loss|Loss|criterion", "NLLLoss|nll_loss")
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.nn.NLLLoss.html",
        "https://github.com/AnubhavGupta3377/Text-Classification-Models-Pytorch/issues/9",
        "https://github.com/clvrai/ACGAN-PyTorch/issues/4",
        "https://github.com/midas-research/man-sf-emnlp/issues/2",
    )
    examples = (
        Bad(
            "the model ends in a softmax",
            """
            class Classifier(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(64, 4)
                    self.softmax = nn.Softmax(dim=1)

                def forward(self, x):
                    return self.softmax(self.fc(x))  # error

            def train(loader, optimizer):
                model = Classifier()
                criterion = nn.NLLLoss()
                for x, y in loader:
                    optimizer.zero_grad()
                    criterion(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the model ends in a log_softmax",
            """
            class Classifier(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(64, 4)
                    self.log_softmax = nn.LogSoftmax(dim=1)

                def forward(self, x):
                    return self.log_softmax(self.fc(x))

            def train(loader, optimizer):
                model = Classifier()
                criterion = nn.NLLLoss()
                for x, y in loader:
                    optimizer.zero_grad()
                    criterion(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "a softmax in the loss's own line",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    out = model(x)
                    F.nll_loss(F.softmax(out, 1), y).backward()  # error
                    optimizer.step()
            """,
        ),
        Bad(
            "the loss is given to the model, which ends in a softmax",
            """
            class TextModel(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(64, 4)
                    self.softmax = nn.Softmax()

                def forward(self, x):
                    return self.softmax(self.fc(x))  # error

                def add_loss_op(self, loss_op):
                    self.loss_op = loss_op

                def run_epoch(self, batches, optimizer):
                    for x, y in batches:
                        optimizer.zero_grad()
                        loss = self.loss_op(self.__call__(x), y)
                        loss.backward()
                        optimizer.step()

            def main(batches, optimizer):
                model = TextModel()
                model.add_loss_op(nn.NLLLoss())
                model.run_epoch(batches, optimizer)
            """,
        ),
        Bad(
            "logits",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.layers = nn.Sequential(
                        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)  # error
                    )

                def forward(self, x):
                    return self.layers(x)

            def loss(x, y):
                return F.nll_loss(Net()(x), y)
            """,
        ),
        Good(
            "log-probabilities from a model in another module",
            """
            from models import Net
            import torch.nn.functional as F

            def loss(x, y):
                return F.nll_loss(Net()(x), y)
            """,
        ),
        Good(
            "the logarithm of probabilities",
            """
            def loss(model, x, y):
                p = F.softmax(model(x), dim=1)
                return F.nll_loss((p + 1e-8).log(), y)
            """,
        ),
        Good(
            "an adaptive softmax returns log-probabilities",
            """
            def loss(adaptive, x, y):
                return F.nll_loss(adaptive.log_prob(x), y)
            """,
        ),
        Good(
            "the log-density of a flow",
            """
            def loss(flow, x, y):
                densities = torch.stack([flow.log_density(x, k) for k in range(4)], dim=1)
                return F.nll_loss(densities, y)
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where a loss may be called."""
        return calls_of(("nll_loss",), text)

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Follow the input of each `NLLLoss` back to what it last went through."""
        kinds = ("softmax", "sigmoid", "linear")
        for call, activation in activated_inputs(file, "nll_loss", *kinds):
            yield self.finding(
                activation.call.place,
                f"`{activation.call.text}` gives `{loss_text(call)}` "
                f"({where(call, activation)}) {_given(activation)}, and it wants log-probabilities",
                _advice(activation.kind),
            )

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for a likelihood whose input is surely no logarithm of probabilities."""
        for criterion in run.criteria:
            given = _seen(criterion) if criterion.kind == "nll_loss" else ""
            if given:
                values = criterion.values
                yield self.observation(
                    f"`nll_loss` is given {given}, and it wants log-probabilities",
                    _advice("linear" if given == "logits" else criterion.fed_by),
                    criterion.where,
                    (f"its input lies between {values.lowest:.3g} and {values.highest:.3g}",)
                    if values is not None
                    else (),
                )


def _given(activation: Activation) -> str:
    return "logits" if activation.kind == "linear" else "probabilities"


def _seen(criterion: Criterion) -> str:
    """What a likelihood was given in a run instead of log-probabilities; empty if unknown."""
    if criterion.fed_by in ("softmax", "sigmoid"):
        return "probabilities"
    values = criterion.values
    if values is None or values.highest <= 0:
        return ""
    # The logarithm of a probability is never above 0, but that of a density can be.
    if criterion.fed_by in ("linear", "relu"):
        return "logits"
    many = values.number >= _MANY_VALUES and criterion.looks >= _MANY_LOOKS
    return "probabilities" if many and values.rows_sum_to_one and values.lowest >= 0 else ""


def _advice(kind: str) -> str:
    if kind == "linear":
        return "apply `log_softmax` to them first, or use `F.cross_entropy`, which does so itself"
    return f"use `log_softmax` in place of {f'`{kind}`' if kind in _NAMED else 'the softmax'}"
