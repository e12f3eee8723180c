"""Steer a run from outside: stop it, freeze its data, tell its body which run it is."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NoReturn

from pytest_trainloop.runtime.observe import Listener
from pytest_trainloop.runtime.seed import put_states, take_states

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from pytest_trainloop.runtime.observe import Observer
    from pytest_trainloop.runtime.record import Run, Step


class Stopped(BaseException):
    """Ends a run from within an optimizer's step.

    Not an `Exception`, which loops catch to carry on, and not `KeyboardInterrupt`, which
    frameworks catch to shut down in an orderly way: a preempted process does neither.
    """


class StopAfter(Listener):
    """Stop the run after so many training steps, and at each one it makes nevertheless.

    Training steps are those of the optimizer that has made the most.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.stopped = False
        self._observer: Observer | None = None

    def begin(self, observer: Observer) -> None:
        """Remember whose run it is."""
        self._observer = observer

    @property
    def run(self) -> Run | None:
        """The record of the run; None before it begins."""
        return None if self._observer is None else self._observer.run

    def after_step(self, optimizer: Optimizer, step: Step) -> None:
        """Raise `Stopped` once there were enough."""
        __tracebackhide__ = True
        if step.number >= self.steps:
            self.stop()

    def stop(self) -> NoReturn:
        """Stop the run now."""
        __tracebackhide__ = True
        self.stopped = True
        if self._observer is not None:
            self._observer.run.stopped = True
        raise Stopped


class FreezeBatch(Listener):
    """Let each data loader deliver its first batch over and over.

    A loader that is built anew for every epoch keeps its batch. The loader goes on underneath:
    epochs keep their length, and workers and samplers do what they would have done.
    """

    def __init__(self) -> None:
        #: The first batch of each loader, by its index in `Run.loaders`.
        self.first: dict[int, Any] = {}

    def begin(self, observer: Observer) -> None:
        """Leave word that every batch will be the same."""
        observer.run.frozen = True

    def deliver(self, loader: int, batch: Any) -> Any:
        """Return a copy of the first batch: the loop may change what it is given."""
        if loader not in self.first:
            self.first[loader] = copy.deepcopy(batch)
            return batch
        return copy.deepcopy(self.first[loader])

    @property
    def used(self) -> bool:
        """Whether the run took its data from a data loader."""
        return bool(self.first)


class FreezeChance(Listener):
    """Let every step draw the same random numbers: dropout masks, noise, sampled batches.

    The global generators go back to where they were at the first batch, or after the first
    step of a loop without a data loader, whenever a batch is delivered or a step is made. What
    is left of the losses' ups and downs is the loop's own doing.
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] | None = None

    def deliver(self, loader: int, batch: Any) -> Any:
        """Go back before the batch is used: an epoch's beginning draws too."""
        self._go_back()
        return batch

    def after_step(self, optimizer: Optimizer, step: Step) -> None:
        """Go back before the next step."""
        self._go_back()

    def _go_back(self) -> None:
        if self._states is None:
            self._states = take_states()
        else:
            put_states(self._states)


class ScaleRate(Listener):
    """Multiply the learning rates with a factor, for the update alone: schedulers see no change."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self._rates: list[Any] = []

    def before_step(self, optimizer: Optimizer, step: Step) -> None:
        """Change the rates."""
        self._rates = [group.get("lr") for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            if rate is not None:
                group["lr"] = rate * self.factor

    def after_step(self, optimizer: Optimizer, step: Step) -> None:
        """Put them back."""
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            if rate is not None:
                group["lr"] = rate


class Interruption:
    """Tells the body of a test which run of the `resumes` check it is in.

    For loops that save only at a planned stop. Both are False in the uninterrupted run.
    """

    def __init__(self, *, stopping: bool = False, resuming: bool = False) -> None:
        self._stopping = stopping
        self._resuming = resuming
        #: Whether the body wants to know if it shall stop.
        self.asked_to_stop = False

    @property
    def stopping(self) -> bool:
        """True in the run that is to stop early and save."""
        self.asked_to_stop = True
        return self._stopping

    @property
    def resuming(self) -> bool:
        """True in the run that goes on from what was saved."""
        return self._resuming
