"""What is wrong with an evaluation, from the calls of models in it and what they left behind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from pytest_trainloop.checks._verdict import CannotJudgeError, PromiseBrokenError
from pytest_trainloop.rules._naming import counted, joined, listed
from pytest_trainloop.runtime.calls import UNREADABLE, relative_difference

if TYPE_CHECKING:
    from pytest_trainloop.runtime.calls import ModelCall, ModelCalls
    from pytest_trainloop.runtime.kept import Change
    from pytest_trainloop.runtime.record import Run
    from pytest_trainloop.runtime.replay import OtherChance, ProbeCompanions

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True

_WITHOUT = "put the evaluation under `torch.no_grad()` or `torch.inference_mode()`"


class Evaluation:
    """The calls of a run that evaluate, and what the run left behind."""

    def __init__(self, run: Run, seen: ModelCalls, changes: list[Change]) -> None:
        self.run = run
        self.all_calls = seen.calls
        self.trains = bool(run.steps) or _trains_by_hand(seen.calls)
        #: Those that are judged, and the number of the first among all.
        numbered = [(n, one) for n, one in enumerate(seen.calls) if one.evaluates(self.trains)]
        self.calls = [call for _, call in numbered]
        self.first = numbered[0][0] if numbered else 0
        #: What a run that only evaluates changed; what training changes is not told apart.
        self.changes = [] if self.trains else changes
        self._seen = seen

    def models(self) -> str:
        """The models that were called, by name."""
        return listed(dict.fromkeys(call.model for call in self.calls))

    def name(self, change: Change) -> str:
        """The user's name for what changed; else its class."""
        if change.what == "optimizer":
            return change.kind
        return self._seen.name(change.module)


def _trains_by_hand(calls: list[ModelCall]) -> bool:
    """Whether a model had other weights after a backward that no optimizer used."""
    first: dict[int, ModelCall] = {}
    for call in calls:
        if not call.weights or UNREADABLE in call.weights:
            continue
        before = first.setdefault(call.which, call)
        if call.backwards > before.backwards and call.weights != before.weights:
            return True
    return False


def refuse_train_mode(evaluation: Evaluation) -> None:
    """Raise for a model that is called in train mode, and cares."""
    for call in evaluation.calls:
        if not call.training or call.in_eval_mode or not call.in_train_mode:
            continue
        evidence = [f"it is called at {call.where}"]
        if call.changed:
            evidence.append(f"each call changes {listed(call.changed)}")
        raise PromiseBrokenError(
            f"`{call.model}` is evaluated in train mode, on which {joined(call.in_train_mode)}"
            f" depend{'s' if len(call.in_train_mode) == 1 else ''}",
            *evidence,
            advice=f"call `{call.model}.eval()` before the evaluation and `{call.model}.train()`"
            " after it; one that draws on purpose takes @evaluates(repeats=False)",
            said_at=call.where,
        )


def refuse_changes(evaluation: Evaluation, *, modes: bool, rng: bool) -> None:
    """Raise for the first thing that the evaluation did not leave as it was."""
    for call in evaluation.calls:
        if call.changed:
            raise _changed_by_a_call(call)
    by_kind = {change.what: change for change in reversed(evaluation.changes)}
    asked = {"mode": modes, "rng": rng}
    for what in _CHANGES:
        if what in by_kind and asked.get(what, True):
            change = by_kind[what]
            raise _left_behind(change, evaluation.name(change), evaluation.run)


def _changed_by_a_call(call: ModelCall) -> PromiseBrokenError:
    if call.in_train_mode:
        verb = "is" if len(call.in_train_mode) == 1 else "are"
        advice = f"{joined(call.in_train_mode)} {verb} in train mode: put all of it into eval mode"
    else:
        advice = "write to buffers only where `self.training` is true"
    return PromiseBrokenError(
        f"evaluating `{call.model}` changes {listed(call.changed)}",
        f"it is called at {call.where}",
        advice=advice,
        said_at=call.where,
    )


class _Words(NamedTuple):
    cause: str
    advice: str


def _left_behind(change: Change, name: str, run: Run) -> PromiseBrokenError:
    told = _CHANGES[change.what]
    mode = "eval" if getattr(change.module, "training", None) is False else "another"
    words = {"names": listed(change.names), "name": name, "mode": mode}
    where = change.where
    evidence = [f"it was switched at {where}"] if where else []
    if change.what == "gradients" and run.backwards:
        where = run.backwards[-1].where
        evidence.append(f"backward was called at {where}")
    return PromiseBrokenError(
        told.cause.format(**words), *evidence, advice=told.advice.format(**words), said_at=where
    )


