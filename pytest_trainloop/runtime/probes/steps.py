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
from pytest_trainloop.runtime.place import CallSite
from pytest_trainloop.runtime.record import Step, next_close

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from pytest_trainloop.runtime.observe import Observer
    from pytest_trainloop.runtime.participants import KnownOptimizer
    from pytest_trainloop.runtime.record import Backward


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
class OpenStep:
    """A step that has begun: `frame` identifies the call, without keeping it alive."""

    optimizer: Any
    frame: int
    known: KnownOptimizer
    #: None for a step inside of another one of the same parameters.
    step: Step | None = None
    #: How many backward calls waited for it, and how often the optimizer had evaluated closures.
    pending: int = 0
    evaluations: int = 0


class _Steps:
    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.open = observer.stepping
        self.site = CallSite()

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        __tracebackhide__ = True
        observer = self.observer
        if not observer.patches.active:
            return
        frame = sys._getframe(1)
        if self.open and self.is_part_of_another(optimizer, frame):
            return
        known = observer.people.optimizer(optimizer)
        groups = optimizer.param_groups
        if len(groups) != 1 or groups[0].get("lr") is not known.rate:
            known.read_rates(groups)
        # By position: made in every step.
        step = Step(
            known.index,
            known.fact.steps + 1,
            (),
            known.rates,
            self.site.now(),
            id(optimizer) in observer.scaler_stepping,
        )
        if observer.scaled and not step.through_scaler:
            step.scaled = _still_scaled(known, observer.scaled)
        if step.number == known.close_at or observer.has_lost:
            self.look(step, optimizer, known)
        opened = OpenStep(optimizer, id(frame), known, step, len(observer.pending))
        if known.counts_evaluations:
            opened.evaluations = _evaluations(optimizer)
        self.open.append(opened)
        for act in observer.before_step:
            act(optimizer, step)

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        __tracebackhide__ = True
        observer = self.observer
        if not observer.patches.active or not self.open:
            return
        opened = self.open.pop()
        step, known = opened.step, opened.known
        if step is None:
            return
        pending = observer.pending
        if len(pending) > opened.pending:
            # A closure made the gradients after the first look.
            self.look(step, optimizer, known)
        if observer.stale.marks:
            observer.stale.unmark(known)
        if pending:
            observer.used = self.left_in(optimizer) if observer.left_out else tuple(pending)
            pending.clear()
            observer.has_lost = False
        step.backwards = observer.used
        if known.counts_evaluations:
            _count_first_evaluation(step, _evaluations(optimizer) - opened.evaluations)
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None:
            step.applied = not bool(found_inf)
        known.fact.steps = step.number
        if known.leading is not None:
            known.written = known.leading._version
        observer.run.events.append(step)
        if step.number == known.close_at:
            self.after_close_step(step, optimizer, known)
        if step.number + 1 == known.close_at:
            observer.stale.mark(known)
        for act in observer.after_step:
            act(optimizer, step)

    def after_close_step(self, step: Step, optimizer: Optimizer, known: KnownOptimizer) -> None:
        known.close_at = next_close(step.number)
        if step.number == 1:
            note_state(known, optimizer)
        if step.backwards:
            self.observer.graphs.after_step(step.number, step.backwards[-1].where)

    def look(self, step: Step, optimizer: Optimizer, known: KnownOptimizer) -> None:
        pending = self.observer.pending
        if step.number == known.close_at:
            step.stale = self.observer.stale.used_by(known)
        elif not pending or not _is_lost(pending[-1]):
            return
        _look_at_gradients(step, optimizer, known)

    def left_in(self, optimizer: Optimizer) -> tuple[Backward, ...]:
        """What was back-propagated for a step and not cleared by its optimizer."""
        pending, left_out = self.observer.pending, self.observer.left_out.get(id(optimizer), 0)
        self.observer.left_out.clear()
        # All of them, where it cleared all: an update without gradients is to be seen as one.
        return tuple(pending[left_out:] or pending)

    def is_part_of_another(self, optimizer: Optimizer, frame: FrameType) -> bool:
        """Whether a step of the same parameters is going on: `super().step()`, a wrapper."""
        self.forget_broken_off(frame)
        if not self.open:
            return False
        outer = {id(p) for group in self.open[-1].optimizer.param_groups for p in group["params"]}
        inner = [p for group in optimizer.param_groups for p in group["params"]]
        if not any(id(parameter) in outer for parameter in inner):
            return False
        self.open.append(OpenStep(optimizer, id(frame), self.open[-1].known))
        return True

    def forget_broken_off(self, frame: FrameType | None) -> None:
        """Drop steps that an exception ended: their call is no longer on the stack."""
        running: set[int] = set()
        while frame is not None:
            running.add(id(frame))
            frame = frame.f_back
        while self.open and self.open[-1].frame not in running:
            self.open.pop()

    def replace_init(self, original: Callable[..., Any]) -> FunctionType:
        observer = self.observer

        def __init__(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            __tracebackhide__ = True
            original(optimizer, *args, **kwargs)
            if observer.patches.active:
                observer.people.built.note(optimizer, observer.place())

        return cast("FunctionType", __init__)


def _is_lost(backward: Backward) -> bool:
    """Whether a loss is known not to be finite, without waiting for a device."""
    value = backward.value
    return type(value) is float and not math.isfinite(value)


def _still_scaled(known: KnownOptimizer, scaled: list[tuple[Tensor, int]]) -> bool:
    """Whether nobody wrote to the gradients of an optimizer since a scaled backward did."""
    own = {id(one.tensor) for one in known.parameters}
    mine = [(tensor, version) for tensor, version in scaled if id(tensor) in own]
    return bool(mine) and all(
        tensor.grad is not None and tensor.grad._version == version for tensor, version in mine
    )


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
