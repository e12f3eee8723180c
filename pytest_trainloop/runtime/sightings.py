"""What a look inside of a run showed beyond its events: plain data, part of the record."""

from __future__ import annotations

from dataclasses import dataclass, field


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


@dataclass(frozen=True, slots=True)
class ChildProcess:
    """Another process was started, which may train unseen."""

    #: What messages call it.
    title: str
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


@dataclass(slots=True)
class ModeModule:
    """A module of a trained model that computes something else in eval mode."""

    #: Its name in the model, as in `Parameter.name`.
    name: str
    #: Its class (`Dropout`, `BatchNorm1d`).
    kind: str
    #: Its model's name, and the number of that among the trained ones.
    model: str
    root: int
    #: Whether it is part of what `from_pretrained` of transformers or diffusers gave, most of
    #: which is trained.
    pretrained: bool = False


@dataclass(slots=True)
class ModeSwitch:
    """`eval()` of a module, or `train()` of one that was in eval mode."""

    train: bool
    #: Where in the user's code, as `path:line`, and whether they called it themselves.
    where: str
    by_user: bool
    #: Backward calls before it, and its place among all switches and evaluations.
    backwards: int
    moment: int
    #: The modules that it reached, as indices into `Run.mode_modules`, and whether these are
    #: all of a trained model.
    reached: tuple[int, ...] = ()
    whole: bool = False


@dataclass(slots=True)
class Evaluation:
    """A trained model was called without being trained.

    After `eval()`, or on a batch that was asked for without gradients; the first of each.
    """

    #: Whose batch it was, as an index into `Run.loaders`; None for what followed `eval()`.
    loader: int | None
    #: Where the user's code asked for the batch or called `eval()`, as `path:line`.
    where: str
    #: The functions that were running then, innermost first.
    within: tuple[str, ...]
    #: Backward calls before it, and its place among all switches and evaluations.
    backwards: int
    moment: int
    #: Whether `train()` was called on a module since the latest backward call.
    asked_for_train: bool
    #: Modules that were called without gradients, as indices into `Run.mode_modules`.
    in_train_mode: tuple[int, ...] = ()
    in_eval_mode: tuple[int, ...] = ()
    #: Running statistics that were written to, by a model in eval mode and without gradients.
    updated: tuple[str, ...] = ()
    #: For each model that was called in eval mode with gradients, by its number and name: how many
    #: of its outputs were gone, graph and all, before anything was back-propagated.
    unused_graphs: dict[tuple[int, str], int] = field(default_factory=dict)


@dataclass(slots=True)
class KeptGraphs:
    """Graphs of many steps that lived at once, long after they were back-propagated."""

    #: What the user's code calls the collection that held them, or the tensors whose one graph
    #: went back through them.
    names: tuple[str, ...]
    #: What the collection was (`list`, `dict`); empty for the tensors.
    kind: str
    #: How many tensors the collection held, or through how many steps the graph went.
    number: int
    where: str
