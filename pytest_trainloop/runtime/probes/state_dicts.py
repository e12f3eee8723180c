"""See models given a state dict, and whether it was nothing but their own weights.

`state_dict()` returns references. One that was kept while an optimizer went on, and is loaded
into the model that it came from, puts nothing back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.place import name_of
from pytest_trainloop.runtime.sightings import StateLoad

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from pytest_trainloop.runtime.observe import Observer

#: State dicts that are remembered at most; those that are gone go first.
_REMEMBERED = 64


def install(observer: Observer) -> None:
    """Replace `Module.state_dict` and `Module.load_state_dict`."""
    from torch.nn import Module

    watch = _StateDicts(observer)
    observer.patches.replace(Module, "state_dict", watch.replace_state_dict)
    observer.patches.replace(Module, "load_state_dict", watch.replace_load_state_dict)


@dataclass(slots=True)
class _Taken:
    """One tensor of a state dict, by which its later holder is known."""

    tensor: weakref.ref[Tensor]
    where: str
    steps: int


class _StateDicts:
    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.taken: dict[int, _Taken] = {}

    def replace_state_dict(self, original: Callable[..., Any]) -> FunctionType:
        def state_dict(module: Module, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            state = original(module, *args, **kwargs)
            # With a destination it is called by the state dict of the module around it.
            if self.observer.patches.active and not args and kwargs.get("destination") is None:
                self.note_taken(state)
            return state

        return cast("FunctionType", state_dict)

    def replace_load_state_dict(self, original: Callable[..., Any]) -> FunctionType:
        def load_state_dict(module: Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if self.observer.patches.active:
                self.observer.run.events.append(self.describe(module, state_dict))
            return original(module, state_dict, *args, **kwargs)

        return cast("FunctionType", load_state_dict)

    def note_taken(self, state: Any) -> None:
        first = next(iter(_tensors(state)), None)
        if first is None:
            return
        if len(self.taken) >= _REMEMBERED:
            living = {key: one for key, one in self.taken.items() if one.tensor() is not None}
            self.taken = living if len(living) < _REMEMBERED else {}
        place, steps = self.observer.place(), self.observer.run.training_steps
        self.taken[id(first)] = _Taken(weakref.ref(first), place, steps)

    def describe(self, module: Module, state: Any) -> StateLoad:
        load = StateLoad(self.observer.place())
        tensors = _tensors(state)
        taken = self.taken.get(id(tensors[0])) if tensors else None
        if taken is None or taken.tensor() is not tensors[0]:
            return load
        own = {one.data_ptr() for one in chain(module.parameters(), module.buffers())}
        if all(tensor.data_ptr() in own for tensor in tensors if tensor.numel()):
            load.taken = taken.where
            load.steps = self.observer.run.training_steps - taken.steps
            load.model = name_of(module) or type(module).__name__
            load.kept_in = name_of(state) or ""
        return load


def _tensors(state: Any) -> list[Tensor]:
    """The tensors of a state dict that are a plain mapping's values."""
    import torch

    if not isinstance(state, Mapping):
        return []
    return [value for value in state.values() if type(value) is torch.Tensor]
