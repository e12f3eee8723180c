"""What happened in a watched run, as plain data: events in their order, and who took part.

`Run.events` holds what happened, one object an event, oldest first; the position in the list
is the event's time. `Run.optimizers`, `Run.parameters` and `Run.loaders` say who took part.
Nothing here imports torch: numbers are Python's, names are the user's own.

What costs too much to look at in every step (gradient norms, stale gradients, modes) is looked
at *closely* in an optimizer's first 64 steps and in each 128th after that; elsewhere it is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, SupportsFloat, TypeVar

if TYPE_CHECKING:
    from pytest_trainloop.rules._rule import Observation
    from pytest_trainloop.runtime.sightings import (
        ChildProcess,
        Criterion,
        Evaluation,
        KeptGraphs,
        ModeModule,
        ModeSwitch,
        Pull,
    )

#: Steps of an optimizer that are looked at closely: each of the first, then one in so many.
CLOSE_STEPS = 64
CLOSE_EVERY = 128


def next_close(number: int) -> int:
    """The number of the next event, after the one with this number, to look at closely."""
    return number + 1 if number < CLOSE_STEPS else number - number % CLOSE_EVERY + CLOSE_EVERY


@dataclass(slots=True)
class Batch:
    """A `DataLoader` delivered a batch."""

    #: Index into `Run.loaders`.
    loader: int
    #: Which pass over that loader, and which batch of the pass; both count from 0.
    epoch: int
    number: int
    #: Whether gradients were enabled when the batch was asked for: False in most evaluations.
    grad_enabled: bool


@dataclass(slots=True)
class EpochEnd:
    """A `DataLoader` had no more batches."""

    loader: int
    epoch: int
    batches: int


@dataclass(slots=True)
class Backward:
    """A loss was back-propagated by `loss.backward()` or `torch.autograd.backward(...)`."""

    #: The value, divided by the loss scale; None where it cannot be read.
    value: SupportsFloat | None
    #: What the loss had been multiplied with by a `GradScaler`; 1.0 without one.
    scale: float
    #: Where the user's code called it, as `path:line`.
    where: str
    #: The step it was called in (a closure), as an index into `Run.optimizers`; else None.
    inside_step_of: int | None
    #: Which of `Run.mode_modules` were in eval mode, as indices; None when the backward was
    #: not looked at closely.
    in_eval_mode: tuple[int, ...] | None = None

    @property
    def loss(self) -> float | None:
        """The loss as it was before any scaling; None where it could not be read."""
        return None if self.value is None else float(self.value)


@dataclass(slots=True)
class Step:
    """An optimizer updated its parameters."""

    #: Index into `Run.optimizers`.
    optimizer: int
    #: Counts the steps of this optimizer from 1.
    number: int
    #: What was back-propagated for this update, in order. Optimizers that step one after the
    #: other on the same gradients share them.
    backwards: tuple[Backward, ...]
    #: The learning rate of each parameter group, as the update used it.
    learning_rates: tuple[float, ...]
    #: Where the user's code called it, as `path:line`.
    where: str
    #: Whether the update was made by `GradScaler.step`.
    through_scaler: bool
    #: False when a fused optimizer left the weights alone because a gradient was not finite.
    applied: bool = True
    #: Euclidean norm of all gradients, unscaled, just before the update; None when the step
    #: was not looked at closely or no parameter had a gradient.
    gradient_norm: float | None = None
    #: Its parameters, as indices into `Run.parameters`, whose gradient was None just before
    #: the update; None as above.
    without_gradient: tuple[int, ...] | None = None
    #: Those whose gradient was not finite; None when nobody looked, or could.
    nonfinite: tuple[int, ...] | None = None
    #: Those whose gradient still held what the previous step of this optimizer had used when
    #: this step's gradients were added to it; None as above.
    stale: tuple[int, ...] | None = None
    #: Whether it used gradients just as a backward of a scaled loss had left them.
    scaled: bool = False
    #: How many of `backwards` belong to the first evaluation of a closure, or all of them.
    counted: int | None = None

    @property
    def loss(self) -> float | None:
        """The unscaled loss of this update, its micro-batches summed; None if unknown.

        A closure that the optimizer evaluates several times counts with its first value,
        which is what `optimizer.step(closure)` returns.
        """
        losses = [backward.loss for backward in self.backwards[: self.counted]]
        known = [loss for loss in losses if loss is not None]
        return sum(known) if known and len(known) == len(losses) else None


@dataclass(slots=True)
class SkippedStep:
    """`GradScaler.step` left an optimizer's step out because a gradient was not finite."""

    #: Index into `Run.optimizers`.
    optimizer: int


