"""The rule `sigmoid-before-bce-with-logits`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.rules.loss._activated_inputs import (
    activated_inputs,
    loss_text,
    where,
)
from pytest_trainloop.rules.loss._loss_calls_in_text import calls_after

if TYPE_CHECKING:
    from pytest_trainloop.rules._rule import Observation
    from pytest_trainloop.runtime.record import Run
    from pytest_trainloop.runtime.sightings import Criterion
    from pytest_trainloop.source.facts import FileFacts

#: Logits of a model that torch compiled are taken for probabilities if so many, in so many
#: batches, all lie between 0 and 1.
_MANY_VALUES, _MANY_LOOKS = 64, 3


class SigmoidBeforeBceWithLogits(Rule):
    """Probabilities are given to a binary cross entropy that wants logits.

    Symptom: the model learns slowly, its loss never falls below 0.31 for positives and 0.69 for
    negatives, and all its predictions lie between 0.5 and 0.73.

    Why: `BCEWithLogitsLoss` applies the sigmoid itself. The sigmoid of a probability, which lies
    between 0 and 1, lies between 0.5 and 0.73: no input says "surely not".

    What torch does: nothing. Probabilities are as good a tensor as logits.

    Limits: the linter has to see the model from the loss, in the same file or in another one that
    is linted. A run shows it; where torch.compile hides the sigmoid, the values tell.
    """

    since = "0.1"
    triggers = (
        "loss|Loss|criterion|BCEWithLogits|with_logits",
        "BCEWithLogitsLoss|binary_cross_entropy_with_logits",
    )
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html",
        "https://github.com/yudi-mars/daisyRec/issues/15",
        "https://github.com/Turoad/lanedet/issues/32",
        "https://github.com/itakurah/focal-loss-pytorch/issues/5",
        "https://github.com/cvg/glue-factory/issues/89",
    )
    examples = (
        Bad(
            "the model ends in a sigmoid",
            """
            class Net(nn.Module):
                def __init__(self, users, items):
                    super().__init__()
                    self.users = nn.Embedding(users, 16)
                    self.items = nn.Embedding(items, 16)

                def forward(self, u, i):
                    return torch.sigmoid((self.users(u) * self.items(i)).sum(-1))  # error

            def train(loader, optimizer):
                model = Net(100, 100)
                criterion = nn.BCEWithLogitsLoss()
                for u, i, y in loader:
                    optimizer.zero_grad()
                    criterion(model(u, i), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the model returns logits",
            """
            class Net(nn.Module):
                def __init__(self, users, items):
                    super().__init__()
                    self.users = nn.Embedding(users, 16)
                    self.items = nn.Embedding(items, 16)

                def forward(self, u, i):
                    return (self.users(u) * self.items(i)).sum(-1)

            def train(loader, optimizer):
                model = Net(100, 100)
                criterion = nn.BCEWithLogitsLoss()
                for u, i, y in loader:
                    optimizer.zero_grad()
                    criterion(model(u, i), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "a focal loss that gives away its probabilities",
            """
            def focal_loss(inputs, targets, gamma=2.0):
                p = torch.sigmoid(inputs)  # error
                ce = F.binary_cross_entropy_with_logits(p, targets, reduction="none")
                p_t = p * targets + (1 - p) * (1 - targets)
                return (ce * (1 - p_t) ** gamma).mean()
            """,
        ),
        Bad(
            "the head returns a dictionary, the loss is in another class",
            """
            class Head(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(128, 4)

                def forward(self, x):
                    x = self.fc(x)
                    x = torch.sigmoid(x)  # error
                    output = {"exist": x}
                    return output

            class Detector(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.head = Head()
                    self.exist_loss = nn.BCEWithLogitsLoss()

                def loss(self, features, batch):
                    output = self.head(features)
                    return 0.1 * self.exist_loss(output["exist"], batch["lane_exist"].float())
            """,
        ),
        Good(
            "a focal loss uses both, and gives the logits",
            """
            def focal_loss(inputs, targets, gamma=2.0):
                p = torch.sigmoid(inputs)
                ce = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
                p_t = p * targets + (1 - p) * (1 - targets)
                return (ce * (1 - p_t) ** gamma).mean()
            """,
        ),
        Good(
            "a sigmoid and the loss that wants one",
            """
            def loss(model, x, y):
                return F.binary_cross_entropy(torch.sigmoid(model(x)), y)
            """,
        ),
        Good(
            "the sigmoid is for the metric only",
            """
            def train(model, loader, optimizer, metric):
                criterion = nn.BCEWithLogitsLoss()
                for x, y in loader:
                    optimizer.zero_grad()
                    logits = model(x)
                    criterion(logits, y).backward()
                    optimizer.step()
                    metric.update(torch.sigmoid(logits.detach()) > 0.5, y)
            """,
        ),
        Good(
            "the loss leaves the last layer of the head out",
            """
            class Confidence(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.token = nn.Sequential(nn.Linear(dim, 1), nn.Sigmoid())
                    self.loss_fn = nn.BCEWithLogitsLoss()

                def forward(self, x):
                    return self.token(x.detach()).squeeze(-1)

                def loss(self, x, correct):
                    return self.loss_fn(self.token[0](x.detach()).squeeze(-1), correct)
            """,
        ),
        Good(
            "a sigmoid gates what the model computes",
            """
            class Gated(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.gate = nn.Linear(dim, dim)
                    self.fc = nn.Linear(dim, 1)

                def forward(self, x):
                    return self.fc(x * torch.sigmoid(self.gate(x)))

            def loss(x, y):
                return F.binary_cross_entropy_with_logits(Gated(8)(x), y)
            """,
        ),
        Good(
            "probabilities only where the model predicts",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(8, 1)

                def forward(self, x):
                    x = self.fc(x)
                    return x if self.training else torch.sigmoid(x)

            def loss(x, y):
                return F.binary_cross_entropy_with_logits(Net()(x), y)
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where a loss may be given probabilities."""
        return calls_after("igmoid", ("binary_cross_entropy_with_logits",), text)

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Follow the input of each loss on logits back to what it last went through."""
        criterion = "binary_cross_entropy_with_logits"
        for call, activation in activated_inputs(file, criterion, "sigmoid"):
            yield self.finding(
                activation.call.place,
                f"`{activation.call.text}` turns the input of `{loss_text(call)}` "
                f"({where(call, activation)}) into probabilities, and the loss applies the sigmoid "
                f"itself",
                _ADVICE,
            )

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for a sigmoid that stands right before the loss, or for values that only it makes."""
        for criterion in run.criteria:
            if criterion.kind == "binary_cross_entropy_with_logits" and _is_given(criterion):
                yield self.observation(
                    "a sigmoid turns the input of `binary_cross_entropy_with_logits` into"
                    " probabilities, and the loss applies the sigmoid itself",
                    _ADVICE,
                    criterion.where,
                    tuple(_evidence(criterion)),
                )


_ADVICE = "give the loss the logits, and apply the sigmoid only where probabilities are used"


def _is_given(criterion: Criterion) -> bool:
    """Whether the criterion is surely given probabilities."""
    values = criterion.values
    if criterion.fed_by != "compiled" or values is None:
        return criterion.fed_by == "sigmoid"
    many = values.number >= _MANY_VALUES and criterion.looks >= _MANY_LOOKS
    return many and values.lowest >= 0 and values.highest <= 1


def _evidence(criterion: Criterion) -> Iterator[str]:
    if criterion.made_by:
        yield f"the sigmoid is {criterion.made_by}"
    if criterion.values is not None:
        low, high = criterion.values.lowest, criterion.values.highest
        yield f"its input lies between {low:.3g} and {high:.3g}"
