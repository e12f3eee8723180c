"""The rule `softmax-over-batch`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.rules.loss._activated_inputs import loss_text, where
from pytest_trainloop.rules.loss._loss_calls_in_text import calls_after
from pytest_trainloop.source.facts import (
    Activation,
    Call,
    FileFacts,
    Inside,
    Loop,
    activations,
    constant,
    criterion_of,
    predicted,
)

_CLASSIFYING = frozenset({"nll_loss", "cross_entropy"})
_NORMALISING = frozenset({"softmax", "log_softmax"})
#: How code says that what it loops over, or is given, are batches.
_BATCHES = re.compile(r"loader|batch", re.IGNORECASE)


#: A softmax that may be over the first dimension.
_OVER_FIRST = re.compile(r"oftmax\w*\([^\n]*\b0\b")


class SoftmaxOverBatch(Rule):
    """Probabilities are made to sum to one over the batch, not over the classes.

    Symptom: the model learns poorly, and what it predicts for a sample depends on the other
    samples of the batch.

    Why: with `dim=0` a softmax shares one unit of probability among the samples of a batch: each
    class goes to the samples that want it most. The classes of one sample no longer compete.

    What torch does: nothing. A batch of one class each is as good a tensor as any. It warns where
    `dim` is not given.

    Limits: reported where the result is the input of a classification loss, whose classes are
    not in the first dimension. The logits of a single sample, and attention over a first
    dimension, are silent.
    """

    since = "0.1"
    triggers = (
        "loss|Loss|criterion|cross_entropy",
        "NLLLoss|nll_loss|CrossEntropyLoss|cross_entropy",
    )
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.nn.LogSoftmax.html",
        "https://github.com/batra-mlp-lab/visdial-challenge-starter-pytorch/issues/1",
        "https://github.com/fxia22/pointnet.pytorch/issues/27",
        "https://github.com/MicrosoftDocs/pytorchfundamentals/issues/21",
    )
    examples = (
        Bad(
            "the log-probabilities of a batch",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(784, 10)

                def forward(self, x):
                    return F.log_softmax(self.fc(x.flatten(1)), dim=0)  # error

            def train(loader, optimizer):
                model = Net()
                for x, y in loader:
                    optimizer.zero_grad()
                    F.nll_loss(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the log-probabilities of each sample",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(784, 10)

                def forward(self, x):
                    return F.log_softmax(self.fc(x.flatten(1)), dim=1)

            def train(loader, optimizer):
                model = Net()
                for x, y in loader:
                    optimizer.zero_grad()
                    F.nll_loss(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "a layer, and a loss that takes the logarithm once more",
            """
            class Decoder(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.log_softmax = nn.LogSoftmax(dim=0)

                def forward(self, encoded, options):
                    scores = torch.bmm(options, encoded.unsqueeze(2)).squeeze(2)
                    return self.log_softmax(scores)  # error

            def train(loader, optimizer):
                decoder = Decoder()
                criterion = nn.CrossEntropyLoss()
                for encoded, choices, y in loader:
                    optimizer.zero_grad()
                    criterion(decoder(encoded, choices), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "the last layer of a Sequential",
            """
            def train(loader, optimizer):
                model = nn.Sequential(
                    nn.Linear(784, 10),
                    nn.LogSoftmax(dim=0),  # error
                )
                criterion = nn.NLLLoss()
                for x, y in loader:
                    optimizer.zero_grad()
                    criterion(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the policy for a single state",
            """
            def act(observation):
                policy = nn.Sequential(nn.Linear(4, 2), nn.Softmax(dim=0))
                return torch.distributions.Categorical(policy(observation)).sample()
            """,
        ),
        Good(
            "one sample without a batch",
            """
            def loss(net, x, label):
                log_probs = F.log_softmax(net(x), dim=0)
                return F.nll_loss(log_probs.unsqueeze(0), label.unsqueeze(0))
            """,
        ),
        Good(
            "attention over the steps of a sequence, which come first",
            """
            class Pooled(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.score = nn.Linear(64, 1)
                    self.fc = nn.Linear(64, 10)

                def forward(self, x):
                    return self.fc((F.softmax(self.score(x), dim=0) * x).sum(0))

            def loss(x, y):
                return F.cross_entropy(Pooled()(x), y)
            """,
        ),
        Good(
            "a contrastive loss that compares over the batch on purpose",
            """
            def contrastive(image, text):
                logits = image @ text.t()
                return -F.log_softmax(logits, dim=0).diag().mean()
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where a loss may be given probabilities."""
        if "oftmax" in text and not _OVER_FIRST.search(text):
            return iter(())
        return calls_after("oftmax", tuple(_CLASSIFYING), text, logarithms=True)

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at the dimension of what feeds each classification loss."""
        told: set[int] = set()
        for trace in file.traces:
            for call in trace.calls:
                if criterion_of(call) not in _CLASSIFYING or not _is_batched(call):
                    continue
                for activation in _over_first(call):
                    if id(activation.call.node) not in told:
                        told.add(id(activation.call.node))
                        yield self._report(call, activation)

    def _report(self, call: Call, activation: Activation) -> Finding:
        return self.finding(
            activation.call.place,
            f"`{activation.call.text}` sums to one over the batch: its dimension 0 is the batch in "
            f"`{loss_text(call)}` ({where(call, activation)}), its dimension 1 the classes",
            "take it over the classes: `dim=1`",
        )


def _is_batched(call: Call) -> bool:
    """Whether the loss is computed for batches: a single sample has no dimension to spare."""
    return any(
        (isinstance(frame, Loop) and _BATCHES.search(frame.header))
        or (isinstance(frame, Inside) and _BATCHES.search(" ".join(frame.function.parameters)))
        for frame in call.context
    )


def _over_first(call: Call) -> tuple[Activation, ...]:
    """The activations of a loss's input that are taken over its first dimension.

    None if the input was reshaped since: then its first dimension may be another one.
    """
    given = predicted(call)
    found = activations(given) if given is not None else ()
    return tuple(
        each
        for each in found
        if each.kind in _NORMALISING and not each.is_reshaped and constant(each.dim) == 0
    )
