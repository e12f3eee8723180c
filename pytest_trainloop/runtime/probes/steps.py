"""See each optimizer step through torch's own global hooks, and where optimizers are built.

The hooks fire for every `torch.optim.Optimizer`, also one built before the watch. They fire
twice where a subclass calls `super().step()` or an optimizer wraps another, so the innermost
calls are left out; and before a closure runs, so the loss is read afterwards.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.participants import note_state
from pytest_trainloop.runtime.record import Step, looks_closely

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from pytest_trainloop.runtime.observe import Observer
    from pytest_trainloop.runtime.participants import KnownOptimizer
    from pytest_trainloop.runtime.record import Backward

#: The optimizer that counts how often it evaluates closures.
_COUNTING = "LBFGS"


def install(observer: Observer) -> None:
    """Register the two global step hooks and replace `Optimizer.__init__`."""
    from torch.optim import optimizer

    watch = _Steps(observer)
    for register, hook in (
        (optimizer.register_optimizer_step_pre_hook, watch.before),
        (optimizer.register_optimizer_step_post_hook, watch.after),
    ):
        observer.patches.on_exit(register(hook).remove)
    observer.patches.replace(optimizer.Optimizer, "__init__", watch.replace_init)


@dataclass(slots=True)
class _Open:
    """A step that has begun: `frame` identifies the call, without keeping it alive."""

    optimizer: Any
    frame: int
    #: None for a step inside of another one of the same parameters.
    step: Step | None = None
    known: KnownOptimizer | None = None
    #: How often the optimizer had evaluated closures before this step, and how many backward
    #: calls waited for it.
    evaluations: int = 0
    pending: int = 0
    close: bool = False


class _Steps:
    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.open: list[_Open] = []

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        __tracebackhide__ = True
        observer = self.observer
        if not observer.patches.active:
            return
        frame = sys._getframe(1)
        if self.open:
            self.forget_broken_off(frame)
        if self.open and self.is_part_of_another(optimizer):
            self.open.append(_Open(optimizer, id(frame)))
            return
        known = observer.people.optimizer(optimizer)
        step = self.describe(optimizer, known)
        close = looks_closely(step.number)
        self.look(step, optimizer, known, close=close)
        evaluations = _evaluations(optimizer) if known.fact.kind == _COUNTING else 0
        pending = len(observer.pending)
        self.open.append(_Open(optimizer, id(frame), step, known, evaluations, pending, close))
        observer.stepping.append(optimizer)
        for listener in observer.listeners:
            listener.before_step(optimizer, step)

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        __tracebackhide__ = True
        observer = self.observer
        if not observer.patches.active or not self.open:
            return
        opened = self.open.pop()
        step, known = opened.step, opened.known
        if step is None or known is None:
            return
        observer.stepping.pop()
        if len(observer.pending) > opened.pending:
            # A closure made the gradients after the first look.
            self.look(step, optimizer, known, close=opened.close)
        if observer.stale.marks:
            observer.stale.unmark(known)
        self.take_backwards(step, optimizer)
        if known.fact.kind == _COUNTING:
            _count_first_evaluation(step, _evaluations(optimizer) - opened.evaluations)
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None:
            step.applied = not bool(found_inf)
        known.fact.steps = step.number
        if known.parameters:
            known.written = known.parameters[0].tensor._version
        observer.run.events.append(step)
        if opened.close:
            self.after_close_step(step, optimizer, known)
        if looks_closely(step.number + 1):
            observer.stale.mark(known)
        for listener in observer.listeners:
            listener.after_step(optimizer, step)

    def after_close_step(self, step: Step, optimizer: Optimizer, known: KnownOptimizer) -> None:
        if step.number == 1:
            note_state(known, optimizer)
        if step.backwards:
            self.observer.graphs.after_step(step.number, step.backwards[-1].where)

    def describe(self, optimizer: Optimizer, known: KnownOptimizer) -> Step:
        observer = self.observer
        groups = optimizer.param_groups
        rate = groups[0].get("lr") if len(groups) == 1 else None
        rates = (rate,) if type(rate) is float else tuple(map(_rate, groups))
        if rates != known.rates:
            known.rates = rates
        # By position: made in every step.
        step = Step(
            known.index,
            known.fact.steps + 1,
            (),
            known.rates,
            observer.place(2),
            id(optimizer) in observer.scaler_stepping,
        )
        if observer.scaled and not step.through_scaler:
            step.scaled = _still_scaled(known, observer.scaled)
        return step

    def look(self, step: Step, optimizer: Optimizer, known: KnownOptimizer, *, close: bool) -> None:
        if close:
            step.stale = self.observer.stale.used_by(known)
        if close or _is_lost(self.observer.pending):
            _look_at_gradients(step, optimizer, known)

    def take_backwards(self, step: Step, optimizer: Optimizer) -> None:
        observer = self.observer
        if observer.pending:
            # All of them, where it cleared all: an update without gradients is to be seen as one.
            left_out = observer.left_out.get(id(optimizer), 0) if observer.left_out else 0
            observer.used = tuple(observer.pending[left_out:] or observer.pending)
            observer.pending.clear()
            observer.left_out.clear()
        step.backwards = observer.used

    def is_part_of_another(self, optimizer: Optimizer) -> bool:
        """Whether a step of the same parameters is going on: `super().step()`, a wrapper."""
        outer = {id(p) for group in self.open[-1].optimizer.param_groups for p in group["params"]}
        inner = [p for group in optimizer.param_groups for p in group["params"]]
        return any(id(parameter) in outer for parameter in inner)

    def forget_broken_off(self, frame: FrameType | None) -> None:
        """Drop steps that an exception ended: their call is no longer on the stack."""
        running: set[int] = set()
        while frame is not None:
            running.add(id(frame))
            frame = frame.f_back
        while self.open and self.open[-1].frame not in running:
            if self.open.pop().step is not None:
                self.observer.stepping.pop()

    def replace_init(self, original: Callable[..., Any]) -> FunctionType:
        observer = self.observer

        def __init__(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            __tracebackhide__ = True
            original(optimizer, *args, **kwargs)
            if observer.patches.active:
                observer.people.built.note(optimizer, observer.place())

        return cast("FunctionType", __init__)


def _is_lost(backwards: list[Backward]) -> bool:
    """Whether the last loss is known not to be finite, without waiting for a device."""
    value = backwards[-1].value if backwards else None
    return type(value) is float and not math.isfinite(value)


def _still_scaled(known: KnownOptimizer, scaled: list[tuple[Tensor, int]]) -> bool:
    """Whether nobody wrote to the gradients of an optimizer since a scaled backward did."""
    own = {id(one.tensor) for one in known.parameters}
    mine = [(tensor, version) for tensor, version in scaled if id(tensor) in own]
    return bool(mine) and all(
        tensor.grad is not None and tensor.grad._version == version for tensor, version in mine
    )


def _rate(group: dict[str, Any]) -> float:
    # Some optimizers choose their rate themselves, and keep None here.
    rate = group.get("lr")
    return math.nan if rate is None else float(rate)


def _evaluations(optimizer: Optimizer) -> int:
    """How often an optimizer that counts it has evaluated closures so far."""
    state = optimizer.state.get(optimizer.param_groups[0]["params"][0], {})
    return int(state.get("func_evals", 0))


def _count_first_evaluation(step: Step, evaluations: int) -> None:
    if evaluations > 1:
        inside = sum(backward.inside_step_of is not None for backward in step.backwards)
        step.counted = len(step.backwards) - inside + max(1, inside // evaluations)


def _look_at_gradients(step: Step, optimizer: Optimizer, known: KnownOptimizer) -> None:
    import torch

    # A fused optimizer is handed scaled gradients, and the scale beside them.
    scale = getattr(optimizer, "grad_scale", None)
    gradients = [(one, one.tensor.grad) for one in known.parameters]
    step.without_gradient = tuple(one.index for one, gradient in gradients if gradient is None)
    present = [(one, gradient) for one, gradient in gradients if gradient is not None]
    if not present:
        step.nonfinite = ()
        return
    with torch.no_grad():
        norms = _norms([gradient for _, gradient in present])
    if norms is None:
        return
    step.nonfinite = tuple(
        one.index for (one, _), norm in zip(present, norms, strict=True) if not math.isfinite(norm)
    )
    step.gradient_norm = math.hypot(*norms) / (1.0 if scale is None else float(scale))
    for (one, _), norm in zip(present, norms, strict=True):
        one.had_gradient = True
        one.had_nonzero_gradient = one.had_nonzero_gradient or norm != 0


def _wide_norm(gradient: Tensor) -> float:
    """The norm of a gradient whose own type may be too narrow for it, but not for its values."""
    values = gradient.detach().cpu()
    return float(values.abs().double().norm())


def _norms(gradients: list[Tensor]) -> list[float] | None:
    import torch

    dense = [
        gradient.detach() if gradient.layout == torch.strided else gradient.coalesce().values()
        for gradient in gradients
    ]
    try:
        norms = torch._foreach_norm(dense)
        if len({norm.device for norm in norms}) == 1 and len({norm.dtype for norm in norms}) == 1:
            values = cast("list[float]", torch.stack(norms).tolist())
        else:
            values = [float(norm) for norm in norms]
        pairs = zip(values, dense, strict=True)
        return [norm if math.isfinite(norm) else _wide_norm(one) for norm, one in pairs]
    except (RuntimeError, NotImplementedError):
        # Gradients of a kind that has no norm (sharded, traced): nothing to say.
        return None
