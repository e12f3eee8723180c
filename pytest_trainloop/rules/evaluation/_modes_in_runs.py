"""The mode of trained models in a run, step by step, and which data they are trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import joined

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run, Step
    from pytest_trainloop.runtime.sightings import ModeModule, ModeSwitch


@dataclass(frozen=True, slots=True)
class TrainedStep:
    """A closely watched step, and how one of the models that it trained stood in its backward."""

    step: Step
    #: The number of the model, as in `ModeModule.root`.
    root: int
    #: The number of its last backward among those of the run, counted from 1.
    backward: int
    #: Modules of the model in eval mode, as indices into `Run.mode_modules`.
    in_eval_mode: frozenset[int]


def trained_steps(run: Run) -> Iterator[TrainedStep]:
    """Each closely watched step once for each model that its optimizer holds parameters of."""
    numbers = {id(one): number for number, one in enumerate(run.backwards, 1)}
    parameters = run.parameters
    roots = [
        {parameters[index].root for group in optimizer.groups for index in group}
        for optimizer in run.optimizers
    ]
    modes = run.mode_modules
    for step in run.steps:
        # The last backward is that of the loss; an attack comes before it.
        last = step.backwards[-1] if step.backwards else None
        if last is None or last.in_eval_mode is None:
            continue
        for root in roots[step.optimizer]:
            own = frozenset(index for index in last.in_eval_mode if modes[index].root == root)
            if root is not None:
                yield TrainedStep(step, root, numbers[id(last)], own)


def left_by(run: Run, fell: frozenset[int], after: int, before: int) -> ModeSwitch | None:
    """The switch to eval mode for an evaluation that nobody took back; None if there is none.

    Args:
        run: the record.
        fell: the modules in question, as indices into `Run.mode_modules`.
        after: number of the last backward that found them in train mode.
        before: number of the first that found them in eval mode.
    """
    switches = [
        one
        for one in run.mode_switches
        if after <= one.backwards < before and not fell.isdisjoint(one.reached)
    ]
    last = switches[-1] if switches else None
    if last is None or last.train or not last.whole or not fell <= set(last.reached):
        return None
    evaluated = any(
        last.moment < one.moment
        and one.backwards < before
        and (one.unused_graphs or not fell.isdisjoint(one.in_eval_mode))
        for one in run.evaluations
    )
    return last if evaluated else None


def trained_loaders(run: Run) -> set[int]:
    """The data loaders, as indices into `Run.loaders`, whose batches were back-propagated."""
    from pytest_trainloop.runtime.record import Backward, Batch, EpochEnd

    found: set[int] = set()
    open_: set[int] = set()
    for event in run.events:
        if isinstance(event, Batch):
            (open_.add if event.grad_enabled else open_.discard)(event.loader)
        elif isinstance(event, EpochEnd):
            open_.discard(event.loader)
        elif isinstance(event, Backward):
            found |= open_
    return found


def modules(run: Run, indices: tuple[int, ...]) -> str:
    """A few mode-dependent modules: `1` (BatchNorm1d) and `2` (Dropout).

    Without those that have others of them below.
    """
    known: list[ModeModule] = [run.mode_modules[index] for index in indices]
    names = [one.name for one in known]
    lowest = [one for one in known if not any(n.startswith(f"{one.name}.") for n in names)]
    return joined([f"`{one.name}` ({one.kind})" for one in lowest])


def model(run: Run, indices: tuple[int, ...]) -> str:
    """The name of the model that they are part of."""
    return run.mode_modules[indices[0]].model
