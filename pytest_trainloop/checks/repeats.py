"""`@repeats`: with the same seed, the run is the same run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from pytest_trainloop.checks._check import Check, Fails, Marker, Passes, Unjudged
from pytest_trainloop.checks._compare import differing, first_difference_of_runs
from pytest_trainloop.checks._nothing import refuse_nothing
from pytest_trainloop.checks._options import OptionError
from pytest_trainloop.checks._verdict import Cause, PromiseBrokenError, Verdict
from pytest_trainloop.rules._naming import listed
from pytest_trainloop.runtime.drive import StopAfter
from pytest_trainloop.runtime.fingerprint import RunPrint, TakeFingerprints

if TYPE_CHECKING:
    from pytest_trainloop.checks._body import Body
    from pytest_trainloop.runtime.fingerprint import StepPrint

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True

_FEWEST_RUNS = 2


@dataclass(frozen=True, kw_only=True)
class Repeats(Check):
    """With the same seed, the run is the same run, bit for bit.

    The body of the test is run several times under the same seed of Python, NumPy and torch,
    each time with its fixtures set up anew. Every step has to begin with the same weights,
    see the same data, and come to the same loss, gradients and weights. The first thing that
    differs is named: the data order, the first weights, a generator that the seed does not
    reach, or an operator that is not deterministic.

    Options:
        runs: how often the body is run; a race may need more than two to show.
        steps: training steps after which each run is stopped.

    Limits: state outside of the test's own fixtures, such as a global model, is not put back
    between the runs, and shows as a run that does not repeat. Runs are compared in one
    process: what differs from process to process, such as the order of a set of strings,
    does not show.
    """

    runs: int = 2
    steps: int = 50

    since: ClassVar[str] = "0.1.0"
    runs_afresh: ClassVar[bool] = True
    examples: ClassVar[tuple[Passes | Fails | Unjudged, ...]] = (
        Passes(
            "dropout and shuffling under the seed",
            """
            import torch
            from torch import nn
            from torch.utils.data import DataLoader

            from pytest_trainloop import repeats


            def train(dataset, epochs=2):
                model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 2))
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
                for _ in range(epochs):
                    for x, y in DataLoader(dataset, batch_size=2, shuffle=True):
                        optimizer.zero_grad()
                        nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()


            @repeats
            def test_repeats(tiny_dataset):
                train(tiny_dataset)
            """,
        ),
        Fails(
            "a sampler with a generator of its own",
            """
            import torch
            from torch import nn
            from torch.utils.data import DataLoader

            from pytest_trainloop import repeats


            def train(dataset):
                generator = torch.Generator()
                generator.seed()
                model = nn.Linear(4, 2)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                loader = DataLoader(dataset, batch_size=1, shuffle=True, generator=generator)
                for x, y in loader:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x), y).backward()
                    optimizer.step()


            @repeats(runs=4)
            def test_repeats(tiny_dataset):
                train(tiny_dataset)
            """,
            cause="repeats: the data order is not the same at step ",
        ),
        Fails(
            "weights from a generator that no seed reaches",
            """
            import os

            import torch
            from torch import nn

            from pytest_trainloop import repeats


            def train(loader):
                generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))
                model = nn.Linear(4, 2)
                nn.init.normal_(model.weight, generator=generator)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for x, y in loader:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x), y).backward()
                    optimizer.step()


            @repeats
            def test_repeats(tiny_loader):
                train(tiny_loader)
            """,
            cause="repeats: the weights are not the same before step 1: other values in"
            " `model.weight`",
        ),
        Fails(
            "noise that no seed reaches",
            """
            import os

            import torch
            from torch import nn

            from pytest_trainloop import repeats


            def train(loader):
                generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))
                model = nn.Linear(4, 2)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for x, y in loader:
                    optimizer.zero_grad()
                    noise = torch.randn(x.shape, generator=generator)
                    nn.functional.cross_entropy(model(x + noise), y).backward()
                    optimizer.step()


            @repeats
            def test_repeats(tiny_loader):
                train(tiny_loader)
            """,
            cause="repeats: the loss is not the same at step 1, with the same weights, data and"
            " random numbers",
        ),
        Fails(
            "a loop that never steps",
            """
            from torch import nn

            from pytest_trainloop import repeats


            @repeats
            def test_repeats(tiny_model, tiny_loader):
                for x, y in tiny_loader:
                    nn.functional.cross_entropy(tiny_model(x), y).backward()
            """,
            cause="repeats: no optimizer stepped: 2 backward calls",
        ),
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be judged by."""
        if self.runs < _FEWEST_RUNS:
            raise OptionError(f"`runs` is at least {_FEWEST_RUNS}, not {self.runs}")
        if self.steps < 1:
            raise OptionError(f"`steps` is at least 1, not {self.steps}")

    def judge(self, body: Body) -> Verdict:
        """Run the body several times, and compare each run with the first."""
        first = self._run(body, 1)
        for number in range(2, self.runs + 1):
            _compare(first, self._run(body, number))
        facts: dict[str, object] = {"runs": self.runs, "steps": first.made}
        return Verdict(f"{self.runs} runs of {first.made} steps, equal bit for bit", facts)

    def _run(self, body: Body, number: int) -> RunPrint:
        folder = body.new_folder()
        take = TakeFingerprints(folder)
        title = f"run {number} of {self.runs}"
        run = body.run_afresh(take, StopAfter(self.steps), folder=folder, title=title)
        refuse_nothing(run)
        return take.prints


