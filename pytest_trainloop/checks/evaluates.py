"""`@evaluates`: evaluation changes nothing, and says the same each time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pytest_trainloop.checks._check import Check, Fails, Marker, Passes, Unjudged
from pytest_trainloop.checks._evaluate_examples import EXAMPLES
from pytest_trainloop.checks._evaluation import (
    Evaluation,
    refuse_chance,
    refuse_changes,
    refuse_graphs,
    refuse_mixing,
    refuse_train_mode,
)
from pytest_trainloop.checks._options import OptionError
from pytest_trainloop.checks._verdict import CannotJudgeError, PromiseBrokenError, Verdict
from pytest_trainloop.rules._naming import counted, title
from pytest_trainloop.runtime.calls import ModelCalls
from pytest_trainloop.runtime.kept import KeepState
from pytest_trainloop.runtime.replay import OtherChance, ProbeCompanions

if TYPE_CHECKING:
    from pytest_trainloop.checks._body import Body
    from pytest_trainloop.runtime.observe import Listener
    from pytest_trainloop.runtime.record import Run

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True


@dataclass(frozen=True, kw_only=True)
class Evaluates(Check):
    """Evaluation changes nothing, builds no graph, and says the same each time.

    The body of the test calls the evaluation as it is, on a model that a fixture made (or
    that it makes itself). It is run up to three times under the same seed, each time with its
    fixtures set up anew. The first run has to leave everything as it was: weights, buffers,
    gradients, the state of optimizers, the train/eval mode; and may build no graph that nobody
    back-propagates. In the second run the random numbers are others from the first call of the
    model on: what the model is given and gives has to be the same. In the third, each of the
    first calls is made again with other samples beside one of them, which may not change what
    the model gives for that one.

    In a body that trains as well, the calls without gradients are judged, in eval mode or on
    data that are asked for without gradients; what they leave behind is told from what
    training does by the calls themselves.

    Options:
        modes: whether the train/eval mode has to be as it was. Switched off for an evaluation
            that leaves the model in eval mode, where each epoch begins with `model.train()`.
        rng: whether the global random number generators have to be as they were. A `DataLoader`
            draws from them whenever it is iterated.
        repeats: whether it has to say the same each time. Switched off for an evaluation that
            draws by design: Monte Carlo dropout, diffusion noise.
        independent: whether each sample has to be judged by itself. Switched off for a
            model that compares the samples of a batch.
        tolerance: a difference of what the model gives, relative to the largest value of the
            output, that is rounding.

    Limits: an evaluation that asks for gradients itself (attacks, saliency, forces) builds
    graphs for a reason, and is not judged for them. The dependence between samples is judged
    where a model is given tensors whose first dimension is that of the samples.
    """

    modes: bool = True
    rng: bool = False
    repeats: bool = True
    independent: bool = True
    tolerance: float = 1e-4

    since: ClassVar[str] = "0.1.0"
    runs_afresh: ClassVar[bool] = True
    examples: ClassVar[tuple[Passes | Fails | Unjudged, ...]] = EXAMPLES

    def __post_init__(self) -> None:
        """Refuse values that cannot be judged by."""
        if not 0 <= self.tolerance < 1:
            raise OptionError(f"`tolerance` is between 0 and 1, not {self.tolerance}")

    def judge(self, body: Body) -> Verdict:
        """Run the body three times: as it is, by other chance, among other samples."""
        seen, keep = ModelCalls(), KeepState(body.code)
        run = self._run(body, "first run", seen, keep)
        evaluation = Evaluation(run, seen, keep.changes)
        _refuse_nothing(evaluation)
        if self.repeats:
            refuse_train_mode(evaluation)
        refuse_changes(evaluation, modes=self.modes, rng=self.rng)
        refuse_graphs(evaluation)
        if self.repeats:
            other = OtherChance(evaluation.first, body.seed + 1)
            self._run(body, "run with other random numbers", other)
            refuse_chance(evaluation, other, self.tolerance)
        unclear = ""
        if self.independent:
            probe = ProbeCompanions(evaluation.first, evaluation.trains, self.tolerance)
            self._run(body, "run with other samples beside each other", probe)
            unclear = refuse_mixing(probe)
        return self._verdict(evaluation, unclear)

    def _run(self, body: Body, title: str, *listeners: Listener) -> Run:
        return body.run_afresh(*listeners, folder=body.new_folder(), title=title)

    def _verdict(self, evaluation: Evaluation, unclear: str) -> Verdict:
        kept = ["changed nothing", *(["said the same twice"] if self.repeats else ())]
        if self.independent:
            kept.append(f"samples not judged apart: {unclear}" if unclear else "each by itself")
        calls = len(evaluation.calls)
        facts: dict[str, object] = {"calls": calls, "independent": self.independent and not unclear}
        return Verdict(
            f"{counted(calls, 'call')} of {evaluation.models()}: {', '.join(kept)}", facts
        )


def _refuse_nothing(evaluation: Evaluation) -> None:
    run = evaluation.run
    if run.steps and not any(call.training for call in evaluation.all_calls):
        step = run.steps[0]
        optimizer = title(run.optimizers[step.optimizer])
        raise PromiseBrokenError(
            f"the evaluation trains: {optimizer} stepped {counted(len(run.steps), 'time')}, first"
            f" at {step.where}, in eval mode",
            advice="leave `backward()` and `step()` out of the evaluation; train in a fixture what"
            " is to be evaluated",
            said_at=step.where,
        )
    if evaluation.calls:
        return
    if run.backwards:
        raise CannotJudgeError(
            "the test body trains, and no evaluation was seen: no model was called without"
            " gradients and in eval mode, or on batches asked for without gradients",
            advice="call the evaluation alone, on a model from a fixture",
        )
    raise CannotJudgeError(
        "the test body called no model",
        advice="call the evaluation in the test, and give it data: an evaluation of nothing says"
        " nothing",
    )


evaluates = Marker(Evaluates)
