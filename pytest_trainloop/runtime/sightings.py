"""What a look inside of a run showed beyond its events: plain data, part of the record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Values:
    """Some values that a criterion was given."""

    number: int
    lowest: float
    highest: float
    #: Whether each row of them, one a class, sums to 1.
    rows_sum_to_one: bool


@dataclass(frozen=True, slots=True)
class Pull:
    """At which criterion a back-propagated loss pulled, and which way, when it was looked at."""

    #: Where the user's code called backward, as `path:line`.
    where: str
    #: What the criterion is called in `torch.nn.functional`; empty where that is not plain.
    kind: str
    #: Whether the loss is minus the criterion.
    negated: bool


@dataclass(slots=True)
class Criterion:
    """A criterion of torch that stood in the graph of a back-propagated loss.

    Looked at in the first backward calls of each place; `looks` counts those that had it.
    """

    #: What it is called in `torch.nn.functional`; `difference` for a mean of squared or absolute
    #: differences that is written by hand.
    kind: str
    #: What computed its input: `softmax`, `sigmoid`, `relu`, `linear` or `compiled` (by
    #: torch.compile); empty for anything else.
    fed_by: str
    #: Where the user's code called backward, as `path:line`.
    where: str = ""
    looks: int = 1
    #: The values of its input, where they can be read and tell something.
    values: Values | None = None
    #: The shapes of a prediction and a target that were compared all with all.
    broadcast: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    #: The module of a trained model that is the only one to compute what `fed_by` says: its name,
    #: model and class, `2 (Softmax) of model`.
    made_by: str = ""

    def is_same(self, other: Criterion) -> bool:
        """Whether two looks saw the same criterion of the same loop."""
        mine = (self.kind, self.fed_by, self.where, self.broadcast is None)
        return mine == (other.kind, other.fed_by, other.where, other.broadcast is None)


@dataclass(slots=True)
class Seeding:
    """The global generator was seeded, and what was trained next drew from that seed."""

    seed: int
    #: The calls of the user's code that led to it, innermost first, as files and lines.
    calls: tuple[tuple[str, int], ...]
    where: str


@dataclass(slots=True)
class StateLoad:
    """A model was given a state dict."""

    where: str
    #: Where that state dict was taken from the same model, if it holds the model's own weights by
    #: reference; else empty.
    taken: str = ""
    #: Training steps made since then.
    steps: int = 0
    #: What the user's code calls the model and the state dict; only if it was so taken.
    model: str = ""
    kept_in: str = ""
