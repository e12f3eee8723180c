"""The rule `broadcast-loss`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.rules.loss._activated_inputs import loss_text
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
#: A loss of torch that broadcasts, by its function or its class.
_TORCH_LOSSES = ("mse_loss", "l1_loss", "huber_loss", "MSELoss", "L1Loss", "HuberLoss")
#: A mean of squares or of absolute values, written by hand.
_BY_HAND = re.compile(r"\.(?:mean|sum)\(")
_POWER = re.compile(r"\*\*\s*2|\bpow\(|\bsquare\(|\babs\(")
_TAKEN_OFF = re.compile(r"-\s*[A-Za-z_(]")
_NAME = re.compile(r"\b[A-Za-z_]\w*\b(?!\()")
#: A call of what may be a loss object.
_CALLED = re.compile(r"(?:loss|Loss|criterion|crit)\w*\((?:[^()\n]*\)\()?")
#: A keyword that no loss of torch has.
_FOREIGN_KEYWORD = re.compile(r"(?!input\b|target\b)\w+\s*=(?!=)")
#: Where a loss object is made that does not broadcast, and its name.
_OTHER_LOSS = re.compile(r"(\w+)\s*=\s*(?:\w+\.)*(?:CrossEntropy|NLL|BCE|BCEWithLogits)Loss\(")
_ANY_LOSS = re.compile(r"(\w+)\s*=\s*(?:\w+\.)*\w*Loss\(")
_COMMA = re.compile(r"[()\[\]{},]")
_RESHAPED = re.compile(r"\.(?:view|reshape|squeeze|unsqueeze|flatten)\([^()]*\)\s*$")
#: A last size that is neither 1 nor for the tensor to say.
_WIDE = re.compile(r",\s*(?!-?1\s*\))[^,()]*\)\s*$")
#: How far before a `.mean(` on a line of its own the expression begins, in characters.
_REACH = 200
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
        for match in _BY_HAND.finditer(text):
            if _is_of_a_difference(text, match):
                yield match.start()
        if any(name in text for name in _TORCH_LOSSES):
            for match in _CALLED.finditer(text):
                if _may_differ(text, match.end()) and not _is_of_another_kind(text, match):
                    yield match.start()

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


def _is_of_a_difference(text: str, match: re.Match[str]) -> bool:
    """Whether a power of what something is taken off from is averaged, here or by its name."""
    start = text.rfind("\n", 0, match.start()) + 1
    end = text.find("\n", match.end())
    if text[start : match.start()].strip() in ("", ")"):
        start = max(start - _REACH, 0)  # the expression began on a line before
    line = text[start : end if end >= 0 else len(text)]
    if "keepdim" in line or not _POWER.search(line):
        return False  # a statistic of each sample, which a norm divides by, or no loss
    if _TAKEN_OFF.search(line):
        return True
    names = "|".join(set(_NAME.findall(line)))
    return bool(re.search(rf"\b(?:{names})\s*=[^\n]*-\s*[A-Za-z_(]", text))


def _may_differ(text: str, start: int) -> bool:
    """Whether the two sides of a loss, whose arguments begin at `start`, may have two shapes."""
    sides = [side.strip() for side in _arguments(text, start)][:2]
    if len(sides) < 2:  # noqa: PLR2004 -- a loss compares two: this one is made, or starred
        return False
    if any(_FOREIGN_KEYWORD.match(side) for side in sides):
        return False
    shapes = [_RESHAPED.search(side) for side in sides]
    if any(shape and _WIDE.search(shape[0]) for shape in shapes):
        return False
    if shapes[0] and shapes[1]:
        return shapes[0][0] != shapes[1][0]
    return not any(_is_given(text, start, side) for side in sides)


def _is_of_another_kind(text: str, match: re.Match[str]) -> bool:
    """Whether the loss object was last made, in the same function, of a class that is strict."""
    start = max(text.rfind("def ", 0, match.start()), 0)
    made = [one for one in _ANY_LOSS.finditer(text, start, match.start()) if one[1] in match[0]]
    return bool(made) and _OTHER_LOSS.match(made[-1][0]) is not None


def _arguments(text: str, start: int) -> Iterator[str]:
    """The arguments of a call, as they are written."""
    depth, begin = 0, start
    for match in _COMMA.finditer(text, start):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        if depth < 0 or (match[0] == "," and not depth):
            if text[begin : match.start()].strip():
                yield text[begin : match.start()]
            begin = match.end()
        if depth < 0:
            return


def _is_given(text: str, at: int, name: str) -> bool:
    """Whether a name is a parameter of the `forward` around, and what it was given."""
    definition = text.rfind("def forward(", 0, at)
    if definition < 0 or not name.isidentifier() or text.rfind("def ", 0, at) > definition:
        return False
    header, _, body = text[definition:at].partition("):")
    if not body:
        header, _, body = text[definition:at].partition(":\n")
    is_parameter = re.search(rf"\b{name}\b", header) is not None
    changed = rf"\b{name}\b[^=\n]*=(?!=)(?!\s*{name}\.(?:to|float|long)\()"
    return is_parameter and re.search(changed, body) is None


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
