"""Why losses that should fall do not: what can be told from the run, and by trying again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_trainloop.checks._cause import Answer, asked, nothing_learns
from pytest_trainloop.checks._evidence import describe, numbers
from pytest_trainloop.checks._labels import do_labels_follow
from pytest_trainloop.checks._verdict import CannotJudgeError, PromiseBrokenError, SymptomError
from pytest_trainloop.rules._naming import counted, listed, title
from pytest_trainloop.runtime.trend import FEWEST, LEAST_FALL, Trend, target, trend_of

if TYPE_CHECKING:
    from pytest_trainloop.runtime.non_finite import Origin
    from pytest_trainloop.runtime.record import Run

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True
#: Fewer steps than this may fall, but that they do not fall is no one's fault yet.
_FEWEST_TO_BLAME = 10
#: What a learning rate that may be too high, or too low, is multiplied with until the loss falls.
_LOWER, _HIGHER = (0.1, 1e-3), (10.0, 1e3)
_GOOD = (Trend.REACHED, Trend.FALLING)


@dataclass(frozen=True)
class Experiments:
    """Other runs of the same body, for what one run does not show."""

    #: The losses with the learning rates multiplied by a factor; none if the body failed.
    try_rate: Callable[[float], list[float]]
    #: Where nan or infinity comes from in the first so many steps.
    seek_non_finite: Callable[[int], Origin | None]


@dataclass(frozen=True)
class Losses:
    """A series of losses to judge, and what is known beside it."""

    losses: list[float]
    run: Run
    #: The optimizer whose losses they are, as an index into `Run.optimizers`.
    index: int
    #: The part of the first loss that is to go.
    fall: float
    #: The batches that were frozen, one for each data loader.
    batches: list[Any] = field(default_factory=list)

    @property
    def trend(self) -> Trend:
        """What they do."""
        return trend_of(self.losses, self.fall)

    @property
    def data(self) -> str:
        """What they are the losses of."""
        return "one frozen batch" if self.batches else "the data the test gave it"


def refuse(seen: Losses, experiments: Experiments) -> None:
    """Do nothing for losses that fall.

    Raises:
        PromiseBrokenError: they do not.
        CannotJudgeError: they are too few to tell.
    """
    trend = seen.trend
    if trend in _GOOD:
        return
    evidence = numbers(seen.run, seen.index, seen.losses)
    if trend is not Trend.NOT_FINITE:
        cause = nothing_learns(seen.run)
        if cause is not None:
            raise PromiseBrokenError.by(cause, *evidence)
    if len(seen.losses) < (FEWEST if trend is Trend.RISING else _FEWEST_TO_BLAME) and (
        trend is not Trend.NOT_FINITE
    ):
        raise CannotJudgeError(
            f"{counted(len(seen.losses), 'training step')} show{_s(seen)} no trend",
            describe(seen.losses),
            advice=f"let the loop make at least {_FEWEST_TO_BLAME} steps: more epochs, or more"
            " batches",
        )
    symptom = _symptom(seen, trend, evidence)
    symptom.explain = lambda: _explain(seen, trend, experiments)
    raise symptom


def _s(seen: Losses) -> str:
    return "s" if len(seen.losses) == 1 else ""


def _symptom(seen: Losses, trend: Trend, evidence: list[str]) -> SymptomError:
    if trend is Trend.NOT_FINITE:
        return _not_finite(seen, evidence)
    losses = seen.losses
    said = [*map(str, asked(seen.run)), *_labels(seen)]
    if trend is Trend.SETTLED:
        goal = target(losses[0], seen.fall)
        return SymptomError(
            f"the loss settled at {losses[-1]:.4g} on {seen.data}; {goal:.4g} was to be reached",
            *evidence,
            *said,
            advice="look for a loss that cannot go lower (softmax before cross entropy), labels"
            " that do not follow the inputs, or a part of the model that is not trained; a"
            " loss with a higher floor takes @overfits(fall=...)",
        )
    verb = "rises" if trend is Trend.RISING else "does not fall"
    return SymptomError(
        f"the loss {verb} on {seen.data}: {losses[0]:.4g} → {losses[-1]:.4g} in"
        f" {len(losses)} steps",
        *evidence,
        *said,
        advice="look for a wrong sign or a too high learning rate (the loss rises), labels that"
        " do not follow the inputs or a part that is not trained (it stays); a slow loop takes"
        " @overfits(steps=...)",
    )


def _not_finite(seen: Losses, evidence: list[str]) -> SymptomError:
    bad = _first_bad(seen.losses)
    steps = seen.run.steps_of(seen.index)
    step = steps[min(bad, len(steps) - 1)]
    symptom = SymptomError(
        f"the loss is {seen.losses[bad]} at step {bad + 1}",
        *evidence,
        f"learning rate there: {_rates(step.learning_rates)}",
        advice="look for a too high learning rate, a logarithm or division of zero, or inputs"
        " that are not finite",
        where=step.backwards[-1].where if step.backwards else step.where,
        rule="non-finite-update",
    )
    symptom.same_as = "non-finite-update"
    return symptom


def _first_bad(losses: list[float]) -> int:
    return next(i for i, loss in enumerate(losses) if not math.isfinite(loss))


def _rates(rates: tuple[float, ...]) -> str:
    return ", ".join(f"{rate:.3g}" for rate in rates)


def _labels(seen: Losses) -> list[str]:
    answer = _answer_of_labels(seen)
    return [] if answer is None else [str(answer)]


def _answer_of_labels(seen: Losses) -> Answer | None:
    return next((a for batch in seen.batches if (a := do_labels_follow(batch))), None)


def _explain(seen: Losses, trend: Trend, experiments: Experiments) -> PromiseBrokenError | None:
    """The cause of a symptom that no rule explains, or None."""
    evidence = numbers(seen.run, seen.index, seen.losses)
    answer = _answer_of_labels(seen)
    if trend in (Trend.SETTLED, Trend.FLAT) and answer is not None and answer.cause is not None:
        said = [str(one) for one in asked(seen.run)]
        return PromiseBrokenError.by(answer.cause, *evidence, *said, str(answer))
    if trend is Trend.SETTLED:
        return None
    # A first loss that is not finite has nothing to do with any rate.
    if math.isfinite(seen.losses[0]):
        factors = (*_LOWER, *_HIGHER) if trend is Trend.FLAT else _LOWER
        blamed = _wrong_rate(seen, experiments, factors, evidence)
        if blamed is not None:
            return blamed
    return _origin(seen, experiments, evidence) if trend is Trend.NOT_FINITE else None


def _wrong_rate(
    seen: Losses, experiments: Experiments, factors: tuple[float, ...], evidence: list[str]
) -> PromiseBrokenError | None:
    """Blame the learning rate if the same run learns with another one, and else does not."""
    steps = seen.run.steps_of(seen.index)
    highest = max((rate for step in steps for rate in step.learning_rates), default=0.0)
    good: dict[float, list[float]] = {}
    for factor in factors if highest > 0 else ():
        losses = experiments.try_rate(factor)
        if trend_of(losses, seen.fall) in _GOOD and _is_lower(losses, seen.losses):
            good[factor] = losses
            # Rather a rate with which the loss never rose than one with which it came back.
            if max(losses) <= losses[0]:
                break
    if not good:
        return None
    factor = next((f for f, losses in good.items() if max(losses) <= losses[0]), max(good))
    other, optimizer = highest * factor, seen.run.optimizers[seen.index]
    wrong, verb = ("too high", "lower") if factor < 1 else ("too low", "raise")
    return PromiseBrokenError(
        f"the learning rate {highest:.3g} of {title(optimizer)} is {wrong}: the loss"
        f" {_verb(seen)}, with {other:.3g} it falls",
        *evidence,
        f"with {other:.3g}: {describe(good[factor])}",
        advice=f"{verb} the learning rate towards {other:.3g}",
        where=optimizer.built,
    )


def _is_lower(losses: list[float], than: list[float]) -> bool:
    """Whether losses ended lower than others: both may have come down to the same floor."""
    return not losses[-1] >= than[-1] - LEAST_FALL * abs(losses[0])


def _origin(
    seen: Losses, experiments: Experiments, evidence: list[str]
) -> PromiseBrokenError | None:
    """Name the operation that first made nan or infinity, or the gradient that was the first."""
    bad = _first_bad(seen.losses)
    begin = f"the loss is {seen.losses[bad]} at step {bad + 1}"
    origin = experiments.seek_non_finite(bad + 1)
    if origin is not None and origin.given:
        early = [step for step in seen.run.steps_of(seen.index)[: bad + 1] if step.nonfinite]
        if early and bad and early[0].number <= bad:
            names = listed(seen.run.names(early[0].nonfinite or ()))
            return PromiseBrokenError(
                f"{begin}: the gradient of {names} is not finite at step {early[0].number},"
                " although the loss is",
                *evidence,
                advice="look for a root, norm or division whose derivative is not finite at 0;"
                " `torch.autograd.set_detect_anomaly(True)` names the operation",
                where=early[0].backwards[-1].where if early[0].backwards else early[0].where,
                rule="non-finite-update",
            )
    if origin is None:
        return None
    made = f"is given {origin.what}" if origin.given else f"makes {origin.what} of {origin.of}"
    return PromiseBrokenError(
        f"{begin}: `{origin.operation}` {made} at {origin.where}",
        *evidence,
        advice="look at what the data holds, before the model sees it"
        if origin.given
        else "keep its input where it is defined: add a small number, clamp, or take the version"
        " that is stable (`log_softmax`, `logsumexp`, `..._with_logits`)",
        where=origin.where,
        rule="non-finite-update",
    )


def _verb(seen: Losses) -> str:
    if seen.trend is Trend.NOT_FINITE:
        bad = _first_bad(seen.losses)
        return f"is {seen.losses[bad]} at step {bad + 1}"
    verb = "rises" if seen.trend is Trend.RISING else "does not fall"
    return f"{verb} on {seen.data} ({seen.losses[0]:.4g} → {seen.losses[-1]:.4g})"
