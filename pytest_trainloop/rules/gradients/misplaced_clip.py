"""The rule `misplaced-clip`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pytest_trainloop.rules._naming import title
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Call,
    FileFacts,
    Inside,
    Trace,
    TrainingLoop,
    after,
    at_surface,
    before,
    comes_along,
    is_backward,
    is_clip,
    is_measuring,
    is_out_of_order,
    only_statement,
    trains_automatically,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run


class MisplacedClip(Rule):
    """Gradients are clipped at a time when no update uses what is clipped.

    Symptom: clipping has no effect, whatever the limit. Rare spikes of the loss that the
    limit should have stopped blow up the run.

    Why: clipping changes the gradients in place, so it counts only between `backward()`,
    which makes them, and `step()`, which uses them. After the step it changes gradients
    that are thrown away; before the backward there is nothing to clip. In a Lightning
    `training_step` it runs before the trainer has called `backward()`.

    What torch does: nothing. Without gradients `clip_grad_norm_` returns 0; with used ones
    it clips them.
    """

    since = "0.1"
    triggers = ("clip_grad",)
    sources = (
        "https://github.com/jongwook/onsets-and-frames/issues/24",
        "https://github.com/awslabs/graphstorm/issues/1366",
        "https://github.com/awslabs/graphstorm/pull/1382",
        "https://github.com/VGraphRNN/VGRNN/issues/4",
        "https://github.com/simchowitzlabpublic/nano-world-model/issues/22",
        "https://github.com/emited/VariationalRecurrentNeuralNetwork/issues/3",
        "https://pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html",
    )
    examples = (
        Bad(
            "clipped after the step",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
            """,
            fixed="""
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
                    optimizer.step()
            """,
        ),
        Good(
            "clipped between backward and step",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
            """,
        ),
        Bad(
            "clipped after the step, where an option asks for it",
            """
            def train(model, loader, optimizer, max_grad_norm=None):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    if max_grad_norm is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)  # error
            """,
            fixed="""
            def train(model, loader, optimizer, max_grad_norm=None):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    if max_grad_norm is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)  # error
                    optimizer.step()
            """,
        ),
        Bad(
            "clipped before backward",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
                    loss.backward()
                    optimizer.step()
            """,
            fixed="""
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
                    optimizer.step()
            """,
        ),
        Bad(
            "clipped after backward and step, cleared last",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
                    optimizer.zero_grad()
            """,
        ),
        Bad(
            "in a helper that is called after the step",
            """
            def clip_gradients_of(model):
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)

            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    clip_gradients_of(model)  # error
            """,
        ),
        Bad(
            "after both ways to step",
            """
            def train(model, loader, optimizer, scaler, amp):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    if amp:
                        scaler.scale(loss).backward()
                        scaler.step(optimizer)
                        scaler.update()
                    else:
                        loss.backward()
                        optimizer.step()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # error
            """,
        ),
        Bad(
            "in Lightning's training_step, before the trainer's backward",
            """
            import lightning as L
            import torch
            import torch.nn.functional as F

            class Lit(L.LightningModule):
                def training_step(self, batch, batch_idx):
                    x, y = batch
                    loss = F.cross_entropy(self.net(x), y)
                    torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)  # error
                    return loss
            """,
        ),
        Good(
            "the norm is only measured",
            """
            def train(model, loader, optimizer, log):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    log(nn.utils.clip_grad_norm_(model.parameters(), float("inf")))
            """,
        ),
        Good(
            "a second clip, for another net",
            """
            def train(net_g, net_d, loader, opt_g, opt_d):
                for x, y in loader:
                    opt_g.zero_grad()
                    opt_d.zero_grad()
                    (F.mse_loss(net_g(x), y) + F.mse_loss(net_d(x), y)).backward()
                    nn.utils.clip_grad_norm_(net_g.parameters(), 1.0)
                    opt_g.step()
                    nn.utils.clip_grad_norm_(net_d.parameters(), 1.0)
                    opt_d.step()
            """,
        ),
        Good(
            "the optimizer clips in its own step",
            """
            class ClippingSGD(torch.optim.Optimizer):
                def step(self, closure=None):
                    for group in self.param_groups:
                        nn.utils.clip_grad_norm_(group["params"], 1.0)
                        for p in group["params"]:
                            p.data.add_(p.grad, alpha=-group["lr"])

            def train(model, loader):
                optimizer = ClippingSGD(model.parameters(), {"lr": 0.1})
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "clipped in the closure",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    def closure():
                        optimizer.zero_grad()
                        loss = F.mse_loss(model(x), y)
                        loss.backward()
                        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                        return loss
                    optimizer.step(closure)
            """,
        ),
        Good(
            "clipped in a hook",
            """
            def train(model, loader, optimizer):
                def clip(p):
                    nn.utils.clip_grad_norm_([p], 1.0)

                for x, y in loader:
                    optimizer.zero_grad()
                    for p in model.parameters():
                        p.register_post_accumulate_grad_hook(clip)
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "Lightning's own place for clipping",
            """
            import lightning as L

            class Lit(L.LightningModule):
                def configure_gradient_clipping(self, optimizer, *args, **kwargs):
                    self.clip_gradients(optimizer, gradient_clip_val=1.0)
            """,
        ),
        Good(
            "manual optimization in Lightning",
            """
            import lightning as L
            import torch
            import torch.nn.functional as F

            class Lit(L.LightningModule):
                def __init__(self):
                    super().__init__()
                    self.automatic_optimization = False

                def training_step(self, batch, batch_idx):
                    x, y = batch
                    optimizer = self.optimizers()
                    optimizer.zero_grad()
                    self.manual_backward(F.cross_entropy(self.net(x), y))
                    torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
                    optimizer.step()
            """,
        ),
        Good(
            "the loop begins with the update",
            """
            def train(model, batches, optimizer):
                F.mse_loss(model(batches[0]), batches[0]).backward()
                for x in batches[1:]:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                    F.mse_loss(model(x), x).backward()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at what happens just before and just after each clip."""
        for loop in file.loops:
            for clip in loop.clips:
                if not is_measuring(clip) and not is_out_of_order(loop, clip):
                    yield from self._in_loop(loop, clip)
        for trace in file.traces:
            yield from self._in_training_step(trace)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for clips of gradients that every optimizer of theirs has used already."""
        from pytest_trainloop.runtime.record import Backward, Clip
        from pytest_trainloop.runtime.record import Step as RunStep

        parameters = run.parameters
        late: dict[str, int] = {}
        total: dict[str, int] = {}
        stepped: dict[int, RunStep] = {}
        last: dict[str, RunStep] = {}
        for event in run.events:
            if isinstance(event, Backward):
                stepped.clear()
            elif isinstance(event, RunStep):
                stepped[event.optimizer] = event
            elif isinstance(event, Clip):
                total[event.where] = total.get(event.where, 0) + 1
                own = {
                    i for number in event.parameters or () for i in parameters[number].optimizers
                }
                if own and own <= stepped.keys():
                    late[event.where] = late.get(event.where, 0) + 1
                    last[event.where] = stepped[min(own)]
        for where, times in late.items():
            # As often as it can be told: its optimizer is not known before its first step.
            if times < total[where] or times < 2 or len(total) > 1:  # noqa: PLR2004  # again
                continue
            yield self.observation(
                "gradients are clipped after the step of"
                f" {title(run.optimizers[last[where].optimizer])}, {times} of {total[where]} times:"
                " the update has used them unclipped",
                "clip between `backward()` and `step()`",
                where,
                (f"the step was made at {last[where].where}",),
            )

    def _in_loop(self, loop: TrainingLoop, clip: Call) -> Iterator[Finding]:
        surface = at_surface(loop, clip)
        step = _step_just_before(loop, clip)
        if step is not None:
            yield self.finding(
                surface.place,
                f"`{clip.name}` clips gradients that `{step.text}` has already used",
                f"clip between `backward()` and `{step.text}`",
                _moved(loop, clip, step, "move-before"),
            )
            return
        backward = _backward_just_after(loop, clip)
        if backward is not None:
            yield self.finding(
                surface.place,
                f"`{clip.name}` runs before `{backward.text}` has computed the "
                "gradients, so there is nothing to clip",
                f"clip after `{backward.text}`, before the optimizer's step",
                _moved(loop, clip, backward, "move-after"),
            )

    def _in_training_step(self, trace: Trace) -> Iterator[Finding]:
        if not trains_automatically(trace) or any(is_backward(call) for call in trace.calls):
            return
        for clip in trace.calls:
            inside = [frame for frame in clip.context if isinstance(frame, Inside)]
            if is_clip(clip) and len(inside) == 1 and not is_measuring(clip):
                yield self.finding(
                    clip.place,
                    f"`{clip.name}` runs in `training_step`, before the trainer calls "
                    "`backward()`, so there is nothing to clip",
                    "give `gradient_clip_val` to the `Trainer`, or clip in "
                    "`configure_gradient_clipping`",
                )


def _step_just_before(loop: TrainingLoop, clip: Call) -> Call | None:
    """The step that has used the gradients, if nothing uses them after the clip."""
    verbs = _backwards_and_steps(loop)
    earlier, later = before(verbs, clip), after(verbs, clip)
    if not earlier or is_backward(earlier[-1]) or not _has_stepped(loop, earlier, clip):
        return None
    if not is_backward(earlier[0]) or (later and not is_backward(later[0])):
        return None
    return earlier[-1]


def _has_stepped(loop: TrainingLoop, earlier: list[Call], clip: Call) -> bool:
    """Whether a step has been made whenever the clip is reached after a backward."""
    last = earlier[-1]
    if comes_along(last, clip):
        return True
    guards = [guard for guard in loop.guards(last) if guard not in clip.context]
    backwards = [call for call in earlier if is_backward(call)]
    return all(any(guard in call.context for call in backwards) for guard in guards)


def _backward_just_after(loop: TrainingLoop, clip: Call) -> Call | None:
    """The backward that only makes the gradients, if there are none before the clip."""
    verbs = _backwards_and_steps(loop)
    earlier, later = before(verbs, clip), after(verbs, clip)
    if any(is_backward(call) for call in earlier) or not later or not is_backward(later[0]):
        return None
    if is_backward(later[-1]):
        return None
    cleared_before = [event for event in loop.clearings if event.index < clip.index]
    cleared_after = [event for event in loop.clearings if event.index > later[-1].index]
    return later[0] if cleared_before or cleared_after else None


def _backwards_and_steps(loop: TrainingLoop) -> list[Call]:
    calls = [backward.call for backward in loop.backwards]
    calls += [step.call for step in loop.steps]
    return sorted(calls, key=lambda call: call.index)


def _moved(
    loop: TrainingLoop, clip: Call, anchor: Call, kind: Literal["move-before", "move-after"]
) -> Fix | None:
    """The fix that moves the clip, or the `if` around it, beside the anchor."""
    statement = only_statement(loop, clip)
    if statement is None:
        return None
    outer = clip.context if statement is clip else clip.context[:-1]
    if outer != anchor.context or loop.unscales or "scaler" in anchor.text:
        return None
    return Fix((Edit(kind, statement.place, to=anchor.place),), safe=False)
