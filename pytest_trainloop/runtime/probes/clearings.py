"""See gradients cleared: `optimizer.zero_grad()` and `model.zero_grad()`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.record import Clearing, looks_closely

if TYPE_CHECKING:
    from pytest_trainloop.runtime.observe import Observer


def install(observer: Observer) -> None:
    """Replace `Optimizer.zero_grad` and `Module.zero_grad`."""
    from torch.nn import Module
    from torch.optim import Optimizer

    def replace(original: Callable[..., Any]) -> FunctionType:
        numbers = count(1)
        by_optimizer = original.__qualname__.startswith("Optimizer")

        def zero_grad(cleared: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            result = original(cleared, *args, **kwargs)
            if observer.patches.active:
                known = observer.people.known_optimizer(cleared) if by_optimizer else None
                index = None if known is None else known.index
                kind = type(cleared).__name__
                where = observer.place(1) if looks_closely(next(numbers)) else ""
                if observer.pending and by_optimizer and not observer.stepping:
                    observer.left_out[id(cleared)] = len(observer.pending)
                observer.run.events.append(Clearing(index, kind, by_optimizer, where))
            return result

        return cast("FunctionType", zero_grad)

    observer.patches.replace(Optimizer, "zero_grad", replace)
    observer.patches.replace(Module, "zero_grad", replace)
