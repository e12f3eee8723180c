"""See gradients cleared: `optimizer.zero_grad()` and `model.zero_grad()`."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.record import Clearing, next_close

if TYPE_CHECKING:
    from pytest_trainloop.runtime.observe import Observer


def install(observer: Observer) -> None:
    """Replace `Optimizer.zero_grad` and `Module.zero_grad`."""
    from torch.nn import Module
    from torch.optim import Optimizer

    def replace(original: Callable[..., Any]) -> FunctionType:
        number, close = 0, 1
        by_optimizer = original.__qualname__.startswith("Optimizer")
        people, events = observer.people, observer.run.events

        def zero_grad(cleared: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            nonlocal number, close
            result = original(cleared, *args, **kwargs)
            if observer.patches.active:
                if observer.pending and by_optimizer and not observer.stepping:
                    observer.left_out[id(cleared)] = len(observer.pending)
                known = people.known_optimizer(cleared) if by_optimizer else None
                number += 1
                if known is not None and number != close:
                    events.append(known.clearing)
                    return result
                index = None if known is None else known.index
                where = ""
                if number == close:
                    close = next_close(number)
                    where = observer.place(1)
                events.append(Clearing(index, type(cleared).__name__, by_optimizer, where))
            return result

        return cast("FunctionType", zero_grad)

    observer.patches.replace(Optimizer, "zero_grad", replace)
    observer.patches.replace(Module, "zero_grad", replace)
