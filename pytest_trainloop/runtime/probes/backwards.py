"""See each backward: `loss.backward()` and `torch.autograd.backward(...)`.

`Tensor.backward` looks `torch.autograd.backward` up when it is called, so one replacement
sees both, and every framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import enumerate as enumerate_threads
from threading import get_ident
from types import FunctionType
from typing import TYPE_CHECKING, Any, SupportsFloat, cast

from pytest_trainloop.runtime.criteria import note_criteria
from pytest_trainloop.runtime.direction import pull_of
from pytest_trainloop.runtime.models import reached_leaves
from pytest_trainloop.runtime.place import CallSite
from pytest_trainloop.runtime.probes.scaling import scale_of
from pytest_trainloop.runtime.record import Backward, next_close

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_trainloop.runtime.observe import Observer

#: How many graphs are looked into of those that are back-propagated at one place.
_LOOKS = 8


def install(observer: Observer) -> None:
    """Replace `torch.autograd.backward` and `torch.autograd.grad`."""
    import torch

    watch = _Backwards(observer)
    observer.patches.replace(torch.autograd, "backward", watch.replace_backward)
    observer.patches.replace(torch.autograd, "grad", watch.replace_grad)


class _Backwards:
    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.close_at = 1
        self.site = CallSite()
        #: The threads in which a backward runs, by their identity.
        self.running: set[int] = set()
        #: How often backward was called at each place, up to the looks it is worth.
        self.places: dict[str, int] = {}

    def replace_backward(self, original: Callable[..., Any]) -> FunctionType:
        patches = self.observer.patches

        def backward(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not patches.active or (self.running and self.is_inside()):
                return original(*args, **kwargs)
            event = self.begin(args, kwargs)
            thread = get_ident()
            self.running.add(thread)
            try:
                result = original(*args, **kwargs)
            except BaseException:
                self.discard(event)
                raise
            finally:
                self.running.discard(thread)
            if self.observer.stale.marks:
                self.observer.stale.after_backward()
            if self.observer.scalers:
                scaled = event.scale != 1.0
                self.observer.scaled = self.observer.people.gradients() if scaled else []
            return result

        return cast("FunctionType", backward)

    def is_inside(self) -> bool:
        """Whether what is called now is part of a backward: activation checkpointing calls one.

        It does so in the thread of that backward, or in one that autograd has for a device, of
        which Python does not know.
        """
        thread = get_ident()
        return thread in self.running or all(one.ident != thread for one in enumerate_threads())

    def replace_grad(self, original: Callable[..., Any]) -> FunctionType:
        def grad(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not self.observer.patches.active or (self.running and self.is_inside()):
                return original(*args, **kwargs)
            self.observer.run.gradient_calls += 1
            thread = get_ident()
            # Under a torch function mode, such as a default device, `grad` calls itself anew.
            self.running.add(thread)
            try:
                return original(*args, **kwargs)
            finally:
                self.running.discard(thread)

        return cast("FunctionType", grad)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Backward:
        observer = self.observer
        given: Any = args[0] if args else kwargs.get("tensors")
        losses: list[Tensor] = list(given) if isinstance(given, (list, tuple)) else [given]
        weight = args[1] if len(args) > 1 else kwargs.get("grad_tensors")
        where = self.site.now()
        looks = self.places.get(where, 0)
        if looks < _LOOKS:
            self.look_at_graph(losses, where, looks)
        if observer.at_next_backward:
            waiting, observer.at_next_backward = observer.at_next_backward, []
            for act in waiting:
                act()
        scale = scale_of(losses[0]) if observer.scalers and losses else 1.0
        observer.backwards += 1
        # By position: made in every step.
        event = Backward(
            _weighted(losses[0], None)
            if scale == 1.0 and weight is None and len(losses) == 1
            else _value(losses, _as_list(weight), scale),
            scale,
            where,
            observer.stepping[0].known.index if observer.stepping else None,
        )
        if type(event.value) is float and not -math.inf < event.value < math.inf:
            observer.has_lost = True
        if observer.backwards == self.close_at:
            self.look_closely(event, losses, is_last=not _is_used_again(args, kwargs))
        observer.run.events.append(event)
        observer.pending.append(event)
        if observer.stale.marks:
            observer.stale.before_backward()
        for act_before in observer.before_backward:
            act_before(event)
        return event

    def look_closely(self, event: Backward, losses: list[Tensor], *, is_last: bool) -> None:
        self.close_at = next_close(self.close_at)
        event.in_eval_mode = self.modes()
        if is_last:
            self.observer.graphs.mark(losses)

    def look_at_graph(self, losses: list[Tensor], where: str, looks: int) -> None:
        people, run = self.observer.people, self.observer.run
        self.places[where] = looks + 1
        if not looks:
            people.saw_leaves([leaf for loss in losses for leaf in reached_leaves(loss)])
        note_criteria(run.criteria, losses, where, people.models)
        run.pulls.append(pull_of(losses, where))

    def discard(self, event: Backward) -> None:
        if event in self.observer.pending:
            self.observer.pending.remove(event)

    def modes(self) -> tuple[int, ...]:
        modules = (ref() for ref in self.observer.people.modes)
        return tuple(i for i, module in enumerate(modules) if module and not module.training)


def _is_used_again(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the graph is to outlive this backward: `retain_graph`, `create_graph`."""
    asked = (*args[2:4], kwargs.get("retain_graph"), kwargs.get("create_graph"))
    return any(asked)


def _as_list(tensors: Any) -> list[Any]:
    if tensors is None:
        return []
    return list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]


def _value(
    losses: list[Tensor], weights: list[Tensor | None], scale: float
) -> SupportsFloat | None:
    """The sum of what is back-propagated, each weighted with the gradient it is given."""
    total: Any = None
    for position, loss in enumerate(losses):
        weight = weights[position] if position < len(weights) else None
        part = _weighted(loss, weight)
        if part is None:
            return None
        total = part if total is None else total + part
    if total is None or scale == 1.0:
        return cast("SupportsFloat | None", total)
    return cast("SupportsFloat", total / scale)


def _weighted(loss: Tensor, weight: Tensor | None) -> Any:
    try:
        if weight is None and loss.is_cpu:
            return loss.item()
        value = loss.detach() if weight is None else (loss.detach() * weight.detach()).sum()
        # Elsewhere than on the CPU, reading the value would wait for the device.
        return value.item() if value.is_cpu else value.clone()
    except RuntimeError:
        # No single value to read: a tensor that is being traced or mapped over.
        return None
