"""Count what lives after a step, and tell what lives on: graphs, tensors and optimizers.

At each look, whatever is new is noted, weakly: a node of a graph by a marker that dies with it.
Memory grows if of every look something is left at the end; what lives for a few steps only (a
window, a batch that was fetched ahead) and what was there from the start does not make it grow.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: Key under which a graph node carries its marker; it lives and dies with the node.
KEY = "pytest_trainloop.look"
#: Nodes marked in one look at most.
_NODES = 200_000
#: Nodes behind one tensor that are looked at.
_NODES_OF_ONE = 20_000


class _Marker:
    """Tells in which look a node was first seen."""

    __slots__ = ("__weakref__", "look")

    def __init__(self, look: int) -> None:
        self.look = look


@dataclass
class Look:
    """What was new at one look, and how much there was."""

    step: int
    #: Passes over data loaders that had ended by then.
    passes: int
    nodes: list[weakref.ref[_Marker]] = field(default_factory=list)
    tensors: list[weakref.ref[Tensor]] = field(default_factory=list)
    optimizers: list[weakref.ref[Any]] = field(default_factory=list)
    #: All that lived: nodes of graphs, tensors without a graph, entries of optimizer states.
    node_count: int = 0
    tensor_count: int = 0
    state_count: int = 0
    #: Bytes in use on CUDA devices; 0 where there are none.
    cuda_bytes: int = 0

    def nodes_left(self) -> int:
        """How many of the nodes that were new still live."""
        return sum(ref() is not None for ref in self.nodes)

    def tensors_left(self) -> list[Tensor]:
        """Those of the new tensors that still live."""
        return [tensor for ref in self.tensors if (tensor := ref()) is not None]

    def optimizers_left(self) -> list[Any]:
        """Those of the new optimizers that still live."""
        return [one for ref in self.optimizers if (one := ref()) is not None]


class Census:
    """All looks of one run."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self._known: dict[int, weakref.ref[Any]] = {}

    def look(self, step: int, passes: int) -> None:
        """Count what lives now, and note what is new."""
        import torch

        now = Look(step, passes)
        tensors, optimizers = living()
        now.node_count = self._note_nodes(now, tensors)
        states = [one.state for one in optimizers]
        now.state_count = sum(map(len, states))
        own = {id(tensor) for state in states for tensor in _tensors_in(state.values())}
        loose = [one for one in tensors if _is_loose(one) and id(one) not in own]
        now.tensor_count = len(loose)
        now.tensors = self._new(loose)
        now.optimizers = self._new(optimizers)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            devices = range(torch.cuda.device_count())
            now.cuda_bytes = sum(torch.cuda.memory_allocated(device) for device in devices)
        self.looks.append(now)

    def _note_nodes(self, now: Look, tensors: list[Tensor]) -> int:
        number = 0
        for node in nodes_behind([one for one in tensors if one.grad_fn is not None], _NODES):
            number += 1
            if KEY not in node.metadata:
                marker = node.metadata[KEY] = _Marker(len(self.looks))
                now.nodes.append(weakref.ref(marker))
        return number

    def _new(self, things: Iterable[Any]) -> list[weakref.ref[Any]]:
        found = []
        for thing in things:
            known = self._known.get(id(thing))
            if known is None or known() is not thing:
                ref = self._known[id(thing)] = weakref.ref(thing)
                found.append(ref)
        return found


def living() -> tuple[list[Tensor], list[Any]]:
    """Every tensor and every optimizer that lives."""
    from torch import Tensor
    from torch.optim import Optimizer

    # Ask their types, not isinstance(): that would wake up lazy proxies among them.
    objects = gc.get_objects()
    kinds = set(map(type, objects))
    tensors = {kind for kind in kinds if issubclass(kind, Tensor)}
    optimizers = {kind for kind in kinds if issubclass(kind, Optimizer)}
    return (
        [thing for thing in objects if type(thing) in tensors],
        [thing for thing in objects if type(thing) in optimizers and "state" in vars(thing)],
    )


def nodes_behind(tensors: list[Tensor], limit: int) -> Iterator[Any]:
    """The nodes of the graphs of some tensors, without those of leaves, which live on."""
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen: set[Any] = set()
    while waiting and len(seen) < limit:
        node = waiting.pop()
        if node is None or node in seen or not hasattr(node, "metadata"):
            continue
        seen.add(node)
        if not hasattr(node, "variable"):
            yield node
        waiting.extend(following for following, _ in node.next_functions)


def tensors_before(
    key: str, old: set[int], fewest: int
) -> tuple[list[Tensor], list[tuple[int, Tensor]]]:
    """The tensors that keep marked graphs alive.

    Args:
        key: under which nodes carry markers with the number of a look.
        old: the numbers that should not be found any more.
        fewest: of how many of them a graph must hold nodes to be one that has grown.

    Returns:
        Those behind which there is one graph that has grown, the smallest graph first: outputs
        and losses are computed from what is carried on. And the others, each with its number.
    """
    whole: list[tuple[int, Tensor]] = []
    parts: list[tuple[int, Tensor]] = []
    for tensor in living()[0]:
        if tensor.grad_fn is None:
            continue
        size, found = 0, set()
        for size, node in enumerate(nodes_behind([tensor], _NODES_OF_ONE)):  # noqa: B007
            marker = node.metadata.get(key)
            if marker is not None and marker.look in old:
                found.add(marker.look)
        if len(found) >= fewest:
            whole.append((size, tensor))
        elif found:
            parts.append((max(found), tensor))
    whole.sort(key=lambda pair: pair[0])
    return [tensor for _, tensor in whole], parts


def _is_loose(tensor: Tensor) -> bool:
    """Whether a tensor has no graph, is nobody's weight, and is more than a number for a log."""
    from torch.nn import Parameter

    return tensor.grad_fn is None and tensor.numel() > 1 and not isinstance(tensor, Parameter)


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors in an optimizer's state, also those in the lists that LBFGS keeps."""
    from torch import Tensor

    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors_in(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors_in(value)
