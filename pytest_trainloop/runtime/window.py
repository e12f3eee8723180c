"""A short look at the forwards of trained models, by hooks that are gone when it is over."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from pytest_trainloop.runtime.participants import Participants
    from pytest_trainloop.runtime.sightings import Evaluation

#: Where a graph carries the marker that dies with it.
_KEY = "pytest_trainloop.evaluation"


class _Marker:
    """Held by a graph alone."""


class _Hook:
    """A forward hook. A copy of the module that it is on, or a pickle, gets one that is inert."""

    def __init__(self, window: Window | None, index: int | None) -> None:
        self.window = window
        self.index = index

    def __call__(self, module: Module, args: Any, output: Any) -> None:
        if self.window is not None:
            self.window.see(module, self.index, output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (None, None)

    def __deepcopy__(self, memo: object) -> _Hook:
        return _Hook(None, None)


class Window:
    """Watches the trained models and their mode-dependent modules until it is closed."""

    facts: Evaluation

    def __init__(self, people: Participants) -> None:
        roots = [root for model in people.models if (root := model.ref()) is not None]
        self._known = {id(one.ref()): (n, one.name) for n, one in enumerate(people.models)}
        self._compiled = {id(one) for root in roots for one in _compiled(root)}
        self._handles = [
            module.register_forward_hook(_Hook(self, index))
            for index, module in self._modules(people, roots)
            if id(module) not in self._compiled
        ]
        self._statistics = [
            (name, module, module.running_mean, module.running_mean.clone())
            for root in roots
            for name, module in _with_statistics(root)
        ]
        self._evaluating = {id(root) for root in roots if not root.training}
        self._in_train_mode: set[int] = set()
        self._in_eval_mode: set[int] = set()
        self._called = False
        self._with_gradients = False
        #: Markers in the graphs of what whole models in eval mode gave, each with its model.
        self.graphs: list[tuple[tuple[int, str], weakref.ref[_Marker]]] = []

    def _modules(
        self, people: Participants, roots: list[Module]
    ) -> Iterator[tuple[int | None, Module]]:
        known = {id(module) for ref in people.modes if (module := ref()) is not None}
        for index, ref in enumerate(people.modes):
            module = ref()
            if module is not None:
                yield index, module
        for root in roots:
            if id(root) not in known:
                yield None, root

    def see(self, module: Module, index: int | None, output: Any) -> None:
        """Take in one forward."""
        import torch

        self._called = True
        if torch.is_grad_enabled():
            self._with_gradients = True
            self._mark(module, output)
        elif index is not None:
            (self._in_train_mode if module.training else self._in_eval_mode).add(index)

    def close(self) -> Evaluation | None:
        """Remove the hooks; what was seen, or None if no model was called."""
        for handle in self._handles:
            handle.remove()
        if not self._called:
            return None
        self.facts.in_train_mode = tuple(sorted(self._in_train_mode))
        self.facts.in_eval_mode = tuple(sorted(self._in_eval_mode))
        if not self._with_gradients and self._evaluating:
            self.facts.updated = tuple(self._updated())
        self._statistics.clear()
        return self.facts

    def graphs_gone(self) -> dict[tuple[int, str], int]:
        """How many graphs of each model that were seen cannot be back-propagated any more."""
        return dict(Counter(model for model, ref in self.graphs if ref() is None))

    def _mark(self, module: Module, output: Any) -> None:
        tensor = _first_tensor(output)
        node: Any = None if tensor is None or _is_transformed(tensor) else tensor.grad_fn
        if node is None or module.training or id(module) not in self._known:
            return
        marker = _Marker()
        node.metadata[_KEY] = marker
        self.graphs.append((self._known[id(module)], weakref.ref(marker)))

    def _updated(self) -> Iterator[str]:
        import torch

        for name, module, then, values in self._statistics:
            now = module.running_mean
            # Another tensor was put in its place: loaded, or moved to another device.
            if now is then and not torch.equal(now, values):
                yield name


def _with_statistics(root: Module) -> Iterator[tuple[str, Any]]:
    import torch

    for name, module in root.named_modules():
        mean = getattr(module, "running_mean", None)
        if isinstance(mean, torch.Tensor) and not mean.is_meta and not root.training:
            yield f"{name}.running_mean" if name else "running_mean", module


def _compiled(root: Module) -> Iterator[Module]:
    """Modules whose hooks torch.compile would take into what it makes."""
    import torch

    for module in root.modules():
        whole = hasattr(module, "_orig_mod") or isinstance(module, torch.jit.ScriptModule)
        if whole or getattr(module, "_compiled_call_impl", None) is not None:
            yield from module.modules()


def _first_tensor(output: Any) -> Tensor | None:
    import torch

    values = output.values() if isinstance(output, dict) else output
    if isinstance(values, torch.Tensor):
        return values
    try:
        return next((one for one in values if isinstance(one, torch.Tensor)), None)
    except TypeError:
        return None


def _is_transformed(tensor: Tensor) -> bool:
    """Whether torch.func is differentiating: it keeps what it needs of the graph itself."""
    import torch

    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))
