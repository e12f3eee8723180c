"""Why a run taught its model nothing: the questions, in the order in which to ask them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted, listed, title

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Optimizer, Parameter, Run


@dataclass(frozen=True, slots=True)
class Cause:
    """What went wrong, in one line without a full stop, and what to write."""

    message: str
    advice: str
    evidence: tuple[str, ...] = ()


def nothing_ran(run: Run) -> Cause | None:
    """Why there is nothing to judge: no backward, or no step. None if there were both."""
    if not run.backwards:
        if run.gradient_calls:
            return Cause(
                f"the test body never called backward ({run.gradient_calls} calls of"
                " torch.autograd.grad were seen)",
                "call `loss.backward()` and a torch optimizer; an update written by hand"
                " cannot be judged",
            )
        return Cause(
            "the test body never called backward",
            "call the training loop in the test, and give it data: a loop over nothing"
            " does nothing",
        )
    if not run.steps:
        last = run.backwards[-1]
        calls = counted(len(run.backwards), "backward call")
        return Cause(
            f"no optimizer stepped: {calls}, the last at {last.where}, and no"
            " `optimizer.step()` after it",
            "call `optimizer.step()` of a torch.optim optimizer; an update written by hand"
            " cannot be seen",
        )
    return None


def nothing_learns(run: Run) -> Cause | None:
    """Why no optimizer of `run` could have taught its parameters anything; None if unknown."""
    parameters = run.parameters
    for optimizer in run.optimizers:
        own = [parameters[index] for group in optimizer.groups for index in group]
        cause = (
            _without_gradients(run, optimizer, own)
            or _without_rate(run, optimizer)
            or _without_movement(optimizer, own)
        )
        if cause is not None:
            return cause
    return None


def _without_gradients(run: Run, optimizer: Optimizer, own: list[Parameter]) -> Cause | None:
    if any(parameter.had_nonzero_gradient for parameter in own):
        return None
    where = run.backwards[-1].where
    names = listed([parameter.name for parameter in own])
    if any(parameter.had_gradient for parameter in own):
        return Cause(
            f"all gradients are zero when {title(optimizer)} steps: those of {names}",
            "look for gradients that are filled with zeros between `backward()` and `step()`, and"
            " for a loss that does not change with the model's output (clamped, saturated)",
            (f"backward was called at {where}",),
        )
    if any(parameter.reached for parameter in own):
        return Cause(
            f"the gradients are gone when {title(optimizer)} steps: none of {names} has one",
            "clear gradients before `backward()`, not between `backward()` and `step()`",
            (f"backward was called at {where}",),
        )
    others = [one.name for one in run.parameters if one.reached and not one.optimizers]
    if others:
        return Cause(
            f"{title(optimizer)} updates no parameter that the loss depends on:"
            f" the loss depends on {listed(others)}",
            "build the optimizer from the parameters of the model that is trained,"
            " after the model is complete",
            (f"backward was called at {where}",),
        )
    return Cause(
        f"the loss is cut off from the parameters of {title(optimizer)}: no gradient"
        f" reaches {names}",
        "look for `.detach()`, `.data`, `.item()`, `torch.tensor(...)` or `no_grad`"
        " between the model and the loss",
        (f"backward was called at {where}",),
    )


def _without_rate(run: Run, optimizer: Optimizer) -> Cause | None:
    steps = run.steps_of(run.optimizers.index(optimizer))
    if any(rate != 0 for step in steps for rate in step.learning_rates):
        return None
    return Cause(
        f"the learning rate is 0 in all {len(steps)} steps of {title(optimizer)}",
        "give the optimizer a learning rate above 0, or let the warm-up begin above 0",
    )


def _without_movement(optimizer: Optimizer, own: list[Parameter]) -> Cause | None:
    if not own or any(parameter.moved is not False for parameter in own):
        return None
    return Cause(
        f"no parameter of {title(optimizer)} changed in {optimizer.steps} steps",
        "look for something that puts the weights back, or an update that is skipped",
    )
