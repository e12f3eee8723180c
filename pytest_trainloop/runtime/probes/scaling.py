"""See loss scaling: which losses a `GradScaler` scaled, and which steps it skipped."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.record import SkippedStep, Unscaling

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_trainloop.runtime.observe import Observer

#: Key under which a graph node carries the scale; it lives and dies with the node.
_KEY = "pytest_trainloop.scale"
#: How far behind the loss its scaling may lie: `scaler.scale(loss).sum() / 2`.
_DEPTH = 4


def install(observer: Observer) -> None:
    """Replace `GradScaler.scale`, `GradScaler.unscale_` and `GradScaler.step`."""
    from torch.amp import GradScaler

    def replace_scale(original: Callable[..., Any]) -> FunctionType:
        def scale(scaler: Any, outputs: Any) -> Any:
            __tracebackhide__ = True
            scaled = original(scaler, outputs)
            if observer.patches.active and scaler.is_enabled():
                observer.scalers[id(scaler)] = scaler
                _note(scaled, float(scaler.get_scale()))
            return scaled

        return cast("FunctionType", scale)

    def replace_step(original: Callable[..., Any]) -> FunctionType:
        def step(scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not observer.patches.active or not scaler.is_enabled():
                return original(scaler, optimizer, *args, **kwargs)
            observer.scaler_stepping.add(id(optimizer))
            before = len(observer.run.events)
            try:
                result = original(scaler, optimizer, *args, **kwargs)
            finally:
                observer.scaler_stepping.discard(id(optimizer))
            if len(observer.run.events) == before:
                _note_skipped(observer, optimizer)
            return result

        return cast("FunctionType", step)

    def replace_unscale(original: Callable[..., Any]) -> FunctionType:
        def unscale_(scaler: Any, optimizer: Any) -> Any:
            __tracebackhide__ = True
            result = original(scaler, optimizer)
            # `step` calls it too, for gradients that are still scaled then.
            if observer.patches.active and id(optimizer) not in observer.scaler_stepping:
                observer.run.events.append(Unscaling())
                observer.scaled = []
            return result

        return cast("FunctionType", unscale_)

    observer.patches.replace(GradScaler, "scale", replace_scale)
    observer.patches.replace(GradScaler, "unscale_", replace_unscale)
    observer.patches.replace(GradScaler, "step", replace_step)


def scale_of(loss: Tensor) -> float:
    """What a `GradScaler` multiplied `loss` with; 1.0 if none did."""
    node: Any = loss.grad_fn
    for _ in range(_DEPTH):
        if node is None:
            break
        scale = node.metadata.get(_KEY)
        if scale is not None:
            return cast("float", scale)
        node = node.next_functions[0][0] if node.next_functions else None
    return 1.0


def _note(scaled: Any, scale: float) -> None:
    if isinstance(scaled, (list, tuple)):
        for one in scaled:
            _note(one, scale)
    elif (node := getattr(scaled, "grad_fn", None)) is not None:
        node.metadata[_KEY] = scale


def _note_skipped(observer: Observer, optimizer: Any) -> None:
    known = observer.people.optimizer(optimizer)
    observer.run.events.append(SkippedStep(known.index))
    # What was back-propagated for it is used up: the next step must not count it again.
    observer.pending.clear()
    observer.left_out.clear()
    observer.stale.unmark(known)
