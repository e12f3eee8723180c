"""What was known when optimizers were built: where, by which calls, and over what."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.runtime.live_modules import live_roots
from pytest_trainloop.runtime.models import owned
from pytest_trainloop.runtime.place import user_frames

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

#: Looking for models takes a while: only the first optimizers of a run are worth it.
_LOOKED_AT = 4


class _Tensors:
    """A set of tensors, held weakly. Tensors are compared by value, so by identity here."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._refs = {id(tensor): weakref.ref(tensor) for tensor in tensors}

    def __contains__(self, tensor: Tensor) -> bool:
        ref = self._refs.get(id(tensor))
        return ref is not None and ref() is tensor


@dataclass(slots=True)
class _Built:
    ref: weakref.ref[Optimizer]
    where: str
    stack: tuple[tuple[str, int], ...]
    own: _Tensors
    #: The parameters of the models that it trains, as they were then; None if not looked at.
    members: _Tensors | None


class BuiltOptimizers:
    """The optimizers that were built in a watched run."""

    def __init__(self) -> None:
        self._built: dict[int, _Built] = {}
        self._count = 0

    def note(self, optimizer: Optimizer, where: str) -> None:
        """Remember an optimizer that has just been built."""
        own = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        stack = tuple((frame.f_code.co_filename, frame.f_lineno) for frame in user_frames())
        self._count += 1
        members = None
        if self._count <= _LOOKED_AT:
            mine = set(map(id, own))
            models = [[one.tensor for one in owned(root)] for root in live_roots()]
            owners = [tensors for tensors in models if not mine.isdisjoint(map(id, tensors))]
            members = _Tensors([tensor for tensors in owners for tensor in tensors])
        ref = weakref.ref(optimizer)
        self._built[id(optimizer)] = _Built(ref, where, stack, _Tensors(own), members)

    def where(self, optimizer: Optimizer) -> str:
        """`path:line` of the code that built an optimizer; empty if unknown."""
        built = self._entry(optimizer)
        return "" if built is None else built.where

    def stack(self, optimizer: Optimizer) -> tuple[tuple[str, int], ...]:
        """The user's calls that it was built by, as files and lines; empty if unknown."""
        built = self._entry(optimizer)
        return () if built is None else built.stack

    def claims(self, tensor: Tensor) -> bool:
        """Whether one of them was built over `tensor`."""
        return any(tensor in built.own for built in self._built.values())

    def came_later(self, tensor: Tensor, others: list[Tensor]) -> bool:
        """Whether one of them was built when `tensor` was not part of its model.

        Args:
            tensor: the parameter in question.
            others: the parameters of its model, some of which were part of it by then.
        """
        return any(
            built.members is not None
            and tensor not in built.members
            and any(other in built.members for other in others)
            for built in self._built.values()
        )

    def _entry(self, optimizer: Optimizer) -> _Built | None:
        built = self._built.get(id(optimizer))
        return built if built is not None and built.ref() is optimizer else None