_WRITTEN = _Words(
    "the evaluation changes {names} of `{name}`",
    "evaluate without writing to weights or buffers; put averaged or converted weights back"
    " afterwards, or evaluate a copy",
)
#: Cause and advice by what changed, the most telling first.
_CHANGES = {
    "weights": _WRITTEN,
    "buffers": _WRITTEN,
    "gradients": _Words(
        "the evaluation changes the gradients of {names}",
        "the next training step would use them: ask for gradients with"
        " `torch.autograd.grad(loss, inputs)`, which leaves none behind",
    ),
    "requires_grad": _Words(
        "the evaluation switches `requires_grad` of {names}",
        f"leave it as it is, and {_WITHOUT}",
    ),
    "optimizer": _Words(
        "the evaluation changes the state or the learning rate of {name}",
        "step schedulers and optimizers in the training loop",
    ),
    "mode": _Words(
        "`{name}` is left in {mode} mode: training would go on without dropout, with BatchNorm"
        " as it stands",
        "put the mode back: `{name}.train(was_training)`; where each epoch begins with"
        " `{name}.train()`, take @evaluates(modes=False)",
    ),
    "rng": _Words(
        "the evaluation draws from the global generator of {names}: training would go on with"
        " other random numbers than without it",
        "evaluate inside of `torch.random.fork_rng()`, or give what draws (a DataLoader does, when"
        " it is iterated) a generator of its own",
    ),
}


def refuse_graphs(evaluation: Evaluation) -> None:
    """Raise for a graph that nobody back-propagates."""
    if evaluation.run.backwards or evaluation.run.gradient_calls:
        return
    for call in evaluation.calls:
        if call.builds_graph:
            raise PromiseBrokenError(
                f"the evaluation builds a graph that nobody back-propagates: `{call.model}` is"
                f" called with gradients at {call.where}",
                advice=_WITHOUT,
                said_at=call.where,
            )


def refuse_chance(evaluation: Evaluation, other: OtherChance, tolerance: float) -> None:
    """Raise where another run of the evaluation was given or gave something else."""
    first, second = (calls[evaluation.first :] for calls in (evaluation.all_calls, other.calls))
    if UNREADABLE in first[0].weights:
        raise CannotJudgeError(
            f"`{first[0].model}` gets its weights by its first call, inside of the evaluation",
            advice="call it once in a fixture, before the evaluation",
        )
    if first[0].weights != (second[0].weights if second else ()):
        raise CannotJudgeError(
            "a second run of the body does not evaluate the same weights",
            advice="build the model inside the test or a fixture of it, from generators that are"
            " seeded",
        )
    for one, again in zip(first, second, strict=False):
        # Once the first evaluation is over, training goes on by other chance.
        if one.inputs != again.inputs or one.backwards != first[0].backwards:
            break
        if not one.evaluates(evaluation.trains):
            continue
        for ours, theirs in zip(one.outputs, again.outputs, strict=False):
            difference = relative_difference(ours, theirs)
            if difference > tolerance:
                raise _drawn(one, difference)
    if not evaluation.trains:
        _refuse_other_data(first, second)


def _drawn(call: ModelCall, difference: float) -> Exception:
    if not call.training and call.in_train_mode:
        return CannotJudgeError(
            f"`{call.model}` draws by design: it is in eval mode, with"
            f" {joined(call.in_train_mode)} in train mode",
            advice="@evaluates(repeats=False) judges the rest",
            said_at=call.where,
        )
    return PromiseBrokenError(
        f"`{call.model}` gives something else for the same input, under other random numbers: a"
        f" value differs by {difference:.2g} of the largest",
        f"it is called at {call.where}",
        advice="look for `F.dropout(x)` without `training=self.training`, and for noise or samples"
        " that are drawn in `forward`; one that draws by design takes @evaluates(repeats=False)",
        said_at=call.where,
    )


def _refuse_other_data(first: list[ModelCall], second: list[ModelCall]) -> None:
    """Compare what the model was given as a whole, so that an order by chance is no matter."""
    if len({call.sizes for call in (*first, *second)}) > 1:
        # Padded to the longest of a batch, a sample is another one among others.
        return
    ours, theirs = (
        Counter(one for call in calls for one in call.samples) for calls in (first, second)
    )
    if ours == theirs:
        return
    missing = sum((ours - theirs).values())
    raise PromiseBrokenError(
        f"`{first[0].model}` is not given the same data under other random numbers: {missing} of"
        f" {counted(sum(ours.values()), 'sample')} are others",
        f"it is called at {first[0].where}",
        advice="look for random transforms in the evaluation data, a random subset, a shuffled"
        " loader with `drop_last`; give them a generator with a seed, or take"
        " @evaluates(repeats=False)",
        said_at=first[0].where,
    )


def refuse_mixing(probe: ProbeCompanions) -> str:
    """Raise where samples depend on each other; else why that could not be judged, or nothing."""
    if probe.mixing is None:
        return "" if probe.probed or not probe.unclear else probe.unclear[0]
    call, found = probe.mixing
    layer = f", from `{found.layer}` ({found.layer_kind}) on" if found.layer else ""
    raise PromiseBrokenError(
        f"what `{call.model}` gives for a sample depends on the other samples of its batch{layer}",
        f"among copies of itself, sample {found.sample} of a batch gets a value that differs by"
        f" {found.difference:.2g} of the largest",
        f"it is called at {call.where}",
        advice="look for BatchNorm in train mode or without running statistics, for a softmax, mean"
        " or norm over dimension 0, and for a recurrent layer without `batch_first`; a model that"
        " compares samples takes @evaluates(independent=False)",
        said_at=call.where,
    )
