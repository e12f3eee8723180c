"""`@resumes`: preempted and started again, the run is the same run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pytest_trainloop.checks._check import Check, Fails, Marker, Passes, Unjudged
from pytest_trainloop.checks._compare import (
    CHANCE,
    Difference,
    closest_step,
    first_difference,
    first_difference_but_chance,
    first_difference_of_runs,
    same_weights,
)
from pytest_trainloop.checks._nothing import refuse_nothing
from pytest_trainloop.checks._options import OptionError
from pytest_trainloop.checks._resume_examples import EXAMPLES
from pytest_trainloop.checks._verdict import CannotJudgeError, PromiseBrokenError, Verdict
from pytest_trainloop.runtime.drive import Interruption, StopAfter
from pytest_trainloop.runtime.fingerprint import RunPrint, StepPrint, TakeFingerprints

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pytest_trainloop.checks._body import Body

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True
_WHOLE, _STOPPED, _RESUMED = (
    "uninterrupted run",
    "run that was interrupted",
    "run that went on from what was saved",
)


@dataclass(frozen=True, kw_only=True)
class Resumes(Check):
    """Preempted and started again, the run is the same run.

    The body of the test is run four times under the same seed, each time with its fixtures
    set up anew: uninterrupted, twice, to prove that it repeats; then preempted in the middle,
    as a machine that goes away does it; then once more with the same `checkpoint_dir`. That
    last run has to go on with the weights that the uninterrupted run had at some step, and from
    there equal it bit for bit: weights, optimizer state and its step count, learning rates, loss
    scale, data order and position, buffers, random numbers, averaged weights, number of steps.

    The loop may resume by itself, from what it finds in `checkpoint_dir`, or the test does it
    by hand. A loop that saves only at a planned stop takes the fixture `interruption`:
    `interruption.stopping` is true in the run that is to stop early and save,
    `interruption.resuming` in the one that goes on. A body that asks for `resuming` alone, to
    hand a script its checkpoint, is preempted like the others.

    Options:
        after: training steps after which the run is preempted. By default one step after a
            checkpoint was written, in the middle of an epoch where there is such a checkpoint.
        chance: whether batches and random numbers have to be the same. Switched off for a loop
            that draws anew after a restart, as most do that save once an epoch: then the first
            step that goes on is compared, and after it learning rates and the number of steps.
        steps: training steps after which even the uninterrupted run is stopped, so that a
            long loop can be judged by its beginning.

    Limits: state outside of the test's own fixtures, such as a global model, is not put back
    between the runs, and mostly shows as a run that does not repeat.
    """

    after: int | None = None
    chance: bool = True
    steps: int = 200

    since: ClassVar[str] = "0.1.0"
    needs: ClassVar[Mapping[str, str]] = {
        "checkpoint_dir": "the folder in which the loop saves, and finds what it saved"
    }
    runs_afresh: ClassVar[bool] = True
    examples: ClassVar[tuple[Passes | Fails | Unjudged, ...]] = EXAMPLES

    def __post_init__(self) -> None:
        """Refuse values that cannot be judged by."""
        if self.steps < 2:  # noqa: PLR2004  # one to stop after, one to go on with
            raise OptionError(f"`steps` is at least 2, not {self.steps}")
        if self.after is not None and not 1 <= self.after < self.steps:
            raise OptionError(f"`after` is between 1 and {self.steps - 1}, not {self.after}")

    def judge(self, body: Body) -> Verdict:
        """Run the body four times, and compare."""
        whole = self._uninterrupted(body)
        folder = body.new_folder()
        if body.stage.interruption.asked_to_stop:
            stopped = self._stop_as_planned(body, folder, whole)
        else:
            stopped = self._preempt(body, folder, whole)
        interruption = Interruption(resuming=True)
        resumed = _fingerprints(body, folder, StopAfter(self.steps), _RESUMED, interruption)
        pair = _Pair(whole, resumed, stopped, self.chance, capped=whole.made >= self.steps)
        return _compare(pair)

    def _uninterrupted(self, body: Body) -> RunPrint:
        """Two uninterrupted runs; the first one's fingerprints, once the second equals it."""
        runs = []
        for _ in range(2):
            prints = _fingerprints(body, body.new_folder(), StopAfter(self.steps), _WHOLE)
            runs.append(prints)
        found = first_difference_of_runs(runs[1], runs[0])
        if found is not None:
            index, difference = found
            raise CannotJudgeError(
                f"two uninterrupted runs differ at step {index + 1}: {difference.message}",
                advice="make the body repeat: build model, data and generators inside of it or in"
                " fixtures of its own, and seed generators of your own",
            )
        return runs[0]

    def _stop_as_planned(self, body: Body, folder: Path, whole: RunPrint) -> int:
        """Let the body stop by itself; the number of training steps it made."""
        interruption = Interruption(stopping=True)
        stopped = _fingerprints(body, folder, StopAfter(self.steps), _STOPPED, interruption)
        if stopped.made >= whole.made:
            raise CannotJudgeError(
                f"the run that was to stop early made all {whole.made} training steps",
                advice="train for fewer steps where `interruption.stopping` is true",
            )
        if not stopped.saved_after:
            raise PromiseBrokenError(
                f"nothing was saved in `checkpoint_dir` when the run stopped after"
                f" {stopped.made} training steps",
                advice="save where `interruption.stopping` is true",
            )
        return stopped.made

    def _preempt(self, body: Body, folder: Path, whole: RunPrint) -> int:
        """Stop the body from outside; the number of training steps it had made."""
        if whole.made < 2:  # noqa: PLR2004  # as above
            raise CannotJudgeError(
                "a loop of one training step cannot be interrupted",
                advice="let it make at least 2 training steps, better 8",
            )
        after = self.after or _where_to_preempt(whole)
        preempted = _fingerprints(body, folder, StopAfter(after), _STOPPED)
        if not preempted.saved_after:
            raise CannotJudgeError(
                f"the loop wrote nothing to `checkpoint_dir` before it was preempted after"
                f" {after} training steps",
                advice="save earlier, or preempt later: @resumes(after=...)",
            )
        return after


