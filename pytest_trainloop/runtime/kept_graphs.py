"""See graphs of losses that live on after they were back-propagated and their step is over.

A few nodes near the loss get a marker that dies with them. What is still marked many steps later
is held by somebody: a list of losses, a running total.
"""

from __future__ import annotations

import gc
import weakref
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from pytest_trainloop.runtime.census import nodes_behind, tensors_before
from pytest_trainloop.runtime.holders import holders_of
from pytest_trainloop.runtime.sightings import KeptGraphs

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_trainloop.runtime.record import Run

#: Key under which a graph node carries the number of its step; it lives and dies with the node.
_KEY = "pytest_trainloop.step"
#: Nodes marked of one graph: what is kept may be the loss before it was scaled or divided.
_NODES = 6
#: Steps whose graphs must live all at once; a window of losses may be as long.
_FEWEST = 8
#: How often rubbish is collected to see whether it was only that.
_COLLECTIONS = 2


class _Marker:
    """Tells in which step a node was back-propagated through."""

    __slots__ = ("__weakref__", "look")

    def __init__(self, look: int) -> None:
        self.look = look


class GraphWatch:
    """Marks graphs when they are back-propagated, and looks for old ones after steps."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._step = 0
        self._marks: deque[weakref.ref[_Marker]] = deque(maxlen=64)
        self._left = _COLLECTIONS

    def mark(self, losses: list[Tensor]) -> None:
        """Mark the graphs of losses that are about to be back-propagated for the last time."""
        if not self._left:
            return
        marker = _Marker(self._step)
        for node in islice(nodes_behind(losses, _NODES), _NODES):
            node.metadata[_KEY] = marker
        self._marks.append(weakref.ref(marker))

    def after_step(self, number: int, where: str) -> None:
        """Look for graphs that should be gone by now.

        Args:
            number: how many steps the optimizer has made.
            where: where backward was called last.
        """
        self._step = max(self._step, number)
        if self._left and len(self._old()) >= _FEWEST:
            self._left -= 1
            gc.collect()
            old = self._old()
            if len(old) >= _FEWEST:
                self._left = 0
                self._run.kept_graphs = _named(old, where)

    def _old(self) -> set[int]:
        """The earlier steps of which graphs live."""
        markers = [marker for ref in self._marks if (marker := ref()) is not None]
        return {marker.look for marker in markers if marker.look < self._step - 1}


def _named(steps: set[int], where: str) -> KeptGraphs | None:
    """Who holds them; None if that cannot be found, or if it is a window that moves on."""
    whole, parts = tensors_before(_KEY, steps, _FEWEST)
    names = dict.fromkeys(holder.name for holder in holders_of(whole))
    if names:
        return KeptGraphs(tuple(names), "", len(steps), where)
    holders = [one for one in holders_of([tensor for _, tensor in parts], _FEWEST) if one.kind]
    if not holders or holders[0].kind == "deque":
        return None
    return KeptGraphs((holders[0].name,), holders[0].kind, len(holders[0].things), where)
