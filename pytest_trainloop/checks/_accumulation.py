"""Where a run of micro-batches parts from the run of whole batches that it should equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_trainloop.checks._tensors import NEARLY, ROUNDING, factor_between, first_difference
from pytest_trainloop.checks._verdict import CannotJudgeError, PromiseBrokenError
from pytest_trainloop.rules._naming import counted, joined, title

if TYPE_CHECKING:
    from pytest_trainloop.runtime.accumulation import TakeUpdates, Update
    from pytest_trainloop.runtime.record import Optimizer, Run

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True

#: A difference of an update's movement that is rounding.
_MOVED = 0.02


@dataclass(frozen=True, slots=True)
class Pair:
    """The two runs, and how they were to make an update."""

    micro: TakeUpdates
    whole: TakeUpdates
    steps: int
    batch_size: int
    tolerance: float

    @property
    def samples(self) -> int:
        """How many samples an update is made of."""
        return self.steps * self.batch_size

    def updates(self) -> Iterator[tuple[int, Update, Update]]:
        """Each update of both, numbered from 1."""
        both = zip(self.micro.updates, self.whole.updates, strict=False)
        for number, (ours, theirs) in enumerate(both, 1):
            yield number, ours, theirs

    def run(self) -> Run:
        """The record of the run of micro-batches.

        Raises:
            RuntimeError: it has not begun.
        """
        if self.micro.run is None:
            raise RuntimeError("no run")
        return self.micro.run

    def optimizer(self, update: Update) -> Optimizer:
        """The optimizer of an update."""
        return self.run().optimizers[update.optimizer]


def refuse_other_data(pair: Pair) -> None:
    """Raise where the first update of the two runs is made from other data."""
    ours, theirs = pair.micro.updates[0], pair.whole.updates[0]
    seen = len(theirs.samples)
    if not seen or not ours.samples:
        # No data loader: what is given to the model cannot be told.
        return
    if seen != pair.samples:
        raise CannotJudgeError(
            f"the first update of whole batches is made from {counted(seen, 'sample')}, not from"
            f" {pair.samples}",
            advice="give the data loader `accumulation.batch_size`, and enough data for one batch"
            f" of {pair.samples}",
        )
    if ours.backwards == pair.steps * theirs.backwards and Counter(ours.samples) != Counter(
        theirs.samples
    ):
        raise CannotJudgeError(
            "the first update is not made from the same data in both runs",
            advice="let data and their order not depend on the batch size",
        )


def refuse_difference(pair: Pair) -> None:
    """Raise for the first thing in which the run of micro-batches differs."""
    for number, ours, theirs in pair.updates():
        if number == 1:
            _refuse_other_start(pair)
            _refuse_other_count(pair, ours, theirs)
            _refuse_written_weights(ours, theirs)
        elif _is_remainder(pair, ours, theirs):
            # How to weigh what is left at the end of an epoch is the loop's own choice.
            _refuse_leak(pair, number, ours, theirs)
            break
        _refuse_other_rates(pair, number, ours, theirs)
        _refuse_other_gradients(pair, number, ours, theirs)
        _refuse_other_weights(number, ours, theirs)
    made, expected = len(pair.micro.updates), len(pair.whole.updates)
    if made < expected:
        raise PromiseBrokenError(
            f"{made} updates were made, not {expected}: the micro-batches that are left at the end"
            " of an epoch are dropped",
            f"the last update is made at {pair.micro.updates[-1].where}",
            advice="step also at the last batch of an epoch, or let the loader drop what does not"
            " fit",
            said_at=pair.micro.updates[-1].where,
        )


def _refuse_other_count(pair: Pair, ours: Update, theirs: Update) -> None:
    expected = pair.steps * theirs.backwards
    name = title(pair.optimizer(ours))
    if ours.backwards == expected:
        return
    if ours.backwards == theirs.backwards:
        raise PromiseBrokenError(
            f"{name} steps after every micro-batch, not after {pair.steps} of them",
            f"it steps at {ours.where}",
            advice="step where `(i + 1) % accumulation_steps == 0`; a test gives the loop"
            " `accumulation.steps`",
            said_at=ours.where,
        )
    raise PromiseBrokenError(
        f"{name} makes its first update from {counted(ours.backwards, 'backward call')}, not"
        f" from {expected}",
        f"it steps at {ours.where}",
        advice="step where `(i + 1) % accumulation_steps == 0`, counting from 0",
        said_at=ours.where,
    )


def _is_remainder(pair: Pair, ours: Update, theirs: Update) -> bool:
    """Whether one of the two is made of what was left at the end of an epoch."""
    if ours.backwards != pair.steps * theirs.backwards:
        return True
    return bool(ours.samples) and Counter(ours.samples) != Counter(theirs.samples)


def _refuse_leak(pair: Pair, number: int, ours: Update, theirs: Update) -> None:
    expected = pair.steps * theirs.backwards
    if ours.backwards > expected and not ours.restarts:
        raise PromiseBrokenError(
            f"update {number} of {title(pair.optimizer(ours))} is made from {ours.backwards}"
            f" micro-batches, not from {expected}: what was left at the end of an epoch leaks"
            " into the next one",
            f"it steps at {ours.where}",
            advice="step at the last batch of an epoch, or clear the gradients when one begins",
            said_at=ours.where,
        )


def _refuse_other_rates(pair: Pair, number: int, ours: Update, theirs: Update) -> None:
    if ours.learning_rates == theirs.learning_rates:
        return
    raise PromiseBrokenError(
        f"the learning rate of {title(pair.optimizer(ours))} at update {number} is"
        f" {ours.learning_rates[0]:.6g}, not {theirs.learning_rates[0]:.6g}: its scheduler counts"
        " micro-batches",
        advice="call `scheduler.step()` after `optimizer.step()`, and give it the number of updates"
        " as its length",
    )


def _refuse_other_gradients(pair: Pair, number: int, ours: Update, theirs: Update) -> None:
    different = first_difference(ours.gradients, theirs.gradients, pair.tolerance)
    factor = factor_between(ours.gradients, theirs.gradients)
    if different is None and ours.clipped_from and theirs.clipped_from:
        # Clipped to the same length, gradients no longer tell that they were too long.
        factor = ours.clipped_from / theirs.clipped_from
        different = next(iter(theirs.gradients)) if abs(factor - 1) > pair.tolerance else None
    if different is None:
        return
    evidence = [
        f"{_norms(different, ours, theirs)} at update {number}",
        f"it steps at {ours.where}",
    ]
    if ours.restarts:
        at = f" at {ours.cleared}" if ours.cleared else ""
        raise PromiseBrokenError(
            f"the gradients are cleared between the micro-batches of an update{at}: those"
            " before are lost",
            *evidence,
            advice="call `optimizer.zero_grad()` after `optimizer.step()`, where it steps",
            said_at=ours.cleared or ours.where,
        )
    _refuse_what_differs_by_design(pair, ours, theirs)
    if factor is not None and abs(factor - 1) > pair.tolerance:
        raise _multiple(pair, factor, evidence, ours.where)
    if not ours.samples:
        raise CannotJudgeError(
            f"the gradient of `{different}` differs, and no data loader showed whether both runs"
            " were given the same data",
            *evidence,
            advice="give the loop its data through a `DataLoader`, or let them not depend on the"
            " batch size",
        )
    raise PromiseBrokenError(
        f"the gradient of `{different}` is not that of one batch of {pair.samples}: the mean over"
        " micro-batches is not the mean over what they hold",
        *evidence,
        advice="where micro-batches hold different numbers of tokens or masked values, sum the"
        " losses and divide by the number in all of them",
        said_at=ours.where,
    )


def _multiple(pair: Pair, factor: float, evidence: list[str], where: str) -> PromiseBrokenError:
    found = (
        f"the gradients of {pair.steps} micro-batches are {factor:.3g} times those of one batch of"
        f" {pair.samples}"
    )
    divide = "`(loss / accumulation_steps).backward()`"
    if abs(factor / pair.steps - 1) < NEARLY:
        return PromiseBrokenError(
            f"{found}: the loss is not divided by the number of micro-batches",
            *evidence,
            advice=f"divide it: {divide}",
            said_at=where,
        )
    if abs(factor * pair.steps - 1) < NEARLY:
        return PromiseBrokenError(
            f"{found}: the loss is divided twice",
            *evidence,
            advice="divide it once: Accelerate, Lightning and the Trainer of transformers do so"
            " themselves",
            said_at=where,
        )
    return PromiseBrokenError(
        found,
        *evidence,
        advice=f"divide the loss by the number of micro-batches: {divide}",
        said_at=where,
    )


def _refuse_what_differs_by_design(pair: Pair, ours: Update, theirs: Update) -> None:
    run = pair.run()
    looked_at = [one.in_eval_mode for one in run.backwards if one.in_eval_mode is not None]
    frozen = looked_at[0] if looked_at else ()
    norms = [
        f"`{one.name}` ({one.kind})"
        for index, one in enumerate(run.mode_modules)
        if "BatchNorm" in one.kind and index not in frozen
    ]
    if norms:
        verb = "normalises" if len(norms) == 1 else "normalise"
        raise CannotJudgeError(
            f"{joined(norms)} {verb} by the micro-batch, so the gradients differ by design",
            advice="put it into eval mode for this test, or replace it (GroupNorm)",
        )
    if ours.drew or theirs.drew:
        raise CannotJudgeError(
            "random numbers are drawn between a batch and its backward, so the gradients differ by"
            " design",
            advice="switch noise and random depth off for this test; dropout is left out anyway",
        )


def _refuse_other_start(pair: Pair) -> None:
    different = first_difference(pair.micro.start, pair.whole.start, 0.0)
    if different is not None:
        raise CannotJudgeError(
            f"the two runs begin with other weights in `{different}`",
            advice="build the model inside the test or a fixture of it, from generators that are"
            " seeded, and before anything that depends on the batch size",
        )


def _refuse_written_weights(ours: Update, theirs: Update) -> None:
    """Compare the weights that the two updates were made to."""
    different = first_difference(ours.before, theirs.before, 0.0)
    if different is not None:
        raise PromiseBrokenError(
            f"`{different}` is not the same before the first update: something writes to weights"
            " with every micro-batch",
            f"the update is made at {ours.where}",
            advice="write to weights (a decay, an average, a projection) where the optimizer steps",
            said_at=ours.where,
        )


def _refuse_other_weights(number: int, ours: Update, theirs: Update) -> None:
    """Compare what the same gradients made of the same weights."""
    largest = max((float(one.abs().max()) for one in theirs.gradients.values()), default=0.0)
    for name, after in theirs.after.items():
        gradient = theirs.gradients.get(name)
        if number > 1 or gradient is None or name not in ours.after:
            continue
        matters = gradient.abs() > ROUNDING * largest
        moved = float(((after - theirs.before[name]) * matters).abs().max())
        apart = float(((after - ours.after[name]) * matters).abs().max())
        if apart > _MOVED * moved:
            raise PromiseBrokenError(
                f"`{name}` is not what one batch makes of it, with the same gradients and learning"
                " rate",
                f"a value is {apart:.3g} away after update {number}, which moves it by {moved:.3g}",
                advice="look for what the optimizer counts with every micro-batch, and for options"
                " that depend on their number",
            )


def _norms(name: str, ours: Update, theirs: Update) -> str:
    if ours.clipped_from and theirs.clipped_from:
        return (
            f"gradient norm before clipping {ours.clipped_from:.4g} instead of"
            f" {theirs.clipped_from:.4g}"
        )
    norms = [
        f"{float(one.gradients[name].norm()):.4g}" if name in one.gradients else "none"
        for one in (ours, theirs)
    ]
    return f"`{name}`: gradient norm {norms[0]} instead of {norms[1]}"