@dataclass(slots=True)
class Clearing:
    """Gradients were cleared by `zero_grad`."""

    #: Index into `Run.optimizers`; None for a model's, and for an optimizer that has not
    #: stepped so far.
    optimizer: int | None
    #: Class of what was cleared: `AdamW`, or that of the model.
    kind: str
    #: Whether it was an optimizer's.
    by_optimizer: bool
    #: Empty where it was not looked at closely; such clearings of an optimizer share one object.
    where: str


@dataclass(slots=True)
class Unscaling:
    """`GradScaler.unscale_` was called (by the loop; `GradScaler.step` does it too)."""


@dataclass(slots=True)
class Clip:
    """Gradients were clipped to a finite norm."""

    max_norm: float
    #: Whose, as indices into `Run.parameters`; None where some were not known so far.
    parameters: tuple[int, ...] | None
    where: str


@dataclass(slots=True)
class SchedulerStep:
    """A learning-rate scheduler moved on."""

    #: Index into `Run.schedulers`.
    scheduler: int
    where: str
    #: Whether it was told the epoch (`scheduler.step(epoch)`).
    told: bool


@dataclass(slots=True)
class Scheduler:
    """A scheduler of `torch.optim.lr_scheduler` that was stepped."""

    kind: str
    #: Index into `Run.optimizers`; None while its optimizer has not stepped.
    optimizer: int | None
    #: Whether it had never been stepped before.
    fresh: bool
    #: How many steps it is made for (`T_max`, `total_steps`), where it is made for a number.
    horizon: int | None


@dataclass(slots=True)
class Optimizer:
    """An optimizer that stepped."""

    #: The variable or attribute that holds it (`optimizer`, `self.opt_d`), else its class.
    name: str
    kind: str
    #: Where the user's code built it, as `path:line`; empty when it was built before the watch.
    built: str
    #: Its parameters, group by group, as indices into `Run.parameters`.
    groups: tuple[tuple[int, ...], ...]
    steps: int = 0
    #: Whether it is to raise what is back-propagated (`maximize=True`).
    maximizes: bool = False
    #: Whether it keeps a state (momentum, moments) that a new optimizer begins without.
    stateful: bool = False
    #: The optimizer whose place it took, as an index: built at the same place by the same
    #: calls, over the same parameters, which nobody wrote to in between.
    replaces: int | None = None


@dataclass(slots=True)
class Parameter:
    """A parameter of a trained model, or of an optimizer."""

    #: Its name in the model (`fc.weight`); where several models are trained, with the model's
    #: before it (`generator.fc.weight`); `AdamW parameter 3` when no module owns it.
    name: str
    #: Name of the model that owns it; None for one that no module owns.
    model: str | None
    #: Class of the module that holds it (`Linear`); None as above.
    module: str | None
    shape: tuple[int, ...]
    #: Its `requires_grad`, when the record was last brought up to date.
    trainable: bool
    #: Indices into `Run.optimizers` of those that update it.
    optimizers: tuple[int, ...]
    #: Whether the graph of some back-propagated loss leads to it. Only a yes is sure: a
    #: recomputed part of a graph (activation checkpointing) cannot be seen.
    reached: bool
    #: Whether an optimizer, when it stepped, or the record, at the end, saw a gradient in it.
    had_gradient: bool
    #: Whether a gradient seen was other than zero.
    had_nonzero_gradient: bool
    #: Whether its values differ from those it had when it was first seen; None if unknown.
    moved: bool | None
    #: Norm of the change over the norm at first sight; None if unknown.
    relative_change: float | None
    #: Where a module of a trained model keeps the module that owns it in a list or dict that
    #: torch does not look into: `Net.blocks`.
    hidden_in: str = ""
    #: Whether it became part of its model after an optimizer of that model had been built.
    late: bool = False
    #: Whether an optimizer that was built in the run, but never stepped, has it.
    claimed: bool = False
    #: The number of its model among those that are trained, as in `ModeModule`; None as above.
    root: int | None = None

    @property
    def size(self) -> int:
        """Number of values."""
        size = 1
        for length in self.shape:
            size *= length
        return size


