"""Steer a run from outside: stop it, freeze its data, tell its body which run it is."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_trainloop.runtime.observe import Listener

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from pytest_trainloop.runtime.record import Step


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

    def after_step(self, optimizer: Optimizer, step: Step) -> None:
        """Raise `Stopped` once there were enough."""
        __tracebackhide__ = True
        if step.number >= self.steps:
            self.stopped = True
            raise Stopped


class FreezeBatch(Listener):
    """Let each data loader deliver its first batch over and over.

    Loaders are told apart by their dataset, so that one that is built anew for every epoch
    keeps its batch. The loader goes on underneath: epochs keep their length, and workers,
    samplers and random numbers do what they would have done.
    """

    def __init__(self) -> None:
        self._frozen: dict[int, tuple[Any, Any]] = {}

    def deliver(self, iterator: Any, batch: Any) -> Any:
        """Return a copy of the first batch: the loop may change what it is given."""
        dataset = iterator._dataset
        if id(dataset) not in self._frozen:
            self._frozen[id(dataset)] = (dataset, copy.deepcopy(batch))
            return batch
        return copy.deepcopy(self._frozen[id(dataset)][1])

    @property
    def used(self) -> bool:
        """Whether the run took its data from a data loader."""
        return bool(self._frozen)


@dataclass
class Interruption:
    """Tells the body of a test which run of the `resumes` check it is in.

    For loops that save only at a planned stop. Both are False in the uninterrupted run.
    """

    #: True in the run that is to stop early and save.
    stopping: bool = False
    #: True in the run that goes on from what was saved.
    resuming: bool = False
