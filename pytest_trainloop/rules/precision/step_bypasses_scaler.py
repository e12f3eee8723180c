"""The rule `step-bypasses-scaler`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import call_of, counted, title
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Backward,
    Call,
    Event,
    FileFacts,
    Instance,
    Result,
    Step,
    TrainingLoop,
    Value,
    before,
    between,
    constant,
    is_accelerator,
    is_clip,
    is_engine,
    is_fabric,
    is_out_of_order,
    is_scaled_backward,
    is_scaler,
    may_do_anything,
    may_use_gradients,
    options,
    origins,
    same,
    together,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run


class StepBypassesScaler(Rule):
    """The loss is scaled, but the optimizer steps without the scaler; or only one loss is scaled.

    Symptom: the loss explodes or becomes NaN in the first steps; with Adam, which divides the
    scale out again, weight decay and epsilon lose their effect, and overflowed gradients reach
    the weights. With one of two losses unscaled, that loss counts for nothing.

    Why: `scaler.scale(loss)` multiplies the gradients by (at first) 65536. `scaler.step(optimizer)`
    divides them again, and leaves out a step whose gradients have overflowed;
    `optimizer.step()` does neither.

    What torch does: nothing for a plain `optimizer.step()`. It raises only where `scaler.step()`
    runs without any scaled backward before it.

    Limits: a scaler that is given a first scale and is never updated is a constant factor on
    purpose, and is not reported.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "scale", "step")
    sources = (
        "https://pytorch.org/docs/stable/notes/amp_examples.html",
        "https://github.com/huggingface/accelerate/issues/101",
        "https://github.com/hirofumi0810/neural_sp/pull/136",
        "https://github.com/nerfstudio-project/nerfacc/issues/307",
    )
    examples = (
        Bad(
            "a plain step after a scaled backward",
            """
            def train(model, loader, optimizer):
                scaler = torch.amp.GradScaler("cuda")
                for x, y in loader:
                    optimizer.zero_grad()
                    with torch.autocast("cuda"):
                        loss = F.cross_entropy(model(x), y)
                    scaler.scale(loss).backward()
                    optimizer.step()  # error
                    scaler.update()
            """,
            fixed="""
            def train(model, loader, optimizer):
                scaler = torch.amp.GradScaler("cuda")
                for x, y in loader:
                    optimizer.zero_grad()
                    with torch.autocast("cuda"):
                        loss = F.cross_entropy(model(x), y)
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)  # error
                    scaler.update()
            """,
        ),
        Good(
            "the scaler steps",
            """
            def train(model, loader, optimizer):
                scaler = torch.amp.GradScaler("cuda")
                for x, y in loader:
                    optimizer.zero_grad()
                    with torch.autocast("cuda"):
                        loss = F.cross_entropy(model(x), y)
                    scaler.scale(loss).backward()
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
        Bad(
            "one of two losses is not scaled",
            """
            def train(model, loader, optimizer, scaler):
                for x, y, aux in loader:
                    optimizer.zero_grad()
                    out, side = model(x)
                    scaler.scale(F.cross_entropy(out, y)).backward(retain_graph=True)
                    F.mse_loss(side, aux).backward()  # error
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
        Bad(
            "one of two optimizers steps without the scaler",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, scaler, bce):
                for real, z in loader:
                    opt_d.zero_grad()
                    scaler.scale(bce(net_d(real), net_d(net_g(z).detach()))).backward()
                    scaler.step(opt_d)
                    opt_g.zero_grad()
                    scaler.scale(bce(net_d(net_g(z)), 1)).backward()
                    opt_g.step()  # error
                    scaler.update()
            """,
        ),
        Bad(
            "one of two losses, each with its step, is not scaled",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, scaler, bce):
                for real, z in loader:
                    opt_d.zero_grad()
                    bce(net_d(real), net_d(net_g(z).detach())).backward()  # error
                    scaler.step(opt_d)
                    opt_g.zero_grad()
                    scaler.scale(bce(net_d(net_g(z)), 1)).backward()
                    scaler.step(opt_g)
                    scaler.update()
            """,
        ),
        Bad(
            "only the backward knows of mixed precision",
            """
            class Trainer:
                def __init__(self, model, optimizer, amp):
                    self.model, self.optimizer, self.amp = model, optimizer, amp
                    self.scaler = torch.cuda.amp.GradScaler(enabled=amp)

                def update(self, loss):
                    self.optimizer.zero_grad()
                    if self.amp:
                        self.scaler.scale(loss).backward()
                    else:
                        loss.backward()
                    self.optimizer.step()  # error

                def train(self, loader):
                    for x, y in loader:
                        self.update(F.cross_entropy(self.model(x), y))
            """,
        ),
        Good(
            "the scaler is switched off",
            """
            def train(model, loader, optimizer):
                scaler = torch.amp.GradScaler("cuda", enabled=False)
                for x, y in loader:
                    optimizer.zero_grad()
                    scaler.scale(F.cross_entropy(model(x), y)).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "each branch steps in its own way",
            """
            def train(model, loader, optimizer, scaler, amp):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    if amp:
                        scaler.scale(loss).backward()
                    else:
                        loss.backward()
                    if amp:
                        scaler.step(optimizer)
                        scaler.update()
                    else:
                        optimizer.step()
            """,
        ),
        Good(
            "a loss with the scale in it already",
            """
            def train(model, loader, optimizer, scaler):
                for x, y, aux in loader:
                    optimizer.zero_grad()
                    out, side = model(x)
                    loss = scaler.scale(F.cross_entropy(out, y))
                    loss = loss + scaler.scale(F.mse_loss(side, aux))
                    loss.backward()
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
        Good(
            "the scale is taken off first",
            """
            def train(model, loader, optimizer, scaler):
                for x, y in loader:
                    optimizer.zero_grad()
                    scaler.scale(F.cross_entropy(model(x), y)).backward()
                    scaler.unscale_(optimizer)
                    optimizer.step()
                    scaler.update()
            """,
        ),
        Good(
            "a constant factor",
            """
            def train(model, loader):
                optimizer = torch.optim.Adam(model.parameters(), eps=1e-15)
                scaler = torch.cuda.amp.GradScaler(2**10)
                for x, y in loader:
                    optimizer.zero_grad()
                    scaler.scale(F.mse_loss(model(x), y)).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "only one of two nets trains with mixed precision",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, scaler, bce):
                for real, z in loader:
                    opt_d.zero_grad()
                    bce(net_d(real), net_d(net_g(z).detach())).backward()
                    opt_d.step()
                    opt_g.zero_grad()
                    scaler.scale(bce(net_d(net_g(z)), 1)).backward()
                    scaler.step(opt_g)
                    scaler.update()
            """,
        ),
        Good(
            "Accelerate and Fabric scale for themselves",
            """
            from accelerate import Accelerator
            import torch.nn.functional as F

            def train(model, loader, optimizer):
                accelerator = Accelerator(mixed_precision="fp16")
                model, loader, optimizer = accelerator.prepare(model, loader, optimizer)
                for x, y in loader:
                    optimizer.zero_grad()
                    accelerator.backward(F.cross_entropy(model(x), y))
                    optimizer.step()
            """,
        ),
        Good(
            "one loss shapes the input, another trains",
            """
            def train(model, loader, optimizer, scaler):
                for x, y in loader:
                    x.requires_grad_()
                    F.cross_entropy(model(x), y).backward()
                    x = (x + 0.01 * x.grad.sign()).detach()
                    optimizer.zero_grad()
                    scaler.scale(F.cross_entropy(model(x), y)).backward()
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Compare how each step is made with how the backward calls before it were."""
        for loop in file.loops:
            if not any(_is_scaled(backward.call) for backward in loop.backwards):
                continue
            for step in loop.steps:
                if is_out_of_order(loop, step.call):
                    continue
                yield from self._plain_step(loop, step)
                yield from self._plain_backward(loop, step)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for steps that used gradients just as a scaled backward had left them."""
        for index, optimizer in enumerate(run.optimizers):
            scaled = [step for step in run.steps_of(index) if step.scaled and step.applied]
            if not scaled:
                continue
            scale = scaled[0].backwards[-1].scale
            yield self.observation(
                f"{title(optimizer)} used gradients that still carry the loss scale of {scale:g}:"
                f" {counted(len(scaled), 'step')} went past the scaler",
                f"call `scaler.step({optimizer.name})` instead of {call_of(optimizer, 'step')},"
                " then `scaler.update()`",
                scaled[0].where,
                (f"backward was called at {scaled[0].backwards[-1].where}",),
            )

    def _plain_step(self, loop: TrainingLoop, step: Step) -> Iterator[Finding]:
        backward = _scaled_backward_of(loop, step)
        if backward is None or not _is_plain(step):
            return
        scaler = _scaler_of(backward)
        if scaler is None or _is_constant_factor(loop, scaler):
            return
        if any(_may_take_scale_off(event) for event in between(loop.events, backward, step.call)):
            return
        name = _scaler_text(backward)
        written = f"{name}.step({step.optimizer_text})"
        yield self.finding(
            step.call.place,
            f"`{step.call.text}` uses gradients that `{backward.text}` has multiplied by the loss "
            "scale",
            f"write `{written}`, then `{name}.update()`",
            _through_scaler(loop, step, backward, written),
        )

    def _plain_backward(self, loop: TrainingLoop, step: Step) -> Iterator[Finding]:
        if _is_plain(step) or any(_is_plain(other) for other in loop.steps):
            return
        window = _backwards_for(loop, step)
        scaled = [backward for backward in window if _is_scaled(backward.call)]
        if not scaled:
            scaled = _scaled_elsewhere(loop, step)
        if not scaled or all(backward in scaled for backward in window):
            return
        if any(
            _may_take_scale_off(event) for event in between(loop.events, window[0].call, step.call)
        ):
            return
        for backward in window:
            if _is_raw(backward) and any(together(backward.call, one.call) for one in scaled):
                yield self.finding(
                    backward.call.place,
                    f"`{backward.call.text}` back-propagates without the loss scale, but "
                    f"`{step.call.text}` divides its gradients by that of `{scaled[0].call.text}`",
                    f"write `{_scaler_text(scaled[0].call)}.scale(...)` around this loss too",
                )


def _scaled_elsewhere(loop: TrainingLoop, step: Step) -> list[Backward]:
    """The backward calls for other steps that use the scaler of this step."""
    scaler = step.call.receiver
    return [
        backward
        for backward in loop.backwards
        if together(backward.call, step.call)
        and (own := _scaler_of(backward.call)) is not None
        and scaler is not None
        and same(own, scaler)
    ]


def _is_scaled(call: Call) -> bool:
    return is_scaled_backward(call) and _scaler_of(call) is not None


def _scaler_of(backward: Call) -> Value | None:
    """The gradient scaler of a scaled backward; None where it is switched off or something else."""
    for option in options(backward.receiver) if backward.receiver is not None else ():
        if isinstance(option, Result) and option.call.method == "scale":
            scaler = option.call.receiver
            if scaler is not None and is_scaler(scaler) and not _is_switched_off(scaler):
                return scaler
    return None


def _scaler_text(backward: Call) -> str:
    for option in options(backward.receiver) if backward.receiver is not None else ():
        if isinstance(option, Result) and option.call.method == "scale":
            return option.call.receiver_text
    return "scaler"


def _is_switched_off(scaler: Value) -> bool:
    return any(
        isinstance(option, Instance)
        or (isinstance(option, Result) and constant(option.call.argument(None, "enabled")) is False)
        for option in options(scaler)
    )


def _is_constant_factor(loop: TrainingLoop, scaler: Value) -> bool:
    """Whether the scaler was given its scale, and nothing ever updates it."""
    given = any(
        isinstance(option, Result)
        and (option.call.argument(None, "init_scale") is not None or option.call.args)
        and constant(option.call.argument(0)) not in ("cuda", "cpu")
        for option in options(scaler)
    )
    return given and not any(
        call.method == "update" and call.receiver is not None and same(call.receiver, scaler)
        for call in loop.trace.calls
    )


def _is_plain(step: Step) -> bool:
    """Whether the optimizer itself is asked to step, and is known to be no wrapper."""
    return step.call.receiver is step.optimizer


def _scaled_backward_of(loop: TrainingLoop, step: Step) -> Call | None:
    """The scaled backward whose gradients the step uses, if no other one can be meant."""
    earlier = before([backward.call for backward in loop.backwards], step.call)
    if not earlier:
        return None
    scaled = [call for call in earlier if _is_scaled(call)]
    if not scaled or any(not _is_scaled(call) for call in earlier if together(call, scaled[-1])):
        return None
    if _has_way_of_its_own(loop, step, scaled[-1]) or is_out_of_order(loop, scaled[-1]):
        return None
    return scaled[-1]


def _has_way_of_its_own(loop: TrainingLoop, step: Step, backward: Call) -> bool:
    """Whether the step depends on a condition that the scaled backward knows nothing of.

    `if not amp: optimizer.step()` far below `if amp: scaler.scale(loss).backward()` is
    right: the two conditions cannot be told to agree or not.
    """
    conditional = any(guard not in step.call.context for guard in loop.guards(backward))
    through_scaler = any(
        not _is_plain(other) and same(other.optimizer, step.optimizer) for other in loop.steps
    )
    return through_scaler or (
        conditional and any(guard not in backward.context for guard in loop.guards(step.call))
    )


def _backwards_for(loop: TrainingLoop, step: Step) -> list[Backward]:
    """The backward calls between the step before and this one."""
    earlier = before([other.call for other in loop.steps], step.call)
    first = earlier[-1].index if earlier else -1
    return [
        backward
        for backward in loop.backwards
        if first < backward.call.index < step.call.index
        and together(backward.call, step.call)
        and not is_out_of_order(loop, backward.call)
    ]


def _is_raw(backward: Backward) -> bool:
    """Whether a loss that never met a scaler is back-propagated by its own method."""
    call = backward.call
    if call.method != "backward" or call.qualified or call.receiver is None:
        return False
    if any(role(call.receiver) for role in (is_accelerator, is_fabric, is_engine, is_scaler)):
        return False
    return not any(
        isinstance(value, Result) and "scale" in value.call.name for value in origins(call.receiver)
    )


def _may_take_scale_off(event: Event) -> bool:
    """Whether the event unscales gradients, clears them, uses them by hand, or may."""
    if may_use_gradients(event):
        return True
    if not isinstance(event, Call):
        return False
    if "unscale" in event.method or "zero_grad" in event.method:
        return True
    if event.followed or is_clip(event):
        return False
    return any(is_scaler(given) and _is_out_of_sight(event, given) for given in event.inputs)


def _is_out_of_sight(call: Call, scaler: Value) -> bool:
    if call.receiver is not None and is_scaler(call.receiver):
        return call.method not in ("scale", "get_scale", "update", "is_enabled", "state_dict")
    return may_do_anything(call, scaler)


def _through_scaler(loop: TrainingLoop, step: Step, backward: Call, written: str) -> Fix | None:
    """The fix that steps through the scaler, where the scaler is updated already."""
    updates = [
        call
        for call in loop.calls
        if call.method == "update" and call.receiver is not None and is_scaler(call.receiver)
    ]
    if not updates or updates[-1].index < step.call.index or step.call.args:
        return None
    if backward.context != step.call.context:
        return None
    return Fix((Edit("replace", step.call.place, written),), safe=False)
