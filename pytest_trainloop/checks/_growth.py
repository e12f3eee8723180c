"""Look at what lives after steps of a run, and explain what grows while its holder can be found."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pytest_trainloop.runtime.census import KEY, Census, Look, living, tensors_before
from pytest_trainloop.runtime.holders import holders_of, path_of
from pytest_trainloop.runtime.observe import Listener

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from pytest_trainloop.runtime.record import Step

#: Looks of which each must have left something behind, besides the last one.
FEWEST = 4


@dataclass(frozen=True)
class Growth:
    """What grows with the steps, and who holds it."""

    #: `graphs`, `optimizers`, `states` or `tensors`.
    what: str
    #: What the user's code calls the holder, or the tensors whose one graph grows; empty if
    #: unknown. And what the holder is (`list`); empty where it is none.
    names: tuple[str, ...]
    kind: str
    #: How many objects it holds.
    number: int
    #: What there is more of with each step, on average.
    each_step: float


class LookForGrowth(Listener):
    """Looks at what lives every few steps, and explains at once what has grown so far."""

    def __init__(self, first: int, every: int, last: int, keeps: tuple[str, ...]) -> None:
        self.census = Census()
        #: The growth seen at the last look; None if nothing grew.
        self.growth: Growth | None = None
        self._first = first
        self._every = every
        self._last = last
        self._keeps = keeps
        self._made = 0
        self._asked = False
        self._passes = 0
        self._uses_loaders = False

    def deliver(self, loader: int, batch: Any) -> Any:
        """Note that there are data loaders, whose passes show what is kept for an epoch only."""
        self._uses_loaders = True
        return batch

    def epoch_ended(self, loader: int) -> None:
        """Count the passes."""
        self._passes += 1

    def after_step(self, optimizer: Optimizer, step: Step) -> None:
        """Look, if it is time to."""
        number = step.number
        if number <= self._made:
            return
        self._made = number
        if number >= self._first and (number - self._first) % self._every == 0:
            self.census.look(number, self._passes)
            if not self._has_grown():
                self.growth = None
            elif not self._asked or number + self._every > self._last:
                # Finding holders takes a while: at first sight, and once more with all numbers.
                self._asked = True
                self.growth = self._explained()

    @property
    def looks(self) -> list[Look]:
        """What was seen so far."""
        return self.census.looks

    def _has_grown(self) -> bool:
        if not any(self._grown()):
            return False
        # What is left may be rubbish that waits for the collector.
        gc.collect()
        return any(self._grown())

    def _grown(self) -> tuple[bool, bool, bool, bool]:
        """Whether something is left of all looks: graphs, optimizers, states, tensors."""
        looks = self.looks[:-1]
        counts = [look.state_count for look in self.looks]
        states = len(looks) >= FEWEST and all(a < b for a, b in pairwise(counts))
        return (
            _all_left([look.nodes_left() for look in looks]),
            _all_left([len(look.optimizers_left()) for look in looks[1:]]),
            states,
            _all_left([len(look.tensors_left()) for look in self._after_one_pass()[1:]]),
        )

    def _after_one_pass(self) -> list[Look]:
        """The looks at which what is made once for each example had been made.

        Without a data loader there is no telling a cache or a replay buffer that is being filled
        from a leak.
        """
        return [look for look in self.looks[:-1] if look.passes > 0]

    def _explained(self) -> Growth | None:
        graphs, optimizers, states, tensors = self._grown()
        for grown, explain in (
            (graphs, self._growing_graphs),
            (optimizers, self._growing_optimizers),
            (states, self._growing_states),
            (tensors, self._growing_tensors),
        ):
            growth = explain() if grown else None
            if growth is not None:
                return growth
        return None

    def _each_step(self, counts: list[int]) -> float:
        return (counts[-1] - counts[0]) / (self.looks[-1].step - self.looks[0].step)

    def _growing_graphs(self) -> Growth | None:
        each_step = self._each_step([look.node_count for look in self.looks])
        whole, parts = tensors_before(KEY, set(range(len(self.looks) - 1)), FEWEST)
        names = dict.fromkeys(one.name for one in holders_of(whole))
        carriers = tuple(name for name in names if not self._is_kept(name))
        if carriers:
            return Growth("graphs", carriers, "", len(whole), each_step)
        return None if names else self._held("graphs", parts, each_step)

    def _growing_optimizers(self) -> Growth | None:
        looks = enumerate(self.looks[1:-1])
        kept = [(number, one) for number, look in looks for one in look.optimizers_left()]
        return self._held("optimizers", kept, len(kept) / self.looks[-1].step)

    def _growing_states(self) -> Growth | None:
        largest = max(living()[1], key=lambda one: len(one.state))
        each_step = self._each_step([look.state_count for look in self.looks])
        name = path_of(largest)
        growth = Growth("states", (name,) if name else (), "", len(largest.state), each_step)
        return None if self._is_kept(name) else growth

    def _growing_tensors(self) -> Growth | None:
        # At the first of them, all that there was is new.
        looks = enumerate(self._after_one_pass()[1:])
        kept = [(number, tensor) for number, look in looks for tensor in look.tensors_left()]
        return self._held("tensors", kept, len(kept) / (self.looks[-1].step - self.looks[0].step))

    def _held(self, what: str, things: list[tuple[int, Any]], each_step: float) -> Growth | None:
        """Who holds things of several looks, which are given beside them."""
        looks = {id(thing): number for number, thing in things}
        holders = holders_of([thing for _, thing in things], FEWEST - 1)
        growing = [
            holder
            for holder in holders
            if len({looks[id(thing)] for thing in holder.things}) >= FEWEST - 1
        ]
        if not growing:
            return Growth(what, (), "", len(things), each_step)
        judged = [holder for holder in growing if not self._is_kept(holder.name)]
        if not judged:
            return None
        return Growth(what, (judged[0].name,), judged[0].kind, len(judged[0].things), each_step)

    def _is_kept(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._keeps)


def _all_left(left: list[int]) -> bool:
    return len(left) >= FEWEST and all(left)
