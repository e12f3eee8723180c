"""See schedulers of torch move on, those that keep the `step` of their base class.

Replaced is what `LRScheduler.step` calls, so that torch's own warnings keep the place that they
blame. The step that a scheduler makes when it is built, and those of a scheduler inside
of another one, are not the loop's.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.place import CallSite
from pytest_trainloop.runtime.record import Scheduler, SchedulerStep

if TYPE_CHECKING:
    from pytest_trainloop.runtime.observe import Observer


def install(observer: Observer) -> None:
    """Replace `LRScheduler._update_lr`; not seen before torch 2.9."""
    from torch.optim.lr_scheduler import LRScheduler

    known: dict[int, tuple[weakref.ref[Any], int]] = {}
    site = CallSite()

    def replace(original: Callable[..., Any]) -> FunctionType:
        def _update_lr(scheduler: Any, epoch: Any = None) -> Any:
            __tracebackhide__ = True
            result = original(scheduler, epoch)
            if observer.patches.active and _is_called_by_the_loop():
                index = _index(observer, scheduler, known)
                told = epoch is not None
                observer.run.events.append(SchedulerStep(index, site.now(), told))
            return result

        return cast("FunctionType", _update_lr)

    observer.patches.replace(LRScheduler, "_update_lr", replace)


def _is_called_by_the_loop() -> bool:
    step = sys._getframe(2)
    caller = step.f_back
    return caller is not None and caller.f_code.co_filename != step.f_code.co_filename


def _index(
    observer: Observer, scheduler: Any, known: dict[int, tuple[weakref.ref[Any], int]]
) -> int:
    schedulers = observer.run.schedulers
    ref, index = known.get(id(scheduler), (None, -1))
    if ref is None or ref() is not scheduler:
        horizon = getattr(scheduler, "total_steps", getattr(scheduler, "T_max", None))
        # Its own construction counted 1, and the step just made 1 more.
        fresh = scheduler._step_count == 2  # noqa: PLR2004  # as said
        own = type(scheduler).__module__.startswith("torch.")
        kind = type(scheduler).__name__ if own else "LRScheduler"
        schedulers.append(Scheduler(kind, None, fresh, horizon))
        index = len(schedulers) - 1
        known[id(scheduler)] = (weakref.ref(scheduler), index)
    if schedulers[index].optimizer is None:
        optimizer = observer.people.known_optimizer(scheduler.optimizer)
        schedulers[index].optimizer = None if optimizer is None else optimizer.index
    return index
