"""See each call of a model from outside of any other module, and act on it.

For checks only, which run a body to judge it: a watched run never looks at forwards so
closely. `Module.__call__` is replaced; what torch.compile traces passes through.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.fingerprint import Digest, digest
from pytest_trainloop.runtime.models import LiveModel
from pytest_trainloop.runtime.observe import Listener
from pytest_trainloop.runtime.record import Batch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from pytest_trainloop.runtime.observe import Observer

#: Calls whose outputs are kept, to compare them with those of another run: so many of the
#: first, and of the first without gradients.
KEPT_CALLS = 8
#: The fingerprint of a tensor that has no values to be read.
UNREADABLE: Digest = b""
#: Latest events among which the latest batch is looked for.
_LATEST = 16


@dataclass(slots=True)
class ModelCall:
    """A module that has weights or buffers was called, not by another module."""

    #: What the user's code calls it, and its class.
    model: str
    kind: str
    #: Which module it is, counted in the order of their first calls.
    which: int
    where: str
    #: Its `training`; its modules that depend on the mode, as "`name` (Class)".
    training: bool
    in_train_mode: tuple[str, ...]
    in_eval_mode: tuple[str, ...]
    grad_enabled: bool
    #: How the latest batch was asked for: whether gradients were enabled, and how many samples
    #: the loader's batches have. None without a data loader.
    batch_grad_enabled: bool | None
    batch_size: int | None
    #: Backward calls before it.
    backwards: int
    #: Each tensor that it was given; for the first of them each sample, and the sizes of one.
    inputs: tuple[Digest, ...] = ()
    samples: tuple[Digest, ...] = ()
    sizes: tuple[int, ...] = ()
    #: Whether its output could be back-propagated.
    builds_graph: bool = False
    #: Buffers that had other values after it.
    changed: tuple[str, ...] = ()
    #: What it gave, and the weights that it gave it with, for some of the first calls.
    outputs: tuple[Tensor, ...] = ()
    weights: tuple[Digest, ...] = ()

    def evaluates(self, body_trains: bool) -> bool:
        """Whether this is surely no part of training, in a body that trains or does not."""
        if not body_trains:
            return True
        return not self.grad_enabled and (not self.training or self.batch_grad_enabled is False)


@dataclass(slots=True)
class Invocation:
    """A call that is about to be made: it can be made with other arguments, and again."""

    module: Any
    call: Callable[..., Any]
    args: Any
    kwargs: Any

    def make(self) -> Any:
        """Make the call as the user's code would have made it."""
        __tracebackhide__ = True
        return self.call(self.module, *self.args, **self.kwargs)


