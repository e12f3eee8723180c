"""Watch a run: install the probes, and let others take part in what they see.

A probe is a file of `runtime/probes/`: one way of seeing. It defines `install(observer)`,
which replaces functions through `observer.patches` and writes events to `observer.run`. It is
found by walking the folder; nothing is registered. Whoever wants to act on a run (stop it,
freeze its data, take fingerprints) is a `Listener`.

Watching never draws a random number, never keeps a graph alive and never hooks the forward of a
step in train mode.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from pytest_trainloop.runtime.kept_graphs import GraphWatch
from pytest_trainloop.runtime.participants import Participants
from pytest_trainloop.runtime.patch import Patches, hide_from_compiler
from pytest_trainloop.runtime.place import place_of, readable
from pytest_trainloop.runtime.stale import StaleGradients

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from typing_extensions import Self

    from pytest_trainloop.runtime.probes.seeds import Seeded
    from pytest_trainloop.runtime.probes.steps import OpenStep
    from pytest_trainloop.runtime.record import Backward, Run, Step


class Listener:
    """Takes part in a watched run. Each method is called at its moment; all may raise."""

    def begin(self, observer: Observer) -> None:
        """Act before the run begins."""

    def end(self) -> None:
        """Act when the run has ended, while its models may still live."""

    def deliver(self, loader: int, batch: Any) -> Any:
        """Return what a data loader (an index into `Run.loaders`) shall deliver for `batch`."""
        return batch

    def epoch_ended(self, loader: int) -> None:
        """Act when a data loader has no more batches."""

    def before_backward(self, backward: Backward) -> None:
        """Act before a loss is back-propagated."""

    def before_step(self, optimizer: Optimizer, step: Step) -> None:
        """Act before the weights change."""

    def after_step(self, optimizer: Optimizer, step: Step) -> None:
        """Act after the weights have changed."""


class Observer:
    """Everything that the probes of one watched run share."""

    def __init__(self, run: Run, listeners: tuple[Listener, ...] = ()) -> None:
        self.run = run
        self.listeners = listeners
        self.patches = Patches()
        self.people = Participants(run)
        self.stale = StaleGradients()
        self.graphs = GraphWatch(run)
        #: Backward calls that no optimizer has used yet, and those that the last one used.
        self.pending: list[Backward] = []
        self.used: tuple[Backward, ...] = ()
        #: Whether one of the pending may have a value that is not finite.
        self.has_lost = False
        #: How many there were so far.
        self.backwards = 0
        #: What waits for the next one to begin: called once, then forgotten.
        self.at_next_backward: list[Callable[[], None]] = []
        #: How many of the pending ones an optimizer has cleared, by the optimizer's identity.
        self.left_out: dict[int, int] = {}
        #: Steps that go on now, outermost first.
        self.stepping: list[OpenStep] = []
        #: Optimizers that a `GradScaler` is stepping now, by identity.
        self.scaler_stepping: set[int] = set()
        #: Scalers that were used, by identity.
        self.scalers: dict[int, Any] = {}
        #: Some gradients as the last backward of a scaled loss left them: whose, and their version.
        self.scaled: list[tuple[Any, int]] = []
        #: A seed that was set since the last backward.
        self.seeded: Seeded | None = None
        #: What listeners do in each step.
        self.deliver = _acting(listeners, "deliver")
        self.before_backward = _acting(listeners, "before_backward")
        self.before_step = _acting(listeners, "before_step")
        self.after_step = _acting(listeners, "after_step")
        self._places: dict[tuple[str, int], str] = {}

    def __enter__(self) -> Self:
        """Start watching."""
        probes = all_probes()
        _hide_ourselves()
        for probe in probes:
            probe.install(self)
        self.patches.active = True
        self.run.survey = self.people.survey
        for listener in self.listeners:
            listener.begin(self)
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop watching: put everything back and bring the record up to date."""
        self.patches.restore()
        for listener in self.listeners:
            listener.end()
        self.run.last_survey = self.people.survey()
        self.run.survey = None

    def place(self, skipped: int = 0) -> str:
        """`path:line` of the user's code that is running now.

        Args:
            skipped: frames above this call that are our own; told where it is asked in each step.
        """
        place = place_of(sys._getframe(1 + skipped))
        text = self._places.get(place)
        if text is None:
            text = self._places[place] = readable(place)
        return text


def _acting(listeners: tuple[Listener, ...], moment: str) -> tuple[Callable[..., Any], ...]:
    """What listeners do at a moment of each step; most of them do nothing at most moments."""
    nothing = getattr(Listener, moment)
    return tuple(
        getattr(one, moment) for one in listeners if getattr(type(one), moment) is not nothing
    )


@cache
def all_probes() -> tuple[ModuleType, ...]:
    """The probes, in alphabetical order."""
    from pytest_trainloop.runtime import probes

    names = sorted(module.name for module in pkgutil.iter_modules(probes.__path__))
    return tuple(import_module(f"{probes.__name__}.{name}") for name in names)


@cache
def _hide_ourselves() -> None:
    """Keep torch.compile from tracing into the code of this package."""
    package = __name__.rpartition(".")[0] + "."
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(package)]
    hide_from_compiler([code for module in modules for code in _codes(module)])


def _codes(owner: object) -> list[CodeType]:
    found: list[CodeType] = []
    for thing in list(vars(owner).values()):
        if isinstance(thing, FunctionType) and thing.__module__.startswith("pytest_trainloop"):
            found.append(thing.__code__)
        elif isinstance(thing, type) and thing.__module__.startswith("pytest_trainloop"):
            found.extend(_codes(thing))
    return found
