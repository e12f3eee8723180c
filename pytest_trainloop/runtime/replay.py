"""Runs of an evaluation that differ from the first in one thing: chance, or the companions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_trainloop.runtime.calls import KEPT_CALLS, Invocation, ModelCall, ModelCalls
from pytest_trainloop.runtime.companions import Mixing, Unclear, mixing
from pytest_trainloop.runtime.drive import Stopped
from pytest_trainloop.runtime.seed import seed_all

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Backward

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True


class _UpToTraining(ModelCalls):
    """Ends the run where training goes on after the first call that is judged."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def before_backward(self, backward: Backward) -> None:
        __tracebackhide__ = True
        if len(self.calls) > self.first:
            raise Stopped


class OtherChance(_UpToTraining):
    """Seeds all generators anew at the first call that is judged."""

    def __init__(self, first: int, seed: int) -> None:
        super().__init__(first)
        self._seed = seed

    def make(self, number: int, facts: ModelCall, invocation: Invocation) -> Any:
        """Seed, then make the call."""
        __tracebackhide__ = True
        if number == self.first:
            seed_all(self._seed)
        return super().make(number, facts, invocation)


class ProbeCompanions(_UpToTraining):
    """Makes the first calls again, with other samples beside each other, then ends the run."""

    def __init__(self, first: int, body_trains: bool, tolerance: float) -> None:
        super().__init__(first)
        self.mixing: tuple[ModelCall, Mixing] | None = None
        #: Why some calls could not be probed, and how many could be.
        self.unclear: list[str] = []
        self.probed = 0
        self._body_trains = body_trains
        self._tolerance = tolerance

    def make(self, number: int, facts: ModelCall, invocation: Invocation) -> Any:
        """Probe the call, then make it."""
        __tracebackhide__ = True
        if number >= self.first + KEPT_CALLS:
            raise Stopped
        if number >= self.first and facts.evaluates(self._body_trains):
            self._probe(facts, invocation)
            if self.mixing is not None:
                raise Stopped
        return super().make(number, facts, invocation)

    def _probe(self, facts: ModelCall, invocation: Invocation) -> None:
        try:
            found = mixing(facts, invocation, self._tolerance)
        except Exception as error:  # noqa: BLE001  # a model may refuse to be called so
            found = Unclear(f"called with copies of a sample, it raises {type(error).__name__}")
        if isinstance(found, Unclear):
            self.unclear.append(found.reason)
        else:
            self.probed += 1
        if isinstance(found, Mixing):
            self.mixing = facts, found
