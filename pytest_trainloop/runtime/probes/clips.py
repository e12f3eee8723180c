"""See gradients clipped by `torch.nn.utils.clip_grad_norm_`, however it was imported.

What the function calls in turn is replaced, so a name imported before the run is seen too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.place import CallSite
from pytest_trainloop.runtime.record import Clip

if TYPE_CHECKING:
    from pytest_trainloop.runtime.observe import Observer


def install(observer: Observer) -> None:
    """Replace `torch.nn.utils.clip_grad._clip_grads_with_norm_`; not seen before torch 2.6."""
    from torch.nn.utils import clip_grad

    note = _Clips(observer).note

    def replace(original: Callable[..., Any]) -> FunctionType:
        def _clip_grads_with_norm_(
            parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any
        ) -> Any:
            __tracebackhide__ = True
            result = original(parameters, max_norm, total_norm, *args, **kwargs)
            if observer.patches.active and math.isfinite(max_norm):
                note(parameters, float(max_norm))
            return result

        return cast("FunctionType", _clip_grads_with_norm_)

    observer.patches.replace(clip_grad, "_clip_grads_with_norm_", replace)


class _Clips:
    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.site = CallSite()
        #: What was clipped last, by identity, and the numbers of these parameters: mostly, the
        #: same are clipped again. Those that have numbers are held as long as the run is watched.
        self.last: tuple[int, ...] = ()
        self.indices: tuple[int, ...] | None = ()

    def note(self, parameters: Any, max_norm: float) -> None:
        tensors = parameters if isinstance(parameters, (list, tuple)) else [parameters]
        with_gradient = [tensor for tensor in tensors if tensor.grad is not None]
        clipped = tuple(map(id, with_gradient))
        if clipped != self.last or self.indices is None:
            self.last, self.indices = clipped, self.observer.people.indices(with_gradient)
        self.observer.run.events.append(Clip(max_norm, self.indices, self.site.now()))
