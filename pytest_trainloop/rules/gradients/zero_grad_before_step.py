"""The rule `zero-grad-before-step`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import call_of, title
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Call,
    Event,
    FileFacts,
    Step,
    TrainingLoop,
    at_surface,
    before,
    between,
    cleared,
    comes_along,
    has_more_arguments,
    is_optimizer,
    is_out_of_order,
    may_set_gradients,
    origins,
    same,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Clearing, Run
    from pytest_trainloop.runtime.record import Step as RunStep


class ZeroGradBeforeStep(Rule):
    """Gradients are cleared after `backward()` and before `step()` uses them.

    Symptom: the loss stays where it began. With weight decay or momentum the weights still
    move, so that the loss may even drift, but nothing is learned from the data.

    Why: `zero_grad()` sets every `.grad` to None. A step that follows it, with no
    `backward()` in between, finds no gradients and skips every parameter.

    What torch does: nothing. An optimizer passes over parameters whose `.grad` is None,
    because unused parameters are legitimate.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "step", "zero_grad")
    sources = (
        "https://github.com/sacmehta/EdgeNets/issues/14",
        "https://github.com/karpathy/llm.c/pull/548",
        "https://pytorch.org/docs/stable/generated/torch.optim.Optimizer.zero_grad.html",
    )
    examples = (
        Bad(
            "cleared between backward and step",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.zero_grad()  # error
                    optimizer.step()
            """,
            fixed="""
            def train(model, loader, optimizer):
                for x, y in loader:
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()  # error
            """,
        ),
        Good(
            "cleared after the step",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
            """,
        ),
        Bad(
            "the model clears, and the optimizer was made from its parameters",
            """
            def train(model, loader):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for x, y in loader:
                    F.cross_entropy(model(x), y).backward()
                    model.zero_grad()  # error
                    optimizer.step()
            """,
        ),
        Bad(
            "with a gradient scaler",
            """
            def train(model, loader, optimizer, scaler):
                for x, y in loader:
                    scaler.scale(F.cross_entropy(model(x), y)).backward()
                    optimizer.zero_grad()  # error
                    scaler.step(optimizer)
                    scaler.update()
            """,
        ),
        Bad(
            "inside the branch that steps",
            """
            def train(model, loader, optimizer, k):
                for i, (x, y) in enumerate(loader):
                    (F.cross_entropy(model(x), y) / k).backward()
                    if (i + 1) % k == 0 or i + 1 == len(loader):
                        optimizer.zero_grad()  # error
                        optimizer.step()
            """,
        ),
        Bad(
            "in a step function",
            """
            class Trainer:
                def __init__(self, model, optimizer):
                    self.model, self.optimizer = model, optimizer

                def update(self, x, y):
                    loss = F.mse_loss(self.model(x), y)
                    loss.backward()
                    self.optimizer.zero_grad()  # error
                    self.optimizer.step()
                    return loss.item()
            """,
        ),
        Good(
            "two optimizers, each cleared before its own backward",
            """
            def train(net_g, net_d, loader, opt_g, opt_d, bce, ones, zeros):
                for real in loader:
                    fake = net_g(torch.randn_like(real))
                    opt_d.zero_grad()
                    (bce(net_d(real), ones) + bce(net_d(fake.detach()), zeros)).backward()
                    opt_g.zero_grad()
                    opt_d.step()
                    bce(net_d(fake), ones).backward()
                    opt_g.step()
            """,
        ),
        Good(
            "sharpness-aware minimization clears in its first step",
            """
            from sam import SAM

            def train(model, loader):
                optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
                for x, y in loader:
                    F.cross_entropy(model(x), y).backward()
                    optimizer.first_step(zero_grad=True)
                    F.cross_entropy(model(x), y).backward()
                    optimizer.second_step(zero_grad=True)
            """,
        ),
        Good(
            "cleared only where the gradients are not finite",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    if not torch.isfinite(loss):
                        print("skipped a batch: its loss is not finite")
                        optimizer.zero_grad()
                        continue
                    optimizer.step()
                    optimizer.zero_grad()
            """,
        ),
        Good(
            "the gradients are put back by hand",
            """
            def train(model, loader, optimizer, project):
                for tasks in loader:
                    rows = []
                    for x, y in tasks:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        rows.append([p.grad.clone() for p in model.parameters()])
                    optimizer.zero_grad()
                    for p, grad in zip(model.parameters(), project(rows)):
                        p.grad = grad
                    optimizer.step()
            """,
        ),
        Good(
            "the closure brings new gradients",
            """
            def train(model, x, y, optimizer, steps):
                for _ in range(steps):
                    def closure():
                        optimizer.zero_grad()
                        loss = F.mse_loss(model(x), y)
                        loss.backward()
                        return loss
                    optimizer.step(closure)
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look between each step and the backward before it for a clearing of that optimizer."""
        for loop in file.loops:
            for step in loop.steps:
                clearing = _clearing_in_between(loop, step)
                if clearing is not None:
                    yield self._report(loop, step, *clearing)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for optimizers that never had a gradient, though backward reached what they have."""
        for index, optimizer in enumerate(run.optimizers):
            own = [run.parameters[number] for group in optimizer.groups for number in group]
            updates = [step for step in run.updates() if step.optimizer == index]
            if (
                len(updates) < 2  # noqa: PLR2004  # one may be a turn of its own
                or any(p.had_nonzero_gradient or p.moved is not False for p in own)
                or not any(p.reached for p in own)
            ):
                continue
            cleared = [_clearing_after_backward(run, step) for step in updates]
            if None in cleared or cleared[0] is None:
                continue
            yield self.observation(
                f"the gradients are cleared between `backward()` and the step of"
                f" {title(optimizer)}: none of its {optimizer.steps} steps had any",
                f"clear them before `backward()`, or after {call_of(optimizer, 'step')}",
                cleared[0].where,
                (f"backward was called at {updates[0].backwards[-1].where}",),
            )

    def _report(self, loop: TrainingLoop, step: Step, backward: Call, clearing: Call) -> Finding:
        stepping = step.call
        message = (
            f"`{clearing.text}` clears the gradients of `{backward.text}` before "
            f"`{stepping.text}` can use them"
        )
        is_plain = clearing.context == stepping.context and clearing.discarded
        return self.finding(
            at_surface(loop, clearing).place,
            message,
            f"move `{clearing.text}` behind `{stepping.text}`",
            Fix((Edit("move-after", clearing.place, to=stepping.place),), safe=False)
            if is_plain
            else None,
        )


def _clearing_in_between(loop: TrainingLoop, step: Step) -> tuple[Call, Call] | None:
    """The backward before the step, and what clears its gradients before the step sees them."""
    if has_more_arguments(step) or is_out_of_order(loop, step.call):
        return None
    backwards = before([backward.call for backward in loop.backwards], step.call)
    if not backwards:
        return None
    nearest = backwards[-1]
    for event in before(loop.clearings, step.call):
        if event.index < nearest.index or not isinstance(event, Call):
            continue
        if _clears_all(event, step) and _nothing_else(loop, nearest, event, step.call):
            return nearest, event
    return None


def _clears_all(clearing: Call, step: Step) -> bool:
    """Whether every gradient that the step would use is gone after the clearing."""
    target = cleared(clearing)
    if target is None or not comes_along(clearing, step.call):
        return False
    if is_optimizer(target):
        return same(target, step.optimizer)
    return any(same(target, origin) for origin in origins(step.optimizer, 60))


def _nothing_else(loop: TrainingLoop, backward: Call, clearing: Event, stepping: Call) -> bool:
    """Whether the gradients are not used before the clearing, and none come after it."""
    used = between([step.call for step in loop.steps], backward, clearing)
    if any(comes_along(call, clearing) for call in used):
        return False
    return not any(may_set_gradients(event) for event in between(loop.events, clearing, stepping))


def _clearing_after_backward(run: Run, step: RunStep) -> Clearing | None:
    """What cleared the gradients between the last backward for `step` and the step."""
    from pytest_trainloop.runtime.record import Clearing

    for event in reversed(run.before(step)):
        if event is step.backwards[-1]:
            return None
        if isinstance(event, Clearing) and event.optimizer in (None, step.optimizer):
            return event
    return None
