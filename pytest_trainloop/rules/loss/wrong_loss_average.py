"""The rule `wrong-loss-average`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Event,
    FileFacts,
    Loop,
    Operation,
    Result,
    Return,
    Store,
    Value,
    constant,
    criterion_maker,
    criterion_of,
    loops_of,
    options,
    origins,
    spelling,
)

_SAMPLES = re.compile(r"(?:^|[._])(?:data_?set|\w*_(?:data|dataset|set))$", re.IGNORECASE)


_ADDED = re.compile(r"\+=\s*\(?[^\n]*\.item\(\)")


class WrongLossAverage(Rule):
    """Batch means are added up and divided by the number of samples.

    Symptom: the reported loss is too small by the batch size, and changes with it.

    Why: a loss is the mean over its batch already. The sum of the means of all batches is to be
    divided by the number of batches; to divide by the number of samples, each mean has to be
    weighted with the size of its batch first.

    What torch does: nothing. These are plain numbers.

    Limits: reported where the loss function, the sum and the division are in sight of each other,
    and where the loader does not yield single samples. The training itself is not affected.
    """

    since = "0.1"
    triggers = ("item()", "len(", "oss")
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html",
        "https://pytorch.org/tutorials/beginner/basics/optimization_tutorial.html",
    )
    examples = (
        Bad(
            "a sum of batch means over the number of samples",
            """
            def validate(model, loader):
                total = 0.0
                with torch.no_grad():
                    for x, y in loader:
                        total += F.cross_entropy(model(x), y).item()
                return total / len(loader.dataset)  # error
            """,
        ),
        Good(
            "a sum of batch means over the number of batches",
            """
            def validate(model, loader):
                total = 0.0
                with torch.no_grad():
                    for x, y in loader:
                        total += F.cross_entropy(model(x), y).item()
                return total / len(loader)
            """,
        ),
        Bad(
            "divided in place, and with a loss object",
            """
            def validate(model, loader):
                criterion = nn.MSELoss()
                total = 0.0
                with torch.no_grad():
                    for x, y in loader:
                        loss = criterion(model(x), y)
                        total += loss.item()
                total /= len(loader.dataset)  # error
                print(f"validation loss {total:.4f}")
            """,
        ),
        Good(
            "each mean is weighted with the size of its batch",
            """
            def validate(model, loader):
                total = 0.0
                with torch.no_grad():
                    for x, y in loader:
                        total += F.cross_entropy(model(x), y).item() * x.size(0)
                return total / len(loader.dataset)
            """,
        ),
        Good(
            "the loss adds up over its batch",
            """
            def validate(model, loader):
                total = 0.0
                with torch.no_grad():
                    for x, y in loader:
                        total += F.nll_loss(model(x), y, reduction="sum").item()
                total /= len(loader.dataset)
                return total
            """,
        ),
        Good(
            "batches of one sample",
            """
            import torch
            from torch.nn import functional as F
            from torch.utils.data import DataLoader

            def validate(model, dataset):
                total = 0.0
                loader = DataLoader(dataset)
                with torch.no_grad():
                    for x, y in loader:
                        total += F.cross_entropy(model(x), y).item()
                return total / len(dataset)
            """,
        ),
        Good(
            "correct predictions are counted by the sample",
            """
            def accuracy(model, loader):
                correct = 0
                with torch.no_grad():
                    for x, y in loader:
                        correct += (model(x).argmax(1) == y).sum().item()
                return correct / len(loader.dataset)
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where the number of a loss is added to a total."""
        return (match.start() for match in _ADDED.finditer(text))

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Follow each sum of batch means to what it is divided by."""
        told: set[int] = set()
        for trace in file.traces:
            for store in trace.stores:
                if store.file is not file.source or not _adds_batch_mean(store):
                    continue
                for event in trace.events[store.index + 1 :]:
                    if id(event.node) not in told and _is_divided(event, store):
                        told.add(id(event.node))
                        yield self._report(event, store)

    def _report(self, event: Event, store: Store) -> Finding:
        return self.finding(
            event.place,
            f"`{store.target}` adds up batch means (line {store.line}), and `{event.text}` divides "
            f"it by the number of samples, so the average is too small by the batch size",
            f"divide by the number of batches, or add "
            f"`{store.value_text} * x.size(0)` for each batch `x`",
        )


def _adds_batch_mean(store: Store) -> bool:
    """Whether a mean over a batch is added in a loop over batches."""
    if store.augmented != "+" or store.total is None:
        return False
    loops = [loop for loop in loops_of(store.context) if loop.kind == "for"]
    return bool(loops) and _is_batch_mean(store.value) and not _yields_samples(loops[-1])


def _is_batch_mean(value: Value) -> bool:
    """Whether a value is `loss.item()` of a loss that is a mean."""
    for option in options(value):
        if not isinstance(option, Result) or option.call.method != "item":
            return False
        loss = option.call.receiver
        if loss is None or not all(_is_mean(inner) for inner in options(loss)):
            return False
    return True


def _is_mean(loss: Value) -> bool:
    if not isinstance(loss, Result) or not criterion_of(loss.call):
        return False
    for call in (loss.call, criterion_maker(loss.call)):
        if call.starred or not {"reduction", "size_average", "reduce"}.isdisjoint(call.keywords):
            return bool(constant(call.keywords.get("reduction")) == "mean")
    return True


def _yields_samples(loop: Loop) -> bool:
    """Whether a loader yields one sample at a time, as it does unless it is told otherwise."""
    for value in origins(loop.source, limit=40):
        if isinstance(value, Result) and value.call.method.endswith("DataLoader"):
            size = value.call.argument(1, "batch_size")
            return not value.call.starred and (size is None or constant(size) == 1)
    return False


def _is_divided(event: Event, store: Store) -> bool:
    """Whether the event divides the sum by a number of samples."""
    if isinstance(event, Store):
        if event.augmented:
            return (
                event.augmented == "/"
                and event.target == store.target
                and event.total is not None
                and _holds(event.total, store)
            )
        return _holds(event.value, store)
    return isinstance(event, Return) and _holds(event.value, store)


def _holds(value: Value, store: Store) -> bool:
    return any(
        isinstance(part, Operation)
        and part.operator == "/"
        and any(option is store.total for option in options(part.operands[0]))
        and any(_counts_samples(option) for option in options(part.operands[1]))
        for option in options(value)
        for part in (option, *option.parts())
    )


def _counts_samples(value: Value) -> bool:
    """Whether a value is `len(loader.dataset)`, or the length of a data set by its name."""
    if not isinstance(value, Result) or value.call.qualified != "builtins.len":
        return False
    counted = value.call.args[0] if value.call.args else None
    return counted is not None and bool(_SAMPLES.search(spelling(counted)))