def _fingerprints(
    body: Body,
    folder: Path,
    stop: StopAfter,
    title: str,
    interruption: Interruption | None = None,
) -> RunPrint:
    take = TakeFingerprints(folder)
    run = body.run_afresh(take, stop, folder=folder, title=title, interruption=interruption)
    if title != _RESUMED:
        refuse_nothing(run)
    return take.prints


def _where_to_preempt(whole: RunPrint) -> int:
    """One step after the checkpoint nearest to the middle, inside of an epoch if there is one."""
    saved = [steps for steps in whole.saved_after if 0 < steps < whole.made]
    if not saved:
        when = "only at its end" if whole.saved_after else "never"
        raise CannotJudgeError(
            f"the loop wrote to `checkpoint_dir` {when}: preempted, it has nothing to go on from",
            advice="save during the run; a loop that saves at a planned stop takes the fixture"
            " `interruption`",
        )
    inside = [steps for steps in saved if steps not in whole.epoch_ends]
    return min(inside or saved, key=lambda steps: abs(steps - whole.made / 2)) + 1


@dataclass(frozen=True, slots=True)
class _Pair:
    """The uninterrupted run, and the one that went on, with how they are to be compared."""

    whole: RunPrint
    resumed: RunPrint
    #: After how many training steps the run was interrupted.
    stopped: int
    chance: bool
    #: Whether even the uninterrupted run was stopped before its end.
    capped: bool

    def difference(self, ours: StepPrint, theirs: StepPrint) -> Difference | None:
        """How a step of the run that went on differs from the one it should equal."""
        if self.chance:
            return first_difference(ours, theirs, self.whole.steps)
        return first_difference_but_chance(ours, theirs, restored=ours is self.resumed.steps[0])


