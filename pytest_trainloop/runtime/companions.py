"""Does what a model gives for a sample depend on the other samples of its batch?

A call is made again with every sample replaced by a copy of one of them: batch norm in train
mode, a softmax over the batch or a scale taken from it then gives that one something else.
The global generators and the buffers are put back each time, so that nothing else differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_trainloop.runtime.calls import Invocation, ModelCall, relative_difference, tensors_in
from pytest_trainloop.runtime.seed import put_states, take_states

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_PLAIN = (int, float, bool, str, bytes, type(None))


@dataclass(frozen=True, slots=True)
class Mixing:
    """What a sample's companions do to it."""

    #: The sample, and by how much a value of its output differs, relative to the largest.
    sample: int
    difference: float
    #: The first module, in the order of the calls, whose output for the sample differs, and
    #: its class; empty where none does but the whole.
    layer: str
    layer_kind: str


@dataclass(frozen=True, slots=True)
class _Seen:
    name: str
    kind: str
    output: Tensor


@dataclass(frozen=True, slots=True)
class Unclear:
    """It cannot be told, for this reason."""

    reason: str


def mixing(facts: ModelCall, invocation: Invocation, tolerance: float) -> Mixing | Unclear | None:
    """How the samples of a call depend on each other; None if they do not.

    Args:
        facts: what was seen of the call.
        invocation: the call.
        tolerance: relative to the largest value of an output, a difference that is rounding.
    """
    size = _batch_size(facts, invocation)
    if isinstance(size, Unclear):
        return size
    from torch import Tensor

    compared = False
    for sample in dict.fromkeys((0, size - 1)):
        outputs, layers = _again(invocation, Tensor.clone)
        alone, layers_alone = _again(invocation, partial(_copies_of, sample, size))
        for one, other in zip(outputs, alone, strict=False):
            if _is_similarity(other, sample, size):
                continue
            difference = _difference(one, other, sample, size)
            compared = compared or difference is not None
            if difference is not None and difference > tolerance:
                layer, kind = _first_mixed(layers, layers_alone, sample, size, tolerance)
                return Mixing(sample, difference, layer, kind)
    return None if compared else Unclear("no output has a row for each sample")


def _batch_size(facts: ModelCall, invocation: Invocation) -> int | Unclear:
    """How many samples a call is about, where dimension 0 is surely that of the samples."""
    from torch import Tensor
    from torch.utils import _pytree

    leaves = _pytree.tree_leaves((invocation.args, invocation.kwargs))
    given = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if len(given) != sum(not isinstance(leaf, _PLAIN) for leaf in leaves):
        return Unclear("it is given something else than tensors")
    shapes = [tensor.shape for tensor in given if tensor.ndim]
    sizes = {shape[0] for shape in shapes}
    known = facts.batch_size
    if not sizes:
        return Unclear("it is given no batch")
    if known not in sizes and len(sizes) > 1:
        return Unclear("its inputs differ in their first dimension")
    if _scales_by_the_batch(invocation.module):
        return Unclear("its quantized layers take their scale from the batch")
    size = known if known is not None and known in sizes else sizes.pop()
    if _takes_time_first(invocation.module):
        if size != known or any(size in shape[1:2] for shape in shapes):
            return Unclear("its first dimension may be time")
    return size if size > 1 else Unclear("it is given one sample at a time")


def _takes_time_first(module: Module) -> bool:
    return any(getattr(one, "batch_first", None) is False for one in module.modules())


def _scales_by_the_batch(module: Module) -> bool:
    home = "torch.ao.nn.quantized.dynamic"
    return any(type(one).__module__.startswith(home) for one in module.modules())


def _copies_of(sample: int, size: int, tensor: Tensor) -> Tensor:
    if not tensor.ndim or tensor.shape[0] != size:
        return tensor.clone()
    return tensor[[sample] * size].clone()


def _again(invocation: Invocation, change: Any) -> tuple[list[Tensor], list[_Seen]]:
    """The outputs of a call with changed inputs, and of each module below it, in their order."""
    import torch
    from torch.utils import _pytree

    def changed(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, torch.Tensor) else leaf

    args, kwargs = _pytree.tree_map(changed, (invocation.args, invocation.kwargs))
    module = invocation.module
    with torch.no_grad(), _put_back(module), _seen(module) as seen:
        result = Invocation(module, invocation.call, args, kwargs).make()
    return tensors_in(result), seen


@contextmanager
def _put_back(module: Module) -> Iterator[None]:
    states = take_states()
    buffers = [(one, one.clone()) for one in module.buffers()]
    try:
        yield
    finally:
        put_states(states)
        for one, value in buffers:
            one.copy_(value)


@contextmanager
def _seen(module: Module) -> Iterator[list[_Seen]]:
    """Collect what the modules below give, in the order in which they are done."""
    seen: list[_Seen] = []

    def see(name: str, one: Module, _: Any, output: Any) -> None:
        tensors = tensors_in(output)
        if tensors:
            seen.append(_Seen(name, type(one).__name__, tensors[0].detach().clone()))

    handles = [
        one.register_forward_hook(partial(see, name))
        for name, one in module.named_modules()
        if name
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _first_mixed(
    seen: list[_Seen], alone: list[_Seen], sample: int, size: int, tolerance: float
) -> tuple[str, str]:
    for one, other in zip(seen, alone, strict=False):
        if one.name != other.name:
            break
        difference = _difference(one.output, other.output, sample, size)
        if difference is not None and difference > tolerance:
            return one.name, one.kind
    return "", ""


def _difference(one: Tensor, other: Tensor, sample: int, size: int) -> float | None:
    """How far the outputs for a sample are apart; None where they have no row for it."""
    if one.shape != other.shape or not one.ndim or one.shape[0] != size or not one.numel():
        return None
    if not one.is_floating_point():
        return None
    return relative_difference(one[sample], other[sample])


def _is_similarity(alone: Tensor, sample: int, size: int) -> bool:
    """Whether each sample is compared with each: others are meant to be part of that.

    Among copies of itself, a sample is as similar to all of them.
    """
    return alone.shape == (size, size) and _is_constant(alone[sample])


def _is_constant(row: Tensor) -> bool:
    return bool((row - row[0]).abs().max() <= 1e-6 * row.abs().max())  # rounding of float32
