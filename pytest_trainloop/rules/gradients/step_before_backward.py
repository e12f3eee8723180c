"""The rule `step-before-backward`."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Call,
    Event,
    FileFacts,
    Step,
    TrainingLoop,
    after,
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


class StepBeforeBackward(Rule):
    """The optimizer steps before the gradients of the batch are computed.

    Symptom: the loss stays where it began, or trains on momentum and weight decay alone.

    Why: the gradients were cleared at the beginning of the turn, and `backward()` comes only
    after the step. What it computes is cleared again before the next step.

    What torch does: nothing. A step without gradients passes over every parameter.

    Limits: a loop that steps, clears and then back-propagates uses each gradient one turn
    later. That works, and is not reported.
    """

    since = "0.1"
    triggers = (".backward(|manual_backward(", "step", "zero_grad")
    sources = ("https://pytorch.org/docs/stable/optim.html#taking-an-optimization-step",)
    examples = (
        Bad(
            "cleared, stepped, and only then back-propagated",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    optimizer.step()  # error
                    loss.backward()
            """,
            fixed="""
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()  # error
            """,
        ),
        Good(
            "back-propagated, then stepped",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "stepped first, cleared last",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    loss = F.cross_entropy(model(x), y)
                    optimizer.step()  # error
                    loss.backward()
                    optimizer.zero_grad()
            """,
        ),
        Bad(
            "in a step function",
            """
            class Trainer:
                def update(self, x, y):
                    self.optimizer.zero_grad()
                    loss = F.mse_loss(self.model(x), y)
                    self.optimizer.step()  # error
                    loss.backward()
                    return loss.item()
            """,
        ),
        Good(
            "each gradient is used one turn later",
            """
            def train(model, batches, optimizer):
                F.mse_loss(model(batches[0]), batches[0]).backward()
                for x in batches[1:]:
                    optimizer.step()
                    optimizer.zero_grad()
                    F.mse_loss(model(x), x).backward()
                optimizer.step()
            """,
        ),
        Good(
            "the closure brings the gradients",
            """
            def train(model, x, y, steps):
                optimizer = torch.optim.LBFGS(model.parameters())
                for _ in range(steps):
                    def closure():
                        optimizer.zero_grad()
                        loss = F.mse_loss(model(x), y)
                        loss.backward()
                        return loss
                    optimizer.step(closure)
            """,
        ),
        Good(
            "two optimizers take turns",
            """
            def train(net_g, net_d, loader, opt_g, opt_d):
                for real in loader:
                    opt_d.zero_grad()
                    net_d(real).mean().backward()
                    opt_d.step()
                    opt_g.zero_grad()
                    net_d(net_g(real)).mean().backward()
                    opt_g.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for a step that comes to cleared gradients, and a backward right after it."""
        for loop in file.loops:
            for step in loop.steps:
                backward = _backward_too_late(loop, step)
                if backward is not None:
                    yield self._report(loop, step.call, backward)

    def _report(self, loop: TrainingLoop, step: Call, backward: Call) -> Finding:
        is_plain = step.context == backward.context and step.discarded and backward.discarded
        return self.finding(
            at_surface(loop, step).place,
            f"`{step.text}` runs before `{backward.text}` has computed any gradients, and what "
            "it computes is cleared before the next step",
            f"step after `{backward.text}`",
            Fix((Edit("move-after", step.place, to=backward.place),), safe=False)
            if is_plain and "scaler" not in step.text
            else None,
        )


def _backward_too_late(loop: TrainingLoop, step: Step) -> Call | None:
    """The backward after a step that can have no gradients."""
    if has_more_arguments(step) or is_out_of_order(loop, step.call):
        return None
    backwards = [backward.call for backward in loop.backwards]
    others = [other.call for other in loop.steps if other is not step]
    later = after(backwards, step.call)
    if before(backwards, step.call) or not later or before(others, step.call):
        return None
    if after(others, step.call) or not comes_along(later[0], step.call):
        return None
    clearings = [event for event in loop.clearings if _clears(event, step)]
    first = before(clearings, step.call)
    if first and comes_along(first[-1], step.call):
        brought = between(loop.events, first[-1], step.call)
        return None if any(may_set_gradients(event) for event in brought) else later[0]
    last = after(clearings, later[-1])
    is_cleared_last = bool(last) and loop.loop is not None and comes_along(last[-1], step.call)
    return later[0] if is_cleared_last else None


def _clears(event: Event, step: Step) -> bool:
    target = cleared(event) if isinstance(event, Call) else None
    if target is None:
        return False
    if is_optimizer(target):
        return same(target, step.optimizer)
    return any(same(target, origin) for origin in origins(step.optimizer, 60))
