"""`@frees`: memory does not grow with the number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from pytest_trainloop.checks._check import Check, Fails, Marker, Passes, Unjudged
from pytest_trainloop.checks._frees_examples import EXAMPLES
from pytest_trainloop.checks._nothing import refuse_nothing
from pytest_trainloop.checks._options import OptionError
from pytest_trainloop.checks._verdict import (
    CannotJudgeError,
    PromiseBrokenError,
    SymptomError,
    Verdict,
)
from pytest_trainloop.rules._naming import listed

if TYPE_CHECKING:
    from pytest_trainloop.checks._body import Body
    from pytest_trainloop.checks._growth import Growth
    from pytest_trainloop.runtime.census import Look
    from pytest_trainloop.runtime.record import Run

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True

#: Looks at what lives, spread over the steps; one more than what each must have left behind.
_LOOKS = 8
_FEWEST_LOOKS = 5
#: What the allocator of CUDA hands out at least.
_CUDA_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Frees(Check):
    """Memory does not grow with steps: no graph, tensor or optimizer state outlives its step.

    The body of the test is run once, as it is. After a few steps in which optimizers and caches
    make what they keep for good, everything that lives is looked at again and again: the graphs
    behind all tensors, the optimizers and their states, and tensors that have no graph. Memory
    grows if something new of every look is still there at the end. What holds it is named: the
    list that losses are appended to, the running total, the hidden state that is carried on.

    Options:
        steps: training steps after which the run is stopped.
        warm_up: steps before the first look.
        keeps: patterns of the names of what grows on purpose, such as `"self.buffer"`.

    Limits: single numbers without a graph, as one keeps them for a log, are not counted. Tensors
    without a graph are only judged after the first pass over a `DataLoader`: before, and without
    one, a cache or a replay buffer that is being filled looks the same. What Python does not
    know of shows on a CUDA device only, by the memory in use.
    """

    steps: int = 24
    warm_up: int = 4
    keeps: tuple[str, ...] = ()

    since: ClassVar[str] = "0.1.0"
    examples: ClassVar[tuple[Passes | Fails | Unjudged, ...]] = EXAMPLES

    def __post_init__(self) -> None:
        """Refuse values that cannot be judged by."""
        if self.warm_up < 1:
            raise OptionError(f"`warm_up` is at least 1, not {self.warm_up}")
        if self.steps < self.warm_up + _FEWEST_LOOKS:
            raise OptionError(
                f"`steps` is at least `warm_up` + {_FEWEST_LOOKS}, which is"
                f" {self.warm_up + _FEWEST_LOOKS}, not {self.steps}"
            )

    def judge(self, body: Body) -> Verdict:
        """Run the body, and look at what lives after its steps."""
        from pytest_trainloop.checks._growth import LookForGrowth
        from pytest_trainloop.runtime.drive import StopAfter

        every = max(1, (self.steps - self.warm_up) // _LOOKS)
        growing = LookForGrowth(self.warm_up, every, self.steps, self.keeps)
        run = body.run(growing, StopAfter(self.steps))
        refuse_nothing(run)
        looks = growing.looks
        if growing.growth is not None:
            raise _broken(run, looks, growing.growth)
        if len(looks) < _FEWEST_LOOKS:
            needed = self.warm_up + every * (_FEWEST_LOOKS - 1)
            raise CannotJudgeError(
                f"the loop made {run.training_steps} steps, and whether memory grows shows after"
                f" {needed}",
                advice="let the loop of the test make more steps: more epochs, or more examples",
            )
        _look_at_cuda(looks)
        last = looks[-1]
        return Verdict(
            f"{last.node_count} graph nodes and {last.tensor_count} tensors live after step"
            f" {last.step}, none of them kept from each step before",
            {"steps": run.training_steps, "looks": len(looks), "cuda_bytes": last.cuda_bytes},
        )


def _broken(run: Run, looks: list[Look], growth: Growth) -> PromiseBrokenError:
    where = run.backwards[-1].where
    counts = {
        "graphs": ("nodes of graphs", [look.node_count for look in looks]),
        "tensors": ("tensors without a graph", [look.tensor_count for look in looks]),
        "states": ("parameters with an optimizer state", [look.state_count for look in looks]),
    }
    evidence = []
    if growth.what in counts:
        thing, numbers = counts[growth.what]
        evidence.append(
            f"{thing} that live: {numbers[0]} after step {looks[0].step}, {numbers[-1]} after step"
            f" {looks[-1].step}"
        )
    grown = looks[-1].cuda_bytes - looks[0].cuda_bytes
    if grown > 0:
        evidence.append(f"CUDA memory in use: {grown:,} bytes more")
    evidence.append(f"backward was called at {where}")
    return PromiseBrokenError(_cause(growth), *evidence, advice=_advice(growth), said_at=where)


def _cause(growth: Growth) -> str:
    several = len(growth.names) > 1
    name = listed(growth.names) or "something that could not be found"
    if growth.what == "graphs" and growth.kind:
        return (
            f"{name} keeps the graphs of past steps: this {growth.kind} holds {growth.number}"
            " tensors with what computed them"
        )
    if growth.what == "graphs":
        keep, them = ("keep", "them") if several else ("keeps", "it")
        return (
            f"{name} {keep} the graphs of past steps: what computed {them} grows by"
            f" {growth.each_step:.3g} nodes a step"
        )
    if growth.what == "optimizers":
        return f"{name} keeps the optimizers of past steps: {growth.number} of them live"
    if growth.what == "states":
        return f"the state of {name} grows by {growth.each_step:.3g} parameters a step"
    return f"{name} keeps tensors of past steps: {growth.number} of them live"


def _advice(growth: Growth) -> str:
    if growth.what == "graphs":
        return (
            "keep the number alone, `loss.item()`, or a tensor without its graph,"
            " `.detach()`; a hidden state that is carried on is detached at each step"
        )
    if growth.what == "optimizers":
        return "build the optimizer once, before the loop"
    if growth.what == "states":
        return "build a new optimizer where the parameters are new ones, and let the old one go"
    example = growth.names[0] if growth.names else "buffer"
    return (
        "let go of what is not needed after the step; what is to grow is named:"
        f" @frees(keeps=({example!r},))"
    )


def _look_at_cuda(looks: list[Look]) -> None:
    """Find what grows on a device and is nobody's tensor: memory in use at each look."""
    used = [look.cuda_bytes for look in looks if look.passes > 0] or [
        look.cuda_bytes for look in looks
    ]
    differences = [after - before for before, after in pairwise(used)]
    if len(used) >= _LOOKS and min(differences) >= _CUDA_BLOCK:
        raise SymptomError(
            f"CUDA memory in use grows with every step: {used[0]:,} bytes after step"
            f" {looks[0].step}, {used[-1]:,} after step {looks[-1].step}",
            advice="no tensor that Python knows of holds it: look for extensions and for autograd"
            " functions that keep tensors in `ctx` without `save_for_backward`",
        )


frees = Marker(Frees)
