"""Who takes part in a run: optimizers, parameters and the modules that depend on the mode.

The record gives everybody a number in the order of their appearance; this is the book that
knows which object has which number. Parameters are held until the run ends, so that a model
that a training function kept to itself can still be surveyed then.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_trainloop.runtime import record
from pytest_trainloop.runtime.built import BuiltOptimizers
from pytest_trainloop.runtime.live_modules import live_roots
from pytest_trainloop.runtime.models import LiveModel, owned
from pytest_trainloop.runtime.place import name_of
from pytest_trainloop.runtime.sightings import ModeModule

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from torch.optim import Optimizer

#: Values kept of a parameter to tell whether it moved: all of them up to this many in a run,
#: then a sample of each.
_KEPT_VALUES = 2**25
_SAMPLE = 4096
#: The optimizer that counts how often it evaluates closures.
_COUNTING = "LBFGS"
_UNREAD = object()


@dataclass(slots=True)
class KnownParameter:
    """A parameter that takes part; `index` is its number in the record."""

    index: int
    tensor: Tensor
    name: str
    model: LiveModel | None
    module: str | None
    first: Tensor | None
    stride: int
    optimizers: list[int] = field(default_factory=list)
    reached: bool = False
    had_gradient: bool = False
    had_nonzero_gradient: bool = False


@dataclass(slots=True)
class KnownOptimizer:
    """An optimizer that stepped; `index` is its number in the record."""

    index: int
    ref: weakref.ref[Optimizer]
    fact: record.Optimizer
    #: What stands in the record for each of its clearings that is not looked at closely.
    clearing: record.Clearing
    parameters: list[KnownParameter]
    #: The number of parameters in each of its groups when it was last read.
    sizes: list[int]
    #: That of its only group.
    size: int | None = None
    #: The calls that it was built by; empty if that was before the watch.
    stack: tuple[tuple[str, int], ...] = ()
    #: Its first parameter, and how often that had been written to after its last step.
    leading: Tensor | None = None
    written: int | None = None
    #: Its learning rates at the last step, kept to store equal ones once.
    rates: tuple[float, ...] = ()
    #: That of its only group, if it is a plain number.
    rate: object = _UNREAD
    #: Whether it counts how often it evaluates closures.
    counts_evaluations: bool = False
    #: The next of its steps to look at closely.
    close_at: int = 1

    def read_rates(self, groups: list[dict[str, Any]]) -> None:
        """Note the learning rate of each of its groups as they are now."""
        rate = groups[0].get("lr") if len(groups) == 1 else _UNREAD
        self.rate = rate if type(rate) is float else _UNREAD
        rates = tuple(map(_rate, groups))
        if rates != self.rates:
            self.rates = rates


class Participants:
    """The book of who takes part in one run."""

    def __init__(self, run: record.Run) -> None:
        self.run = run
        self.built = BuiltOptimizers()
        self.modes: list[weakref.ref[Module]] = []
        self._optimizers: dict[int, KnownOptimizer] = {}
        #: The last few, newest first, also those that are gone by now.
        self._latest: deque[KnownOptimizer] = deque(maxlen=8)
        self._parameters: dict[int, KnownParameter] = {}
        self._order: list[KnownParameter] = []
        #: The models that are trained: an optimizer or a back-propagated graph leads to them.
        self.models: list[LiveModel] = []
        self._kept_values = 0
        self._hidden_tensors: dict[int, tuple[weakref.ref[Tensor], str]] = {}

    def optimizer(self, optimizer: Optimizer) -> KnownOptimizer:
        """The entry of an optimizer, made when it is first seen or its groups have grown."""
        known = self._optimizers.get(id(optimizer))
        if known is not None and known.ref() is optimizer:
            groups = optimizer.param_groups
            # Most have one group; this is asked in every step.
            if len(groups) != 1 or len(groups[0]["params"]) != known.size:
                if [len(group["params"]) for group in groups] != known.sizes:
                    self._read_groups(known, optimizer)
            return known
        fact = record.Optimizer(
            name=name_of(optimizer) or type(optimizer).__name__,
            kind=type(optimizer).__name__,
            built=self.built.where(optimizer),
            groups=(),
            maximizes=any(group.get("maximize") is True for group in optimizer.param_groups),
        )
        self.run.optimizers.append(fact)
        index = len(self.run.optimizers) - 1
        stack = self.built.stack(optimizer)
        clearing = record.Clearing(index, fact.kind, by_optimizer=True, where="")
        ref = weakref.ref(optimizer)
        known = KnownOptimizer(index, ref, fact, clearing, [], [], stack=stack)
        known.counts_evaluations = fact.kind == _COUNTING
        self._optimizers[id(optimizer)] = known
        self._read_groups(known, optimizer)
        fact.replaces = self._replaced(known)
        self._latest.appendleft(known)
        return known

    def known_optimizer(self, optimizer: Optimizer) -> KnownOptimizer | None:
        """The entry of an optimizer that has stepped."""
        known = self._optimizers.get(id(optimizer))
        return known if known is not None and known.ref() is optimizer else None

    def indices(self, tensors: list[Tensor]) -> tuple[int, ...] | None:
        """The numbers of some parameters; None if not all are known."""
        known = [self._parameters.get(id(tensor)) for tensor in tensors]
        found = tuple(one.index for one in known if one is not None)
        return found if len(found) == len(tensors) else None

    def gradients(self) -> list[tuple[Tensor, int]]:
        """Every parameter that has a gradient, with how often that was written to."""
        return [
            (known.tensor, known.tensor.grad._version)
            for known in self._order
            if known.tensor.grad is not None
        ]

    def saw_leaves(self, leaves: list[Tensor]) -> None:
        """Note that a back-propagated graph leads to these tensors."""
        from torch.nn import Parameter

        # An input that wants a gradient is a leaf too, but nobody trains it unless it is
        # a Parameter or an optimizer has it.
        trained = [t for t in leaves if isinstance(t, Parameter) or id(t) in self._parameters]
        self._find_models(trained)
        for tensor in trained:
            self._known(tensor).reached = True

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter with a name that is the same in another run of the same code."""
        for known in self._order:
            owner = known.model.name if known.model else ""
            yield f"{owner}.{known.name}", known.tensor

    def survey(self) -> list[record.Parameter]:
        """Describe every parameter as it stands now."""
        models = {id(known.model) for known in self._order if known.model is not None}
        for model in self.models:
            if id(model) in models:
                self._take_in(model)
        several = len(models) > 1
        return [self._describe(known, several) for known in self._order]

    def _replaced(self, new: KnownOptimizer) -> int | None:
        for old in self._latest:
            if (
                old.fact.groups == new.fact.groups
                and old.stack
                and old.stack == new.stack
                and new.parameters
                and old.written == new.parameters[0].tensor._version
            ):
                return old.index
        return None

    def _read_groups(self, known: KnownOptimizer, optimizer: Optimizer) -> None:
        groups = [list(group["params"]) for group in optimizer.param_groups]
        known.sizes = list(map(len, groups))
        known.size = known.sizes[0] if len(groups) == 1 else None
        self._find_models([tensor for group in groups for tensor in group])
        entries = [[self._known(tensor) for tensor in group] for group in groups]
        known.parameters = [entry for group in entries for entry in group]
        known.leading = known.parameters[0].tensor if known.parameters else None
        known.fact.groups = tuple(tuple(entry.index for entry in group) for group in entries)
        for position, entry in enumerate(known.parameters):
            if known.index not in entry.optimizers:
                entry.optimizers.append(known.index)
            if entry.model is None and not entry.name:
                entry.name = f"{known.fact.name} parameter {position}"

    def _find_models(self, tensors: list[Tensor]) -> None:
        """Look for the models that own `tensors`, where some are not known yet."""
        unknown = {id(tensor) for tensor in tensors if id(tensor) not in self._parameters}
        if not unknown:
            return
        # The largest first: where two hold the same parameter, it is named after the larger.
        found = [(root, {id(one.tensor) for one in owned(root)}) for root in live_roots()]
        for root, tensors_of_it in sorted(found, key=lambda pair: -len(pair[1])):
            if not unknown.isdisjoint(tensors_of_it):
                model = LiveModel(root)
                self.models.append(model)
                self._take_in(model)
                self._watch_modes(model)
                for tensor, holder in model.hidden():
                    self._hidden_tensors[id(tensor)] = (weakref.ref(tensor), holder)

    def _take_in(self, model: LiveModel) -> None:
        for one in model.parameters():
            if id(one.tensor) not in self._parameters:
                known = self._known(one.tensor)
                known.name, known.module, known.model = one.name, one.module, model

    def _watch_modes(self, model: LiveModel) -> None:
        root = self.models.index(model)
        pretrained = model.pretrained()
        for name, module in model.mode_modules():
            self.run.mode_modules.append(
                ModeModule(
                    name or model.name,
                    type(module).__name__,
                    model.name,
                    root,
                    pretrained=id(module) in pretrained,
                )
            )
            self.modes.append(weakref.ref(module))

    def _known(self, tensor: Tensor) -> KnownParameter:
        known = self._parameters.get(id(tensor))
        if known is None:
            first, stride = self._first_values(tensor)
            known = KnownParameter(len(self._order), tensor, "", None, None, first, stride)
            self._parameters[id(tensor)] = known
            self._order.append(known)
        return known

    def _first_values(self, tensor: Tensor) -> tuple[Tensor | None, int]:
        try:
            size = tensor.numel()
            stride = 1
            if self._kept_values + size > _KEPT_VALUES:
                stride = max(1, size // _SAMPLE)
            self._kept_values += size // stride
            return _values(tensor, stride).clone(), stride
        except (RuntimeError, ValueError, NotImplementedError):
            # Lazy, meta and sharded parameters have no values to keep.
            return None, 1

    def _holder(self, tensor: Tensor) -> str:
        ref, holder = self._hidden_tensors.get(id(tensor), (None, ""))
        return holder if ref is not None and ref() is tensor else ""

    def _is_late(self, known: KnownParameter) -> bool:
        # Frozen ones are many, and nobody asks about them.
        if known.optimizers or known.model is None or not known.reached:
            return False
        others = [one.tensor for one in self._order if one.model is known.model]
        return self.built.came_later(known.tensor, others)

    def _describe(self, known: KnownParameter, several: bool) -> record.Parameter:
        gradient = known.tensor.grad
        if gradient is not None and not known.had_nonzero_gradient:
            known.had_gradient = True
            known.had_nonzero_gradient = (
                bool(gradient.count_nonzero()) if _dense(gradient) else True
            )
        moved, change = _movement(known)
        model = known.model.name if known.model else None
        name = known.name or f"parameter {known.index}"
        return record.Parameter(
            name=f"{model}.{name}" if several and model else name,
            model=model,
            module=known.module,
            shape=tuple(known.tensor.shape),
            trainable=known.tensor.requires_grad,
            optimizers=tuple(known.optimizers),
            reached=known.reached,
            had_gradient=known.had_gradient,
            had_nonzero_gradient=known.had_nonzero_gradient,
            moved=moved,
            relative_change=change,
            hidden_in=self._holder(known.tensor),
            late=self._is_late(known),
            claimed=not known.optimizers and self.built.claims(known.tensor),
            root=self.models.index(known.model) if known.model in self.models else None,
        )


def note_state(known: KnownOptimizer, optimizer: Optimizer) -> None:
    """Remember, after the first step, whether an optimizer keeps a state."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    known.fact.stateful = any(value is not None for value in values)


def _rate(group: dict[str, Any]) -> float:
    # Some optimizers choose their rate themselves, and keep None here.
    rate = group.get("lr")
    return math.nan if rate is None else float(rate)


def _dense(tensor: Tensor) -> bool:
    import torch

    return tensor.layout == torch.strided


def _values(tensor: Tensor, stride: int) -> Tensor:
    values = tensor.detach()
    return values if stride == 1 else values.flatten()[::stride]


def _movement(known: KnownParameter) -> tuple[bool | None, float | None]:
    import torch

    if known.first is None:
        return None, None
    try:
        now = _values(known.tensor, known.stride)
        if now.shape != known.first.shape:
            return True, None
        if torch.equal(now, known.first):
            return False, 0.0
        first = known.first.to(now.device).double()
        size = float(first.norm())
        change = float((now.double() - first).norm())
        return True, change / size if size else None
    except (RuntimeError, NotImplementedError):
        # Sharded and quantized tensors do not support all of this.
        return None, None
