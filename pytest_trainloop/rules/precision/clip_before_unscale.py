"""The rule `clip-before-unscale`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Call,
    Event,
    FileFacts,
    Frame,
    Inside,
    Instance,
    Result,
    Step,
    TrainingLoop,
    Value,
    after,
    before,
    between,
    comes_along,
    common,
    constant,
    is_clip,
    is_measuring,
    is_out_of_order,
    is_scaled_backward,
    is_scaler,
    may_do_anything,
    may_use_gradients,
    options,
    origins,
    together,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run

#: A norm above this part of the loss scale is one that was scaled too.
_SCALED_NORM = 0.05


class ClipBeforeUnscale(Rule):
    """Gradients are clipped while they are still multiplied by the loss scale.

    Symptom: with mixed precision the loss falls much more slowly than without it, or not at
    all. The gradient norm that is logged is tens of thousands.

    Why: `scaler.scale(loss)` multiplies the loss, so the gradients come out 65536 times too
    large (less after some steps). Clipping them to a norm of 1 and then dividing by the scale
    in `scaler.step()` leaves a norm of 1/65536: the limit acts on every step, and far too hard.

    What torch does: nothing. `clip_grad_norm_` cannot know that the gradients are scaled.
    """

    since = "0.1"
    triggers = ("clip_grad", "scale", ".backward(|manual_backward(")
    sources = (
        "https://pytorch.org/docs/stable/notes/amp_examples.html#gradient-clipping",
        "https://github.com/milesial/Pytorch-UNet/issues/468",
        "https://github.com/milesial/Pytorch-UNet/pull/470",
        "https://github.com/pytorch/examples/issues/1196",
        "https://github.com/Lightning-AI/pytorch-lightning/issues/9606",
        "https://github.com/TorchSSL/TorchSSL/issues/59",
        "https://github.com/pytorch/pytorch/issues/40907",
    )
    examples = (
        Bad(
            "clipped without unscale_",
            """
            def train(model, loader, optimizer, scaler):
                for x, y in loader:
                    optimizer.zero_grad()
                    with torch.autocast("cuda"):
                        loss = F.cross_entropy(model(x), y)
                    scaler.scale(loss).backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
                    scaler.step(optimizer)
                    scaler.update()
            """,
            fixed="""
            def train(model, loader, optimizer, scaler):
                for x, y in loader:
                    optimizer.zero_grad()
                    with torch.autocast("cuda"):
                        loss = F.cross_entropy(model(x), y)
                    scaler.scale(loss).backward()
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
        Good(
            "unscaled first",
            """
            def train(model, loader, optimizer, scaler):
                for x, y in loader:
                    optimizer.zero_grad()
                    with torch.autocast("cuda"):
                        loss = F.cross_entropy(model(x), y)
                    scaler.scale(loss).backward()
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
        Bad(
            "in the branch for mixed precision, in a method of its own",
            """
            class Trainer:
                def __init__(self, model, optimizer, use_amp):
                    self.model, self.optimizer, self.use_amp = model, optimizer, use_amp
                    if use_amp:
                        self.scaler = torch.amp.GradScaler("cuda")

                def run_batch(self, x, y, train=True):
                    with torch.set_grad_enabled(train):
                        loss = F.cross_entropy(self.model(x), y)
                    if train:
                        self.optimizer.zero_grad(set_to_none=True)
                        if self.use_amp:
                            self.scaler.scale(loss).backward()
                            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)  # error
                            self.scaler.step(self.optimizer)
                            self.scaler.update()
                        else:
                            loss.backward()
                            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                            self.optimizer.step()
                    return loss.item()

                def run_epoch(self, loader):
                    for x, y in loader:
                        self.run_batch(x, y)
            """,
        ),
        Bad(
            "where an option asks for clipping",
            """
            def train(model, loader, optimizer, scheduler, args):
                scaler = torch.cuda.amp.GradScaler()
                for x, y in loader:
                    loss = F.cross_entropy(model(x), y)
                    if args.amp:
                        scaler.scale(loss).backward()
                        if args.clip > 0:
                            nn.utils.clip_grad_norm_(model.parameters(), args.clip)  # error
                        scaler.step(optimizer)
                        scaler.update()
                    else:
                        loss.backward()
                        if args.clip > 0:
                            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
                        optimizer.step()
                    optimizer.zero_grad()
            """,
            fixed="""
            def train(model, loader, optimizer, scheduler, args):
                scaler = torch.cuda.amp.GradScaler()
                for x, y in loader:
                    loss = F.cross_entropy(model(x), y)
                    if args.amp:
                        scaler.scale(loss).backward()
                        if args.clip > 0:
                            scaler.unscale_(optimizer)
                            nn.utils.clip_grad_norm_(model.parameters(), args.clip)  # error
                        scaler.step(optimizer)
                        scaler.update()
                    else:
                        loss.backward()
                        if args.clip > 0:
                            nn.utils.clip_grad_norm_(model.parameters(), args.clip)
                        optimizer.step()
                    optimizer.zero_grad()
            """,
        ),
        Bad(
            "once an accumulation",
            """
            def train(model, loader, optimizer, scaler, k):
                for i, (x, y) in enumerate(loader):
                    loss = F.cross_entropy(model(x), y) / k
                    scaler.scale(loss).backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        nn.utils.clip_grad_value_(model.parameters(), 0.5)  # error
                        scaler.step(optimizer)
                        scaler.update()
                        optimizer.zero_grad()
            """,
        ),
        Bad(
            "unscaled too late",
            """
            def train(model, loader, optimizer, scaler):
                for x, y in loader:
                    optimizer.zero_grad()
                    scaler.scale(F.cross_entropy(model(x), y)).backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
                    scaler.unscale_(optimizer)
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
        Good(
            "Accelerate and Fabric unscale for themselves",
            """
            from accelerate import Accelerator
            import torch.nn.functional as F

            def train(model, loader, optimizer):
                accelerator = Accelerator(mixed_precision="fp16")
                model, loader, optimizer = accelerator.prepare(model, loader, optimizer)
                for x, y in loader:
                    optimizer.zero_grad()
                    accelerator.backward(F.cross_entropy(model(x), y))
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
            """,
        ),
        Good(
            "bfloat16 needs no scaler",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    with torch.autocast("cuda", dtype=torch.bfloat16):
                        loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
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
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
        Good(
            "the norm is only measured",
            """
            def train(model, loader, optimizer, scaler, log):
                for x, y in loader:
                    optimizer.zero_grad()
                    scaler.scale(F.cross_entropy(model(x), y)).backward()
                    norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf"))
                    log(norm / scaler.get_scale())
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
        Good(
            "the limit is scaled too",
            """
            def train(model, loader, optimizer, scaler):
                for x, y in loader:
                    optimizer.zero_grad()
                    scaler.scale(F.cross_entropy(model(x), y)).backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0 * scaler.get_scale())
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
        Good(
            "a helper unscales",
            """
            def prepare(scaler, optimizer):
                scaler.unscale_(optimizer)

            def train(model, loader, optimizer, scaler):
                for x, y in loader:
                    optimizer.zero_grad()
                    scaler.scale(F.cross_entropy(model(x), y)).backward()
                    prepare(scaler, optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
        Good(
            "unscaled by hand",
            """
            def train(model, loader, optimizer, scaler):
                for x, y in loader:
                    optimizer.zero_grad()
                    scaler.scale(F.cross_entropy(model(x), y)).backward()
                    for p in model.parameters():
                        p.grad.div_(scaler.get_scale())
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scaler.update()
            """,
        ),
        Good(
            "unscaled under an option of its own",
            """
            def train(model, loader, optimizer, scaler, args):
                for x, y in loader:
                    optimizer.zero_grad()
                    scaler.scale(F.cross_entropy(model(x), y)).backward()
                    if args.amp:
                        scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at what stands between each scaled backward and the clip after it."""
        for loop in file.loops:
            for clip in loop.clips:
                if _is_plain_clip(clip) and not is_out_of_order(loop, clip):
                    yield from self._clip(loop, clip)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for clips between a scaled backward and the step, with no unscaling in between."""
        from pytest_trainloop.runtime.record import Backward, Clip, SkippedStep, Unscaling
        from pytest_trainloop.runtime.record import Step as RunStep

        scaled: Backward | None = None
        told: set[str] = set()
        for event in run.events:
            if isinstance(event, Backward):
                scaled = event if event.scale != 1.0 else None
            elif isinstance(event, (Unscaling, RunStep, SkippedStep)):
                scaled = None
            elif isinstance(event, Clip) and scaled is not None and event.where not in told:
                # Whoever multiplies the norm with the scale instead knows what they do.
                if event.max_norm > scaled.scale * _SCALED_NORM:
                    continue
                told.add(event.where)
                yield self.observation(
                    f"gradients are clipped to {event.max_norm:g} while they still carry the loss"
                    f" scale of {scaled.scale:g}: unscaled, that is"
                    f" {event.max_norm / scaled.scale:.3g}",
                    "call `scaler.unscale_(optimizer)` before clipping",
                    event.where,
                    (f"backward was called at {scaled.where}",),
                )

    def _clip(self, loop: TrainingLoop, clip: Call) -> Iterator[Finding]:
        backward = _scaled_backward_before(loop, clip)
        steps = _scaled_steps_after(loop, clip)
        if backward is None or not steps or _may_be_unscaled(loop, backward, clip):
            return
        scaler = steps[0].call.receiver_text
        yield self.finding(
            _beside(clip, backward).place,
            f"`{clip.name}` clips gradients that are still multiplied by the loss scale of "
            f"`{scaler}`: nothing takes it off after `{backward.text}`",
            f"write `{scaler}.unscale_({steps[0].optimizer_text})` before the clip",
            _unscaled_first(loop, clip, steps) if _is_first(loop, backward, clip) else None,
        )


def _beside(clip: Call, backward: Call) -> Call:
    """Where the code that back-propagates comes to the clip: itself, or the call of a helper."""
    for frame in clip.context[len(common(clip.context, backward.context)) :]:
        if isinstance(frame, Inside) and frame.call is not None:
            return frame.call
    return clip


def _is_first(loop: TrainingLoop, backward: Call, clip: Call) -> bool:
    """Whether no other clip comes before: the scale can be taken off only once."""
    return not any(together(other, clip) for other in between(loop.clips, backward, clip))


def _is_plain_clip(clip: Call) -> bool:
    """Whether the clip is torch's own, that takes the gradients as they are."""
    if is_measuring(clip) or not is_clip(clip):
        return False
    if not clip.qualified.startswith(("torch.nn.utils.", "apex.contrib.clip_grad.")):
        return False
    limit = clip.argument(1, "max_norm") or clip.argument(None, "clip_value")
    return limit is None or not any(
        isinstance(value, Result) and "scale" in value.call.method for value in origins(limit, 30)
    )


def _scaled_backward_before(loop: TrainingLoop, clip: Call) -> Call | None:
    """The last backward before the clip, if it is a scaled one that nothing else can replace."""
    earlier = before([backward.call for backward in loop.backwards], clip)
    if not earlier or not is_scaled_backward(earlier[-1]):
        return None
    scalers = [
        option.call.receiver
        for option in options(earlier[-1].receiver or clip.callee)
        if isinstance(option, Result) and option.call.receiver is not None
    ]
    known = all(is_scaler(scaler) and not _is_disabled(scaler) for scaler in scalers)
    return earlier[-1] if known and not is_out_of_order(loop, earlier[-1]) else None


def _is_disabled(scaler: Value) -> bool:
    return any(
        isinstance(option, Result) and constant(option.call.argument(None, "enabled")) is False
        for option in options(scaler)
    )


def _scaled_steps_after(loop: TrainingLoop, clip: Call) -> list[Step]:
    """The steps that use the clipped gradients, if all of them are the scaler's."""
    calls = sorted(
        (*(backward.call for backward in loop.backwards), *(step.call for step in loop.steps)),
        key=lambda call: call.index,
    )
    found: list[Step] = []
    for call in after(calls, clip):
        step = next((step for step in loop.steps if step.call is call), None)
        if step is None or is_out_of_order(loop, call):
            break
        found.append(step)
    scaled = [
        step for step in found if step.call.receiver is not None and is_scaler(step.call.receiver)
    ]
    return scaled if len(scaled) == len(found) else []


def _may_be_unscaled(loop: TrainingLoop, backward: Call, clip: Call) -> bool:
    """Whether something between backward and clip takes the scale off, or may."""
    return any(
        _may_unscale(event)
        for event in between(loop.events, backward, clip)
        if together(event, clip)
    )


def _may_unscale(event: Event) -> bool:
    if may_use_gradients(event):
        return True
    if not isinstance(event, Call):
        return False
    if "unscale" in event.method:
        return True
    if event.followed or is_clip(event):
        return False
    receiver = event.receiver
    if receiver is not None and is_scaler(receiver):
        return event.method not in ("scale", "get_scale", "is_enabled", "state_dict")
    return any(
        is_scaler(given) and may_do_anything(event, given) for given in event.inputs
    ) or _is_own_method_out_of_sight(event)


def _is_own_method_out_of_sight(call: Call) -> bool:
    return call.receiver is not None and any(
        isinstance(option, Instance)
        and option.definition.has_unknown_base()
        and not option.definition.is_module
        for option in options(call.receiver)
    )


def _unscaled_first(loop: TrainingLoop, clip: Call, steps: list[Step]) -> Fix | None:
    """The fix that unscales right before the clip, where there is one step to speak of."""
    if len(steps) != 1 or loop.unscales:
        return None
    step = steps[0]
    if not comes_along(step.call, clip) or loop.inner_loops(clip) or loop.inner_loops(step.call):
        return None
    if _functions(clip) != _functions(step.call):
        return None
    code = f"{step.call.receiver_text}.unscale_({step.optimizer_text})"
    return Fix((Edit("insert-before", clip.place, code),), safe=False)


def _functions(call: Call) -> list[Frame]:
    """The function bodies that hold the call: names mean the same where they are the same."""
    return [frame for frame in call.context if isinstance(frame, Inside)]