def _compare(pair: _Pair) -> Verdict:
    whole, resumed, stopped = pair.whole, pair.resumed, pair.stopped
    if not resumed.steps:
        raise PromiseBrokenError(
            f"the run that went on made no training step; {whole.made - stopped} were left",
            advice="let a run that finds a checkpoint train the steps that are left",
        )
    start = _resumed_from(pair)
    here = whole.steps[start].number - 1
    told = f"resumed from step {here} of {whole.made} (interrupted after step {stopped})"
    for ours, theirs in zip(resumed.steps, whole.steps[start:], strict=False):
        difference = pair.difference(ours, theirs)
        if difference is not None:
            raise PromiseBrokenError(
                f"{difference.what} not the same at step {theirs.number}: {difference.message}",
                told,
                advice=_advice(difference),
                where=ours.where,
            )
    left = len(whole.steps) - start
    if len(resumed.steps) != left and not pair.capped:
        raise PromiseBrokenError(
            f"it made {len(resumed.steps)} steps after step {here}, where {left} were left",
            told,
            advice="save the number of steps made (or the epoch and the position in it) and go on"
            " from there",
            where=resumed.steps[-1].where,
        )
    facts: dict[str, object] = {"resumed_from": here, "interrupted_after": stopped}
    facts["steps"] = whole.made
    if not pair.chance:
        return Verdict(f"{told}, with other batches and random numbers", facts)
    if not pair.capped and resumed.final_weights != whole.final_weights:
        raise PromiseBrokenError(
            "the weights at the end are not those of the uninterrupted run",
            told,
            advice="look for what changes weights after the last step",
        )
    return Verdict(f"{told}, then equal bit for bit", facts)


def _advice(difference: Difference) -> str:
    if difference.what not in CHANCE:
        return difference.advice
    return f"{difference.advice}; a loop that draws anew by design takes @resumes(chance=False)"


def _resumed_from(pair: _Pair) -> int:
    """The index of the step of the uninterrupted run with whose weights the other began."""
    whole, resumed, stopped = pair.whole, pair.resumed, pair.stopped
    first = resumed.steps[0]
    matches = [i for i, step in enumerate(whole.steps) if same_weights(first, step)]
    # Weights that stand still match several steps: take the latest that had been reached.
    reached = [i for i in matches if whole.steps[i].number - 1 <= stopped]
    if not matches:
        index, distance = closest_step(first, whole.steps)
        raise PromiseBrokenError(
            "it went on with weights that the uninterrupted run never had",
            f"the closest are those of step {whole.steps[index].number - 1}: a value differs by"
            f" {distance:.3g}",
            f"interrupted after step {stopped}",
            advice="save and load all weights, in the precision they are trained in",
            where=first.where,
        )
    index = max(reached or matches)
    if not pair.capped and 0 in matches and len(resumed.steps) >= len(whole.steps):
        # What made all steps again did not go on, wherever weights stand still.
        index = 0
    if index == 0:
        _refuse_start(whole, resumed, stopped)
    return index


def _refuse_start(whole: RunPrint, resumed: RunPrint, stopped: int) -> None:
    evidence, where = f"interrupted after step {stopped} of {whole.made}", resumed.steps[0].where
    if len(resumed.steps) >= len(whole.steps):
        raise PromiseBrokenError(
            f"nothing was restored: it started over and made all {whole.made} steps again",
            evidence,
            advice="load the newest checkpoint of `checkpoint_dir` when there is one",
            where=where,
        )
    raise PromiseBrokenError(
        "the weights were not restored: it went on with those the training began with",
        evidence,
        f"it made {resumed.made} of {whole.made} steps",
        advice="load the model's state dict before going on",
        where=where,
    )


resumes = Marker(Resumes)