@dataclass(slots=True)
class Loader:
    """A data loader that was iterated, told apart from others by its dataset."""

    dataset: str
    sampler: str
    batch_size: int | None
    workers: int
    #: Batches in a pass, where that is known.
    batches: int | None
    #: Whether its sampler has `set_epoch`.
    has_set_epoch: bool
    #: Where the user's code iterates it.
    where: str = ""
    #: The seed and the epoch by which a `DistributedSampler` shuffled each pass; None for a pass
    #: in an order that came about in another way.
    orders: list[tuple[int, int] | None] = field(default_factory=list)


_Kind = TypeVar("_Kind")


@dataclass(slots=True)
class Run:
    """The record of a watched run. It is filled while the run goes on."""

    events: list[object] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    schedulers: list[Scheduler] = field(default_factory=list)
    loaders: list[Loader] = field(default_factory=list)
    #: The modules of the trained models that depend on train/eval mode.
    mode_modules: list[ModeModule] = field(default_factory=list)
    #: Each time that somebody called `eval()`, or ended it by `train()`.
    mode_switches: list[ModeSwitch] = field(default_factory=list)
    #: The first evaluations of trained models.
    evaluations: list[Evaluation] = field(default_factory=list)
    #: The criteria that losses were computed by.
    criteria: list[Criterion] = field(default_factory=list)
    #: Which way each loss pulled at its criterion, of the first looks at each place.
    pulls: list[Pull] = field(default_factory=list)
    #: Graphs that somebody kept; None if nobody did.
    kept_graphs: KeptGraphs | None = None
    #: Uses of `torch.autograd.grad` outside of `backward`: a sign of updates by hand.
    gradient_calls: int = 0
    #: Other processes that were started, except the workers of data loaders.
    processes: list[ChildProcess] = field(default_factory=list)
    #: Whether data and chance were frozen, so that every batch is the same.
    frozen: bool = False
    #: Whether the run was stopped from outside, before its own end.
    stopped: bool = False
    #: What the rules say of the record; set when the run is over.
    judge: Callable[[Run], list[Observation]] | None = None
    #: Brings `parameters` up to date; set while the run is watched.
    survey: Callable[[], list[Parameter]] | None = None
    last_survey: list[Parameter] = field(default_factory=list)

    def __repr__(self) -> str:
        """Summarise: a run can hold thousands of events."""
        return f"<Run of {self.training_steps} steps, {len(self.events)} events>"

    def all(self, kind: type[_Kind]) -> list[_Kind]:
        """The events of one kind, oldest first: `run.all(Backward)`."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def steps(self) -> list[Step]:
        """Every optimizer step."""
        return self.all(Step)

    @property
    def backwards(self) -> list[Backward]:
        """Every backward call."""
        return self.all(Backward)

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters of the trained models and of the optimizers."""
        if self.survey is not None:
            self.last_survey = self.survey()
        return self.last_survey

    @property
    def observations(self) -> list[Observation]:
        """What rules found wrong in the run; empty while it goes on."""
        return [] if self.judge is None else self.judge(self)

    def names(self, parameters: tuple[int, ...]) -> list[str]:
        """The names of parameters that an event gives as indices."""
        known = self.parameters
        return [known[index].name for index in parameters]

    @property
    def training_steps(self) -> int:
        """Steps of the optimizer that stepped most often."""
        return max((optimizer.steps for optimizer in self.optimizers), default=0)

    @property
    def losses(self) -> list[float]:
        """The loss of each update, unscaled, its micro-batches summed.

        Optimizers that step on the same gradients count once.
        """
        return [loss for step in self.updates() if (loss := step.loss) is not None]

    @property
    def gradient_norms(self) -> list[float]:
        """The gradient norm of each closely watched step that had a gradient."""
        return [step.gradient_norm for step in self.steps if step.gradient_norm is not None]

    @property
    def learning_rates(self) -> list[float]:
        """The learning rate of the first parameter group at each step."""
        return [step.learning_rates[0] for step in self.steps if step.learning_rates]

    def before(self, event: object) -> list[object]:
        """The events before one of them, oldest first."""
        position = next((i for i, one in enumerate(self.events) if one is event), 0)
        return self.events[:position]

    def updates(self) -> Iterator[Step]:
        """Steps that used gradients of their own: the first of those that share them."""
        last: tuple[Backward, ...] = ()
        for step in self.steps:
            if step.backwards and (not last or step.backwards[-1] is not last[-1]):
                yield step
            last = step.backwards or last

    def steps_of(self, optimizer: int) -> list[Step]:
        """The steps of one optimizer, by its index in `optimizers`."""
        return [step for step in self.steps if step.optimizer == optimizer]