class ModelCalls(Listener):
    """Collects the calls of models in a run.

    Subclass it to do something else than to make each call: see `make`.
    """

    def __init__(self) -> None:
        self.calls: list[ModelCall] = []
        self._inside = False
        self._without_gradients = 0
        self._observer: Observer | None = None
        self._names: dict[int, tuple[weakref.ref[Module], LiveModel, int]] = {}
        self._models = 0

    def begin(self, observer: Observer) -> None:
        """Replace `Module.__call__` until the run ends."""
        from torch.nn import Module

        self._observer = observer
        observer.patches.replace(Module, "__call__", self._replace_call)

    def make(self, number: int, facts: ModelCall, invocation: Invocation) -> Any:
        """Make call `number` of the run, counted from 0, and return what it returns."""
        __tracebackhide__ = True
        return invocation.make()

    def name(self, module: Module) -> str:
        """What the user's code called a module when it called it; else its class."""
        known = self._names.get(id(module))
        same = known is not None and known[0]() is module
        return known[1].name if known is not None and same else type(module).__name__

    def _replace_call(self, original: Callable[..., Any]) -> FunctionType:
        import torch

        is_compiling = torch.compiler.is_compiling
        level_of_transforms = torch._C._functorch.maybe_current_level

        def __call__(module: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
            __tracebackhide__ = True
            if is_compiling() or self._inside or not _has_state(module):
                return original(module, *args, **kwargs)
            if level_of_transforms() is not None:
                # What torch.func maps over or differentiates has no values of its own.
                return original(module, *args, **kwargs)
            self._inside = True
            try:
                return self._see(Invocation(module, original, args, kwargs))
            finally:
                self._inside = False

        return cast("FunctionType", __call__)

    def _see(self, invocation: Invocation) -> Any:
        __tracebackhide__ = True
        from torch.nn import parameter

        facts = self._describe(invocation)
        number = len(self.calls)
        self.calls.append(facts)
        self._without_gradients += not facts.grad_enabled
        keep = number < KEPT_CALLS or self._without_gradients <= KEPT_CALLS
        if keep:
            facts.weights = tuple(map(_fingerprint, invocation.module.parameters()))
        buffers = [
            (name, one, one.clone())
            for name, one in invocation.module.named_buffers()
            if not parameter.is_lazy(one)
        ]
        result = self.make(number, facts, invocation)
        outputs = tensors_in(result)
        facts.builds_graph = any(one.requires_grad for one in outputs)
        facts.changed = tuple(name for name, now, then in buffers if not same_values(now, then))
        if keep:
            facts.outputs = tuple(one.detach().clone() for one in outputs)
        return result

    def _describe(self, invocation: Invocation) -> ModelCall:
        import torch

        model, which = self._model(invocation.module)
        run = cast("Observer", self._observer).run
        batch = next(
            (one for one in run.events[: -_LATEST - 1 : -1] if isinstance(one, Batch)), None
        )
        modes = [
            (f"`{name or model.name}` ({type(module).__name__})", module.training)
            for name, module in model.mode_modules()
        ]
        given = tensors_in((invocation.args, invocation.kwargs))
        first = next((tensor for tensor in given if tensor.ndim), None)
        return ModelCall(
            model=model.name,
            kind=model.kind,
            which=which,
            where=cast("Observer", self._observer).place(),
            training=invocation.module.training,
            in_train_mode=tuple(name for name, training in modes if training),
            in_eval_mode=tuple(name for name, training in modes if not training),
            grad_enabled=torch.is_grad_enabled(),
            batch_grad_enabled=None if batch is None else batch.grad_enabled,
            batch_size=None if batch is None else run.loaders[batch.loader].batch_size,
            backwards=len(run.backwards),
            inputs=tuple(map(_fingerprint, given)),
            samples=() if first is None else tuple(map(_fingerprint, first)),
            sizes=() if first is None else tuple(first.shape[1:]),
        )

    def _model(self, module: Any) -> tuple[LiveModel, int]:
        known = self._names.get(id(module))
        if known is None or known[0]() is not module:
            known = weakref.ref(module), LiveModel(module), self._models
            self._names[id(module)] = known
            self._models += 1
        return known[1], known[2]


def _has_state(module: Module) -> bool:
    """Whether a module is more than a function: it has weights or buffers, or is quantized."""
    if next(module.parameters(), None) is not None:
        return True
    if type(module).__module__.startswith("torch.ao.quantization"):
        # What quantizes a model collects numbers in buffers; that is its purpose.
        return False
    quantized = (type(one).__module__.startswith("torch.ao.nn") for one in module.modules())
    return next(module.buffers(), None) is not None or any(quantized)


def _fingerprint(tensor: Tensor) -> Digest:
    """The fingerprint of a tensor, or `UNREADABLE`."""
    try:
        return digest(tensor)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        # On the meta device, nested, or not initialised so far.
        return UNREADABLE


def tensors_in(thing: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples, mappings and what else torch can take apart."""
    import torch
    from torch.utils import _pytree

    found: list[Tensor] = []
    for leaf in _pytree.tree_leaves(thing):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            # Tokenizers make a mapping of their own, which torch takes for one thing.
            found += tensors_in(dict(leaf))
    return found


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, bit for bit."""
    import torch

    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    # Not-a-number equals nothing, but has a fingerprint.
    return torch.equal(one, other) or digest(one) == digest(other)


def relative_difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of two values, relative to the largest value.

    1.0 where shapes or kinds differ; not-a-number counts as 0.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return 1.0
    if not one.numel():
        return 0.0
    if one.is_complex():
        return max(
            relative_difference(one.real, other.real), relative_difference(one.imag, other.imag)
        )
    ours, theirs = one.double().nan_to_num(), other.double().nan_to_num()
    largest = float(ours.abs().max())
    difference = float((ours - theirs).abs().max())
    return difference / largest if largest else float(difference > 0)