def _compare(first: RunPrint, other: RunPrint) -> None:
    found = first_difference_of_runs(other, first)
    if found is None and other.final_weights == first.final_weights:
        return
    if found is None:
        raise PromiseBrokenError(
            "the weights at the end are not the same",
            advice="look for what changes weights after the last step",
        )
    index, difference = found
    if index >= min(len(first.steps), len(other.steps)):
        raise PromiseBrokenError(
            f"the number of steps is not the same: {difference.message}",
            advice=difference.advice,
        )
    ours, theirs = other.steps[index], first.steps[index]
    cause = _explained(index, ours, theirs, difference.what)
    raise PromiseBrokenError.by(replace(cause, where=ours.where))


def _explained(index: int, ours: StepPrint, theirs: StepPrint, what: str) -> Cause:
    """The first difference, and which of the reasons for a run not to repeat it speaks for."""
    step = index + 1
    if what == "weights":
        return _weights(step, differing(ours.weights, theirs.weights))
    if what == "batch":
        return Cause(
            f"the data order is not the same at step {step}: another batch was delivered",
            advice="seed what orders the data: give the `DataLoader` or its sampler a generator,"
            " `torch.Generator().manual_seed(seed)`, or leave it to the global one",
        )
    if what == "RNG state":
        return Cause(
            f"the random numbers are not the same at step {step}: something draws from a global"
            " generator more often in one run than in the other",
            advice="look for what draws depending on time, threads or what is cached",
        )
    if what == "loss" and ours.loss == theirs.loss:
        gradients = listed(differing(ours.gradients, theirs.gradients))
        return Cause(
            f"the gradients are not the same at step {step}, with the same loss: {gradients}",
            advice="an operator's backward is not deterministic:"
            " `torch.use_deterministic_algorithms(True)` names it",
        )
    if what == "loss":
        return Cause(
            f"the loss is not the same at step {step}, with the same weights, data and random"
            " numbers",
            advice="look for a generator of its own that is not seeded, for time, and for an"
            " operator that is not deterministic: `torch.use_deterministic_algorithms(True)`",
            evidence=(f"{ours.loss!r} instead of {theirs.loss!r}",),
        )
    return Cause(
        f"the {what} is not the same at step {step}",
        advice="look for what sets it depending on time, chance or an earlier run",
    )


def _weights(step: int, names: list[str]) -> Cause:
    if step == 1:
        return Cause(
            f"the weights are not the same before step 1: other values in {listed(names)}",
            advice="build the model inside the test or a fixture of it, and initialise it from"
            " generators that are seeded",
        )
    return Cause(
        f"the weights are not the same after step {step - 1}: other values in {listed(names)}",
        advice="the update itself is not deterministic, or something else writes to them",
    )


repeats = Marker(Repeats)
