"""The rule `broadcast-loss`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.rules.loss._activated_inputs import loss_text
from pytest_trainloop.rules.loss._sides_in_text import comparisons
from pytest_trainloop.source.facts import (
    Call,
    FileFacts,
    Operation,
    Result,
    Value,
    constant,
    criterion_of,
    expected,
    options,
    predicted,
    trailing,
)

if TYPE_CHECKING:
    from pytest_trainloop.rules._rule import Observation
    from pytest_trainloop.runtime.record import Run

_BROADCASTING = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
_SHAPES = {"column": "(B, 1)", "flat": "(B,)"}


class BroadcastLoss(Rule):
    """A column of predictions is compared with a row of targets.

    Symptom: the model learns to predict the mean of the batch; it looks like under-fitting.

    Why: the difference of a (B, 1) and a (B,) tensor is (B, B): every prediction is compared with
    every target. The prediction with the least error to all of them is their mean.

    What torch does: it warns, for `F.mse_loss` and its kin. For a difference written by hand it
    says nothing.

    Limits: reported where both shapes are known from layers and reshaping in sight, in the same
    file or in another one that is linted. What a data loader yields is not known to the linter;
    a run shows it, unless one side got its dimension by `unsqueeze` or the targets are all equal.
    """

    since = "0.1"
    triggers = (
        "mse_loss|l1_loss|huber_loss|MSELoss|L1Loss|HuberLoss|mean()|sum()|mean(|sum(",
        "Linear",
        "squeeze(|view(|reshape(|flatten(|max(",
    )
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.nn.MSELoss.html",
        "https://pytorch.org/docs/stable/notes/broadcasting.html",
        "https://github.com/pytorch/pytorch/issues/16045",
        "https://github.com/sunwuzhou03/reinforcement-learning-lab/issues/1",
    )
    examples = (
        Bad(
            "a column of predictions, flat targets",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(8, 1)

                def forward(self, x):
                    return self.fc(x)

            def train(loader, optimizer):
                model = Net()
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.mse_loss(model(x), y.view(-1))  # error
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "flat predictions, flat targets",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(8, 1)

                def forward(self, x):
                    return self.fc(x).squeeze(-1)

            def train(loader, optimizer):
                model = Net()
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.mse_loss(model(x), y.view(-1))
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "the best action's value is flat, the critic's a column",
            """
            class Critic(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.value = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1))
                    self.q = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))

            def loss(states, next_states):
                critic, criterion = Critic(), nn.SmoothL1Loss()
                with torch.no_grad():
                    target = 0.99 * critic.q(next_states).max(1)[0]
                return criterion(critic.value(states), target)  # error
            """,
        ),
        Bad(
            "a difference written by hand",
            """
            def loss(x, y):
                pred = nn.Linear(8, 1)(x)
                return ((pred - y.reshape(-1)) ** 2).mean()  # error
            """,
        ),
        Good(
            "columns on both sides",
            """
            def loss(x, y):
                model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
                return F.mse_loss(model(x), y.view(-1, 1))
            """,
        ),
        Good(
            "a target of unknown shape",
            """
            def loss(x, y):
                model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
                return F.mse_loss(model(x), y.float())
            """,
        ),
        Good(
            "a weight for each sample",
            """
            def loss(x, y, weight):
                model = nn.Linear(8, 1)
                each = F.mse_loss(model(x), y.view(-1, 1), reduction="none")
                return (each.squeeze(1) * weight.view(-1)).mean()
            """,
        ),
        Good(
            "every quantile is compared with the one target",
            """
            def loss(x, y, quantiles):
                heads = nn.Linear(8, 9)
                error = y.view(-1, 1) - heads(x)
                return torch.max(quantiles * error, (quantiles - 1) * error).mean()
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where two tensors may be compared: reshaping and losses of other kinds are everywhere."""
        return comparisons(text)

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Compare the shapes of the two sides of each loss that broadcasts."""
        told: set[int] = set()
        for trace in file.traces:
            for call in trace.calls:
                sides = _sides(call)
                if sides is None or id(call.node) in told or call.file is not file.source:
                    continue
                shapes = [_SHAPES.get(trailing(side), "") for side in sides]
                if all(shapes) and shapes[0] != shapes[1]:
                    told.add(id(call.node))
                    yield self._report(call, *shapes)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for a prediction and a target that were both expanded to be compared."""
        for criterion in run.criteria:
            if criterion.broadcast is None:
                continue
            by_hand = criterion.kind == "difference"
            what = "the difference in the loss" if by_hand else f"`{criterion.kind}`"
            prediction, target = criterion.broadcast
            yield self.observation(
                f"{what} compares all with all: the prediction is {prediction} and the target"
                f" {target}, which broadcast to {2 * (max(prediction),)}",
                _ADVICE,
                criterion.where,
            )

    def _report(self, call: Call, first: str, second: str) -> Finding:
        if criterion_of(call):
            names = f"`{call.argument_text(0, 'input')}` is {first} and "
            names += f"`{call.argument_text(1, 'target')}` is {second}"
            what = f"`{loss_text(call)}` compares all with all"
        else:
            names = f"one side of the difference is {first}, the other {second}"
            what = f"`{call.text}` compares all with all"
        return self.finding(
            call.place,
            f"{what}: {names}, which broadcast to (B, B)",
            _ADVICE,
        )


_ADVICE = "give both the same shape: `.squeeze(-1)` the column"


def _sides(call: Call) -> tuple[Value, Value] | None:
    """The two tensors that a loss compares: a function of torch, or a mean of differences."""
    if criterion_of(call) in _BROADCASTING:
        first, second = predicted(call), expected(call)
        return (first, second) if first is not None and second is not None else None
    if call.method not in ("mean", "sum"):
        return None
    given = call.args[0] if call.qualified and call.args else call.receiver
    for option in options(given) if given is not None else ():
        power = _squared(option)
        for base in options(power) if power is not None else ():
            if isinstance(base, Operation) and base.operator == "-" and len(base.operands) > 1:
                return base.operands[0], base.operands[1]
    return None


def _squared(value: Value) -> Value | None:
    """What is squared, or made positive."""
    if isinstance(value, Operation) and value.operator == "**":
        return value.operands[0]
    if isinstance(value, Result) and value.call.method in ("pow", "square", "abs"):
        call = value.call
        if call.method == "pow" and constant(call.args[-1] if call.args else None) is None:
            return None
        return call.args[0] if call.qualified and call.args else call.receiver
    return None
