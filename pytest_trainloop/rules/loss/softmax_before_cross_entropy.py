"""The rule `softmax-before-cross-entropy`."""

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
    from pytest_trainloop.source.facts import FileFacts


class SoftmaxBeforeCrossEntropy(Rule):
    """Probabilities are given to a cross entropy that wants logits.

    Symptom: the model learns slowly, and its loss never falls below a floor: 1.461 for 10
    classes, 5.909 for 1000, even when every prediction is right.

    Why: cross entropy applies `log_softmax` itself. A softmax of probabilities, which lie
    between 0 and 1, is nearly flat: the largest that it can give the right one of 10 classes
    is 0.23. The gradient shrinks with it, and all but vanishes where the model is surely wrong.

    What torch does: nothing. Probabilities are as good a tensor as logits.

    Limits: the linter has to see the model from the loss, in the same file or in another one that
    is linted; a run shows it unless torch.compile made the softmax part of something larger. A
    `log_softmax` before the loss is not reported: taken twice it changes nothing.
    """

    since = "0.1"
    triggers = ("loss|Loss|criterion|cross_entropy", "CrossEntropyLoss|cross_entropy")
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html",
        "https://github.com/mlelarge/graph_neural_net/issues/37",
        "https://github.com/Lightning-Universe/lightning-bolts/pull/654",
        "https://github.com/jindongwang/Deep-learning-activity-recognition/issues/10",
        "https://github.com/eriklindernoren/PyTorch-GAN/issues/98",
    )
    examples = (
        Bad(
            "the model ends in a softmax",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(784, 10)

                def forward(self, x):
                    return F.softmax(self.fc(x), dim=1)  # error

            def train(loader, optimizer):
                model = Net()
                criterion = nn.CrossEntropyLoss()
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = criterion(model(x), y)
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the model returns logits",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(784, 10)

                def forward(self, x):
                    return self.fc(x)

            def train(loader, optimizer):
                model = Net()
                criterion = nn.CrossEntropyLoss()
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = criterion(model(x), y)
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "the last layer of a Sequential, in one of two heads",
            """
            class Discriminator(nn.Module):
                def __init__(self, classes):
                    super().__init__()
                    self.body = nn.Sequential(nn.Conv2d(3, 64, 3), nn.LeakyReLU(0.2))
                    self.adv = nn.Sequential(nn.Linear(64, 1), nn.Sigmoid())
                    self.aux = nn.Sequential(nn.Linear(64, classes), nn.Softmax())  # error

                def forward(self, img):
                    out = self.body(img).mean((2, 3))
                    return self.adv(out), self.aux(out)

            discriminator = Discriminator(10)
            adversarial = nn.BCELoss()
            auxiliary = nn.CrossEntropyLoss().cuda()

            def discriminator_loss(images, valid, labels):
                validity, predicted = discriminator(images)
                return adversarial(validity, valid) + auxiliary(predicted, labels)
            """,
        ),
        Bad(
            "in the loop itself",
            """
            def train(model, loader, optimizer):
                for data, target in loader:
                    optimizer.zero_grad()
                    scores = torch.softmax(model(data), -1)  # error
                    F.cross_entropy(scores.view(-1, 10), target).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "a Lightning module that is its own model",
            """
            import lightning as L
            import torch
            import torch.nn.functional as F

            class Regression(L.LightningModule):
                def __init__(self):
                    super().__init__()
                    self.linear = torch.nn.Linear(784, 10)

                def forward(self, x):
                    return F.softmax(self.linear(x))  # error

                def training_step(self, batch, batch_idx):
                    x, y = batch
                    return F.cross_entropy(self(x), y)
            """,
        ),
        Bad(
            "the softmax is a layer of the model, and a method of the tensor in another head",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(8, 4)
                    self.act = nn.Softmax(dim=1)

                def forward(self, x):
                    h = self.fc(x)
                    return self.act(h), h.softmax(dim=-1)  # error

            def losses(x, y):
                first, second = Net()(x)
                return F.cross_entropy(first, y)

            def other_losses(x, y):
                first, second = Net()(x)
                return F.cross_entropy(second, y)
            """,
        ),
        Good(
            "the softmax is for the accuracy only",
            """
            def train(model, loader, optimizer, metric):
                for x, y in loader:
                    optimizer.zero_grad()
                    logits = model(x)
                    F.cross_entropy(logits, y).backward()
                    optimizer.step()
                    metric.update(F.softmax(logits.detach(), dim=1), y)
            """,
        ),
        Good(
            "the softmax is the target of a distillation",
            """
            def distill(student, teacher, loader, optimizer):
                for x in loader:
                    optimizer.zero_grad()
                    with torch.no_grad():
                        target = F.softmax(teacher(x), dim=1)
                    F.cross_entropy(student(x), target).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a softmax for attention, inside the model",
            """
            class Pooled(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.score = nn.Linear(64, 1)
                    self.fc = nn.Linear(64, 10)

                def forward(self, x):
                    weights = F.softmax(self.score(x), dim=1)
                    return self.fc((weights * x).sum(1))

            def loss(x, y):
                return F.cross_entropy(Pooled()(x), y)
            """,
        ),
        Good(
            "log_softmax twice is log_softmax",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(F.log_softmax(model(x), dim=1), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "probabilities only where the model predicts",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(784, 10)

                def forward(self, x):
                    x = self.fc(x)
                    if not self.training:
                        x = F.softmax(x, dim=1)
                    return x

            def loss(x, y):
                return F.cross_entropy(Net()(x), y)
            """,
        ),
        Good(
            "a flag asks for probabilities, and the loss does not",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(784, 10)

                def forward(self, x, probabilities=False):
                    x = self.fc(x)
                    if probabilities:
                        return F.softmax(x, dim=1)
                    return x

            def loss(x, y):
                return F.cross_entropy(Net()(x), y)
            """,
        ),
        Good(
            "the logarithm of a softmax, and the likelihood of it",
            """
            def loss(model, x, y):
                p = F.softmax(model(x), dim=1)
                return F.nll_loss(torch.log(p + 1e-8), y)
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where a loss may be given probabilities."""
        return calls_after("oftmax", ("cross_entropy",), text)

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Follow the input of each cross entropy back to what it last went through."""
        for call, activation in activated_inputs(file, "cross_entropy", "softmax"):
            yield self.finding(
                activation.call.place,
                f"`{activation.call.text}` turns the input of `{loss_text(call)}` "
                f"({where(call, activation)}) into probabilities, and the loss applies "
                f"`log_softmax` itself",
                _ADVICE,
            )

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for a softmax that stands right before a cross entropy in the graph of a loss."""
        for criterion in run.criteria:
            if (criterion.kind, criterion.fed_by) == ("cross_entropy", "softmax"):
                yield self.observation(
                    "a softmax turns the input of the cross entropy into probabilities, and the"
                    " cross entropy applies `log_softmax` itself",
                    _ADVICE,
                    criterion.where,
                    (f"the softmax is {criterion.made_by}",) if criterion.made_by else (),
                )


_ADVICE = "give the loss the logits, and apply the softmax only where probabilities are used"
