"""The rule `misaligned-labels`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Call,
    Element,
    FileFacts,
    Result,
    Trace,
    Value,
    criterion_of,
    exclusive,
    expected,
    global_seed,
    options,
    origins,
    predicted,
    same,
)

_PERMUTATIONS = frozenset(
    {"torch.randperm", "numpy.random.permutation", "random.sample", "torch.multinomial"}
)
_SHUFFLED = re.compile(r"\b(?<!def )(?:randperm|permutation|shuffle|sample|multinomial)\(")
#: How far back a prediction is traced: through the model to its input.
_FAR = 80


class MisalignedLabels(Rule):
    """Inputs and labels are shuffled each by a permutation of its own.

    Symptom: the loss stays at chance (the logarithm of the number of classes), and not even a
    handful of samples can be learned by heart.

    Why: each call draws another permutation. After two of them, an input stands beside the
    label of some other sample.

    What torch does: nothing; the shapes are right.

    Limits: reported only where the two are then put into one `TensorDataset`, or one is
    predicted and compared with the other. A permutation on one side alone (label noise,
    permutation tests, mixup) is not reported, nor are two shuffles from the same seed.
    """

    since = "0.1"
    triggers = ("randperm|permutation(|shuffle(", "TensorDataset|loss|Loss|cross_entropy|criterion")
    sources = (
        "https://karpathy.github.io/2019/04/25/recipe/",
        "https://pytorch.org/docs/stable/generated/torch.randperm.html",
    )
    examples = (
        Bad(
            "two permutations",
            """
            import torch
            from torch.utils.data import TensorDataset

            def make_dataset(x, y):
                x = x[torch.randperm(len(x))]
                y = y[torch.randperm(len(y))]
                return TensorDataset(x, y)  # error
            """,
        ),
        Good(
            "one permutation for both",
            """
            import torch
            from torch.utils.data import TensorDataset

            def make_dataset(x, y):
                order = torch.randperm(len(x))
                return TensorDataset(x[order], y[order])
            """,
        ),
        Bad(
            "two permutations of a batch",
            """
            def train(model, x, y, optimizer, steps):
                for _ in range(steps):
                    batch = x[torch.randperm(len(x))[:32]]
                    labels = y[torch.randperm(len(y))[:32]]
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(batch), labels)  # error
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "shuffled in place, one after the other",
            """
            import random
            import torch
            from torch.utils.data import TensorDataset

            def make_dataset(rows, labels):
                random.shuffle(rows)
                random.shuffle(labels)
                return TensorDataset(torch.tensor(rows), torch.tensor(labels))  # error
            """,
        ),
        Good(
            "shuffled in place from the same seed",
            """
            import random
            import torch
            from torch.utils.data import TensorDataset

            def make_dataset(rows, labels):
                random.seed(0)
                random.shuffle(rows)
                random.seed(0)
                random.shuffle(labels)
                return TensorDataset(torch.tensor(rows), torch.tensor(labels))
            """,
        ),
        Good(
            "mixup: one permutation, on both sides",
            """
            def train(model, loader, optimizer, mix):
                for x, y in loader:
                    order = torch.randperm(len(x))
                    pred = model(mix * x + (1 - mix) * x[order])
                    loss = mix * F.cross_entropy(pred, y)
                    loss = loss + (1 - mix) * F.cross_entropy(pred, y[order])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a permutation test: the labels alone are permuted",
            """
            import torch
            from torch.utils.data import TensorDataset

            def make_null_dataset(x, y):
                return TensorDataset(x, y[torch.randperm(len(y))])
            """,
        ),
        Good(
            "two datasets that are shuffled apart",
            """
            import torch
            from torch.utils.data import TensorDataset

            def make_datasets(a, b, labels_a, labels_b):
                first = torch.randperm(len(a))
                second = torch.randperm(len(b))
                one = TensorDataset(a[first], labels_a[first])
                return one, TensorDataset(b[second], labels_b[second])
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where an order is drawn, or something is shuffled."""
        return (match.start() for match in _SHUFFLED.finditer(text))

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look where two things are put side by side: how did each get its order?"""
        for trace in file.traces:
            shuffles = list(_shuffles_in_place(trace))
            for call in trace.calls:
                for first, second in _side_by_side(call):
                    orders = _two_orders(first, second) or _two_shuffles(
                        call, shuffles, first, second
                    )
                    if orders and not _is_reseeded(trace, *orders):
                        yield self._report(call, *orders)
                        break

    def _report(self, call: Call, first: Call, second: Call) -> Finding:
        return self.finding(
            call.place,
            f"`{call.text}` puts side by side what `{first.text}` (line {first.line}) and "
            f"`{second.text}` (line {second.line}) have shuffled apart: inputs have the labels "
            "of other samples",
            "draw one order and use it for both: `order = torch.randperm(len(x))`, then "
            "`x[order]` and `y[order]`",
        )


def _side_by_side(call: Call) -> Iterator[tuple[Value, Value]]:
    """The inputs and the labels that a call matches, one for one."""
    if call.qualified == "torch.utils.data.TensorDataset" and not call.starred:
        first, *others = call.args or (None,)
        for other in others:
            if first is not None and other is not None:
                yield first, other
    elif criterion_of(call):
        says, should = predicted(call), expected(call)
        if says is not None and should is not None:
            yield says, should


def _two_orders(first: Value, second: Value) -> tuple[Call, Call] | None:
    """Two different permutations, if each side was put in order by exactly one."""
    left, right = list(_orders(first)), list(_orders(second))
    if len(left) != 1 or len(right) != 1 or left[0] is right[0]:
        return None
    return left[0], right[0]


def _orders(value: Value) -> Iterator[Call]:
    """The permutations by which rows were chosen on the way to a value."""
    seen: set[int] = set()
    for origin in origins(value, _FAR):
        if not isinstance(origin, Element) or origin.key is None:
            continue
        for inner in _keys(origin.key):
            if isinstance(inner, Result) and inner.call.qualified in _PERMUTATIONS:
                if id(inner.call) not in seen:
                    seen.add(id(inner.call))
                    yield inner.call


def _keys(key: Value) -> Iterator[Value]:
    """What an index was made from: slices of an order, and moves to a device, looked through."""
    for origin in options(key):
        yield origin
        if isinstance(origin, Element):
            yield from _keys(origin.base)


def _shuffles_in_place(trace: Trace) -> Iterator[Call]:
    """The calls that shuffle a list or an array where it stands."""
    for call in trace.calls:
        is_global = call.qualified in ("random.shuffle", "numpy.random.shuffle")
        if is_global and len(call.args) == 1 and not call.starred and call.discarded:
            yield call


def _two_shuffles(
    call: Call, shuffles: list[Call], first: Value, second: Value
) -> tuple[Call, Call] | None:
    """The shuffles of both sides before a call, if each was shuffled once."""
    left = [one for one in shuffles if one.index < call.index and _is_from(first, one.args[0])]
    right = [one for one in shuffles if one.index < call.index and _is_from(second, one.args[0])]
    if len(left) != 1 or len(right) != 1 or left[0] is right[0]:
        return None
    if exclusive(left[0].context, right[0].context):
        return None
    return left[0], right[0]


def _is_from(value: Value, source: Value) -> bool:
    return any(same(origin, source) for origin in origins(value, _FAR))


def _is_reseeded(trace: Trace, first: Call, second: Call) -> bool:
    """Whether a stream is set anew between two draws, or each has a generator given."""
    if "generator" in first.keywords or "generator" in second.keywords:
        return True
    low, high = sorted((first.index, second.index))
    return any(
        global_seed(call) is not None or "state" in call.method
        for call in trace.calls
        if low < call.index < high
    )
