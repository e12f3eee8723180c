"""Why a run taught its model nothing: the questions, in the order in which to ask them.

Did backward run, did it reach parameters, are they in the optimizer, is the rate above zero, did
step run, did they move, do labels follow inputs. The first "no" is the cause, and every "yes"
before it is evidence. The last question is asked where the batches are known, in `_labels`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.checks._verdict import Cause
from pytest_trainloop.rules._naming import counted, listed, title

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Optimizer, Parameter, Run


@dataclass(frozen=True, slots=True)
class Answer:
    """A question that was asked of a run, what it said, and the cause if that was a no."""

    question: str
    said: str
    cause: Cause | None = None

    def __str__(self) -> str:
        """As it stands under a cause: did backward run? yes, 20 times."""
        return f"{self.question}? {self.said}"


def nothing_ran(run: Run) -> Cause | None:
    """Why there is nothing to judge: no backward, or no step. None if there were both."""
    return None if run.backwards and run.steps else _first_cause(list(_interview(run)))


def nothing_learns(run: Run) -> Cause | None:
    """Why no optimizer of `run` could have taught its parameters anything; None if unknown."""
    for optimizer in run.optimizers:
        cause = _first_cause(list(_interview(run, optimizer)))
        if cause is not None:
            return cause
    return None


def not_learning(run: Run, learning: list[Parameter]) -> Cause | None:
    """What keeps one of the parameters that are to learn from it; None if nothing does."""
    outside = [one.name for one in learning if not one.optimizers]
    if outside:
        return Cause(
            f"no optimizer holds {listed(outside)}",
            "build the optimizer over `model.parameters()`, after the last layer was made;"
            " or freeze them with `requires_grad_(False)`",
            run.optimizers[0].built,
            "parameters-not-in-optimizer",
        )
    last = run.backwards[-1].where
    without = [one.name for one in learning if not one.had_gradient]
    if without:
        return Cause(
            f"no gradient ever reached {listed(without)}",
            "look for a `detach()`, a `no_grad()` or a conversion between these layers and"
            " the loss; or name what takes no part: @trains(unused=(...))",
            last,
            "detached-loss",
        )
    first = next((step for step in run.steps if step.nonfinite), None)
    if first is not None:
        names, loss = listed(run.names(first.nonfinite or ())), first.loss
        finite = loss is None or math.isfinite(loss)
        begin = "" if finite else f"the loss is {loss} at step {first.number}: "
        return Cause(
            f"{begin}gradients that are not finite reached {names}"
            + (f" at step {first.number}" if finite else ""),
            "`torch.autograd.set_detect_anomaly(True)` names the operation",
            last,
            "non-finite-update",
        )
    still = [one.name for one in learning if one.moved is False]
    if still:
        return Cause(
            f"these parameters got gradients and did not move: {listed(still)}",
            "look at their group's learning rate, and at gradients that are all zero",
            run.optimizers[0].built,
        )
    return None


def asked(run: Run) -> list[Answer]:
    """What was asked, up to the first no: of the optimizer that has one, else of the first."""
    if not run.optimizers:
        return list(_interview(run))
    interviews = [list(_interview(run, optimizer)) for optimizer in run.optimizers]
    return next((one for one in interviews if one[-1].cause is not None), interviews[0])


def _first_cause(answers: list[Answer]) -> Cause | None:
    cause = answers[-1].cause
    if cause is None or len(answers) == 1:
        return cause
    said = tuple(map(str, answers))
    return Cause(cause.message, cause.advice, cause.where, cause.rule, (*cause.evidence, *said))


def _interview(run: Run, optimizer: Optimizer | None = None) -> Iterator[Answer]:
    """Ask until the answer is no; of a run in which nothing stepped there is less to ask."""
    parameters = run.parameters
    answer = _did_backward_run(run)
    yield answer
    if answer.cause is not None:
        return
    if optimizer is None:
        yield Answer("did it reach parameters", _reached(parameters))
        yield _did_nothing_step(run)
        return
    own = [parameters[index] for group in optimizer.groups for index in group]
    for answer in (
        _did_it_reach(run, optimizer, own),
        _are_they_held(run, optimizer, own),
        _is_the_rate_above_zero(run, optimizer),
    ):
        yield answer
        if answer.cause is not None:
            return
    yield Answer("did step run", f"yes, {counted(optimizer.steps, 'time')}")
    yield _did_they_move(optimizer, own)


def _did_backward_run(run: Run) -> Answer:
    question = "did backward run"
    if run.backwards:
        last = run.backwards[-1].where
        return Answer(question, f"yes, {counted(len(run.backwards), 'time')}, the last at {last}")
    cause = Cause(
        "the test body never called backward",
        "call the training loop in the test, and give it data: a loop over nothing does nothing",
    )
    return Answer(question, "no", cause)


def _did_nothing_step(run: Run) -> Answer:
    last = run.backwards[-1]
    calls = counted(len(run.backwards), "backward call")
    cause = Cause(
        f"no optimizer stepped: {calls}, the last at {last.where}, and no"
        " `optimizer.step()` after it",
        "call `optimizer.step()` of a torch.optim optimizer; an update written by hand"
        " cannot be seen",
        last.where,
        "missing-step",
    )
    return Answer("did step run", "no", cause)


def _reached(parameters: list[Parameter]) -> str:
    trainable = [one for one in parameters if one.trainable]
    got = sum(one.reached or one.had_gradient for one in trainable)
    return f"yes, {got} of {len(trainable)}" if got else "no"


def _did_it_reach(run: Run, optimizer: Optimizer, own: list[Parameter]) -> Answer:
    question = "did it reach parameters"
    cause = _frozen(optimizer, own) or _not_there_at_the_step(run, optimizer, own)
    if cause is not None:
        return Answer(question, f"no, none of `{optimizer.name}` when it stepped", cause)
    if not any(one.reached or one.had_gradient for one in run.parameters):
        return Answer(question, "no", _cut_off(run, optimizer, own))
    return Answer(question, _reached(run.parameters))


def _frozen(optimizer: Optimizer, own: list[Parameter]) -> Cause | None:
    if not own or any(one.trainable or one.had_gradient or one.moved for one in own):
        return None
    return Cause(
        f"all {counted(len(own), 'parameter')} of {title(optimizer)} are frozen: their"
        " `requires_grad` is False",
        "unfreeze what is to learn with `requires_grad_(True)`, or leave out the optimizer",
        optimizer.built,
        "frozen-parameters",
    )


def _not_there_at_the_step(run: Run, optimizer: Optimizer, own: list[Parameter]) -> Cause | None:
    """Why gradients that were computed were of no use to the step."""
    if any(one.had_nonzero_gradient for one in own):
        return None
    names = listed(one.name for one in own)
    where = run.backwards[-1].where
    if any(one.had_gradient for one in own):
        return Cause(
            f"all gradients are zero when {title(optimizer)} steps: those of {names}",
            "look for gradients that are filled with zeros between `backward()` and `step()`, and"
            " for a loss that does not change with the model's output (clamped, saturated)",
            where,
        )
    if any(one.reached for one in own):
        return Cause(
            f"the gradients are gone when {title(optimizer)} steps: none of {names} has one",
            "clear gradients before `backward()`, not between `backward()` and `step()`",
            where,
            "zero-grad-before-step",
        )
    return None


def _cut_off(run: Run, optimizer: Optimizer, own: list[Parameter]) -> Cause:
    return Cause(
        f"the loss is cut off from the parameters of {title(optimizer)}: no gradient"
        f" reaches {listed(one.name for one in own)}",
        "look for `.detach()`, `.data`, `.item()`, `torch.tensor(...)` or `no_grad`"
        " between the model and the loss",
        run.backwards[-1].where,
        "detached-loss",
    )


def _are_they_held(run: Run, optimizer: Optimizer, own: list[Parameter]) -> Answer:
    question = "are they in the optimizer"
    if any(one.reached or one.had_gradient for one in own):
        trainable = sum(one.trainable for one in run.parameters)
        held = sum(one.trainable for one in own)
        return Answer(question, f"yes, `{optimizer.name}` has {held} of {trainable}")
    others = [one.name for one in run.parameters if one.reached and not one.optimizers]
    if not others:
        return Answer(question, "no, not those that it reached", _cut_off(run, optimizer, own))
    cause = Cause(
        f"{title(optimizer)} updates no parameter that the loss depends on:"
        f" the loss depends on {listed(others)}",
        "build the optimizer from the parameters of the model that is trained,"
        " after the model is complete",
        optimizer.built,
        "parameters-not-in-optimizer",
    )
    return Answer(question, f"no, `{optimizer.name}` has none of them", cause)


def _is_the_rate_above_zero(run: Run, optimizer: Optimizer) -> Answer:
    question = "is the learning rate above zero"
    steps = run.steps_of(run.optimizers.index(optimizer))
    rates = [rate for step in steps for rate in step.learning_rates]
    if any(rate != 0 for rate in rates):
        return Answer(question, f"yes, up to {max(rates):.3g}")
    cause = Cause(
        f"the learning rate is 0 in all {len(steps)} steps of {title(optimizer)}",
        "give the optimizer a learning rate above 0, or let the warm-up begin above 0",
        steps[-1].where if steps else optimizer.built,
        "zero-learning-rate",
    )
    return Answer(question, "no", cause)


def _did_they_move(optimizer: Optimizer, own: list[Parameter]) -> Answer:
    question = "did they move"
    moved = sum(one.moved is not False for one in own)
    if moved or not own:
        return Answer(question, f"yes, {moved} of {len(own)}")
    cause = Cause(
        f"no parameter of {title(optimizer)} changed in {counted(optimizer.steps, 'step')}",
        "look for something that puts the weights back, or an update that is skipped",
        optimizer.built,
    )
    return Answer(question, "no", cause)
