"""What a run leaves as it found it: weights, buffers, gradients, modes, optimizers, chance."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.calls import same_values
from pytest_trainloop.runtime.fingerprint import digest_of, rng_digests
from pytest_trainloop.runtime.live_modules import collect_garbage
from pytest_trainloop.runtime.models import live_models
from pytest_trainloop.runtime.observe import Listener
from pytest_trainloop.runtime.place import belongs_to_user, frame_beyond, readable

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from pytest_trainloop.runtime.fingerprint import Digest
    from pytest_trainloop.runtime.observe import Observer

Modes = dict[str, bool]


@dataclass(frozen=True, slots=True)
class Change:
    """Something had another value when a run ended than when it began."""

    #: `weights`, `buffers`, `gradients`, `requires_grad`, `optimizer`, `mode` or `rng`.
    what: str
    names: tuple[str, ...]
    #: The model's class, or the optimizer's; empty for generators.
    kind: str = ""
    #: The module, to ask for what the user's code calls it.
    module: Any = None
    #: Who switched the mode last.
    where: str = ""


@dataclass(slots=True)
class _Tensor:
    name: str
    #: `weights` or `buffers`.
    what: str
    ref: weakref.ref[Tensor]
    values: Tensor
    gradient: Tensor | None
    requires_grad: bool


@dataclass(slots=True)
class _Switch:
    module: weakref.ref[Module]
    where: str
    by_user: bool


class KeepState(Listener):
    """Remembers what there is when a run begins, and lists what is different when it ends.

    Modes that a library switches, or the test function itself, are none of the user's
    evaluation. Models that are built in the run have only a mode to compare.
    """

    def __init__(self, test: CodeType | None) -> None:
        self.changes: list[Change] = []
        self._test = test
        self._tensors: list[tuple[weakref.ref[Module], list[_Tensor]]] = []
        self._modes: weakref.WeakKeyDictionary[Module, Modes] = weakref.WeakKeyDictionary()
        self._optimizers: list[tuple[weakref.ref[Any], Digest]] = []
        self._rng: dict[str, Digest] = {}
        self._switches: list[_Switch] = []
        self._switching = False

    def begin(self, observer: Observer) -> None:
        """Take everything in, and replace `Module.train` until the run ends."""
        from torch.nn import Module

        collect_garbage()
        for model in live_models():
            root = model.ref()
            if root is not None:
                self._tensors.append((model.ref, list(_tensors(root))))
                self._modes[root] = _modes(root)
        self._optimizers = [(weakref.ref(one), _digest(one)) for one in _live_optimizers()]
        self._rng = rng_digests()
        observer.patches.replace(Module, "train", self._replace_train)

    def end(self) -> None:
        """Compare."""
        self.changes = [
            *self._changed_tensors(),
            *self._changed_optimizers(),
            *self._changed_modes(),
        ]
        generators = tuple(
            name for name, now in rng_digests().items() if self._rng.get(name) != now
        )
        if generators:
            self.changes.append(Change("rng", generators))

    def _changed_tensors(self) -> Iterator[Change]:
        for ref, tensors in self._tensors:
            root = ref()
            if root is None:
                continue
            now = dict([*root.named_parameters(), *root.named_buffers()])
            caches = _caches(root)
            changed: dict[str, list[str]] = {}
            for one in tensors:
                value = now.get(one.name)
                if one.name in caches and one.ref() is not value:
                    # A table that was made anew, for longer inputs.
                    continue
                for what in _differences(one, value):
                    changed.setdefault(what, []).append(one.name)
            for what, names in changed.items():
                yield Change(what, tuple(names), type(root).__name__, root)

    def _changed_optimizers(self) -> Iterator[Change]:
        for ref, then in self._optimizers:
            optimizer = ref()
            if optimizer is not None and _digest(optimizer) != then:
                yield Change("optimizer", (), type(optimizer).__name__, optimizer)

    def _changed_modes(self) -> Iterator[Change]:
        for root, then in list(self._modes.items()):
            now = _modes(root)
            names = tuple(name for name, mode in then.items() if now.get(name, mode) != mode)
            switch = self._last_switch(root)
            if names and (switch is None or switch.by_user):
                where = switch.where if switch is not None else ""
                yield Change("mode", names, type(root).__name__, root, where)

    def _last_switch(self, root: Module) -> _Switch | None:
        own = set(map(id, root.modules()))
        return next((one for one in reversed(self._switches) if id(one.module()) in own), None)

    def _replace_train(self, original: Callable[..., Any]) -> FunctionType:
        def train(module: Any, mode: bool = True) -> Any:
            __tracebackhide__ = True
            if self._switching:
                return original(module, mode)
            self._switching = True
            try:
                frame = frame_beyond(module, sys._getframe(1))
                if not any(module in root.modules() for root in self._modes):
                    self._modes[module] = _modes(module)
                result = original(module, mode)
                self._note(module, frame)
                return result
            finally:
                self._switching = False

        return cast("FunctionType", train)

    def _note(self, module: Module, frame: FrameType | None) -> None:
        if frame is None:
            return
        if frame.f_code is self._test:
            for root in list(self._modes):
                if any(one is module for one in root.modules()):
                    self._modes[root] = _modes(root)
            return
        path = frame.f_code.co_filename
        where = readable((path, frame.f_lineno))
        self._switches.append(_Switch(weakref.ref(module), where, belongs_to_user(path)))


def _tensors(root: Module) -> Iterator[_Tensor]:
    kinds = (("weights", root.named_parameters()), ("buffers", root.named_buffers()))
    for what, pairs in kinds:
        for name, tensor in pairs:
            try:
                values = tensor.detach().clone()
                gradient = None if tensor.grad is None else tensor.grad.detach().clone()
            except (RuntimeError, ValueError, NotImplementedError):
                # Lazy and sharded ones have no values to keep.
                continue
            if not values.is_meta:
                yield _Tensor(
                    name, what, weakref.ref(tensor), values, gradient, tensor.requires_grad
                )


def _caches(root: Module) -> set[str]:
    """The names of buffers that no checkpoint holds."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in root.named_modules()
        for name in getattr(module, "_non_persistent_buffers_set", ())
    }


def _differences(then: _Tensor, now: Tensor | None) -> Iterator[str]:
    if now is None or not same_values(now.detach(), then.values):
        yield then.what
        return
    if (now.grad is None) != (then.gradient is None) or (
        now.grad is not None
        and then.gradient is not None
        and not same_values(now.grad, then.gradient)
    ):
        yield "gradients"
    if now.requires_grad != then.requires_grad:
        yield "requires_grad"


def _modes(root: Module) -> Modes:
    return {name: module.training for name, module in root.named_modules()}


def _live_optimizers() -> list[Any]:
    from torch.optim import Optimizer

    objects = gc.get_objects()
    # Ask their types, as `live_models` does.
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, Optimizer)}
    return [one for one in objects if type(one) in kinds and "param_groups" in vars(one)]


def _digest(optimizer: Any) -> Digest:
    return digest_of(optimizer.state_dict())
