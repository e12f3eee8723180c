"""`@accumulates`: micro-batches make the update that one batch of their size makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pytest_trainloop.checks._accumulate_examples import EXAMPLES
from pytest_trainloop.checks._accumulation import Pair, refuse_difference, refuse_other_data
from pytest_trainloop.checks._check import Check, Fails, Marker, Passes, Unjudged
from pytest_trainloop.checks._nothing import refuse_nothing
from pytest_trainloop.checks._options import OptionError
from pytest_trainloop.checks._verdict import Verdict
from pytest_trainloop.rules._naming import counted
from pytest_trainloop.runtime.accumulation import Accumulation, TakeUpdates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_trainloop.checks._body import Body

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True


@dataclass(frozen=True, kw_only=True)
class Accumulates(Check):
    """Micro-batches make the update that one batch of their size makes.

    The body of the test takes the fixture `accumulation`, and trains with updates of
    `accumulation.steps` micro-batches of `accumulation.batch_size` samples. It is run twice under
    the same seed, each time with its fixtures set up anew: with `steps` micro-batches of
    `batch_size`, then with one batch of as many samples. Both runs have to be given the same
    data, and to come to the same gradients, learning rates, weights and number of updates. The
    first thing that differs is named, with its likely cause: a loss that is not divided, gradients
    that are cleared or used with every micro-batch, a dropped remainder.

    Dropout is left out of both runs: it draws one mask for each batch.

    Options:
        steps: micro-batches of an update.
        batch_size: samples of a micro-batch.
        updates: updates after which each run is stopped.
        tolerance: a difference of gradients, relative to the largest of a parameter, that is
            rounding. A loop in half precision is given 0.05 at least.

    Limits: batch normalisation, and other random numbers than those of dropout, make the two
    differ by design: such a loop cannot be judged. Gradients are compared in the first 3
    updates, and not in those made of fewer micro-batches, at the end of an epoch.
    """

    steps: int = 4
    batch_size: int = 2
    updates: int = 10
    tolerance: float = 1e-3

    since: ClassVar[str] = "0.1.0"
    needs: ClassVar[Mapping[str, str]] = {
        "accumulation": "how many micro-batches of which size make an update"
    }
    runs_afresh: ClassVar[bool] = True
    examples: ClassVar[tuple[Passes | Fails | Unjudged, ...]] = EXAMPLES

    def __post_init__(self) -> None:
        """Refuse values that cannot be judged by."""
        if self.steps < 2:  # noqa: PLR2004  # one micro-batch is no accumulation
            raise OptionError(f"`steps` is at least 2, not {self.steps}")
        for name in ("batch_size", "updates"):
            if getattr(self, name) < 1:
                raise OptionError(f"`{name}` is at least 1, not {getattr(self, name)}")
        if not 0 <= self.tolerance < 1:
            raise OptionError(f"`tolerance` is between 0 and 1, not {self.tolerance}")

    def judge(self, body: Body) -> Verdict:
        """Run the body in micro-batches, then in whole batches, and compare."""
        whole = self.steps * self.batch_size
        micro = self._run(body, Accumulation(self.steps, self.batch_size), "run of micro-batches")
        one = self._run(body, Accumulation(1, whole), "run of whole batches")
        tolerance = self.tolerance
        if micro.half_precision or one.half_precision:
            tolerance = max(tolerance, 0.05)
        pair = Pair(micro, one, self.steps, self.batch_size, tolerance)
        refuse_other_data(pair)
        refuse_difference(pair)
        made = min(len(micro.updates), len(one.updates))
        return Verdict(
            f"{counted(made, 'update')} of {self.steps} micro-batches of {self.batch_size} as of"
            f" one batch of {whole}",
            {"updates": made, "micro_batches": self.steps, "batch_size": self.batch_size},
        )

    def _run(self, body: Body, accumulation: Accumulation, title: str) -> TakeUpdates:
        take = TakeUpdates(self.updates)
        body.stage.accumulation = accumulation
        run = body.run_afresh(take, folder=body.new_folder(), title=title)
        refuse_nothing(run)
        return take


accumulates = Marker(Accumulates)
