"""`@overfits`: the loss falls on one frozen batch of the loop's own data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pytest_trainloop.checks._cause import nothing_learns
from pytest_trainloop.checks._check import Check, Fails, Marker, Passes, Unjudged
from pytest_trainloop.checks._direction import pulls_up
from pytest_trainloop.checks._evidence import describe, numbers
from pytest_trainloop.checks._not_falling import Experiments, Losses, refuse
from pytest_trainloop.checks._nothing import refuse_nothing
from pytest_trainloop.checks._options import OptionError
from pytest_trainloop.checks._verdict import CannotJudgeError, PromiseBrokenError, Verdict
from pytest_trainloop.rules._naming import title
from pytest_trainloop.runtime.drive import FreezeBatch, FreezeChance, ScaleRate, StopAfter
from pytest_trainloop.runtime.non_finite import FindNonFinite
from pytest_trainloop.runtime.trend import FEWEST, Trend, has_reached, trend_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer

    from pytest_trainloop.checks._body import Body
    from pytest_trainloop.runtime.non_finite import Origin
    from pytest_trainloop.runtime.record import Run, Step

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True

_LOOP = """
    import torch
    from torch import nn

    from pytest_trainloop import overfits


    def train(loader, epochs=10, lr=1e-2):
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        for _ in range(epochs):
            for x, y in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()

"""


@dataclass(frozen=True, kw_only=True)
class Overfits(Check):
    """The loss falls on one frozen batch of the loop's own data.

    A loop that cannot learn a single batch by heart cannot learn anything. The body of the
    test calls the training loop as it is; each data loader then delivers its first batch over
    and over, and every step draws the same random numbers (dropout, noise, sampled data). The
    run is stopped as soon as the loss has fallen by `fall`, at the latest after `steps` training
    steps, and the losses are judged by their trend.

    Options:
        steps: training steps after which the run is stopped.
        fall: the part of the first loss that must be gone for the run to be stopped early. A
            loop that ends or is stopped before passes if its loss was still falling, and
            fails if it fell and then settled above that.
        optimizer: the name of the optimizer whose losses are judged, where several are
            trained on losses of their own (`opt_d`).

    Limits: data that is no `DataLoader` (a list of batches, a tensor) is not frozen; the loss is
    judged as it is, and with `maximize=True` upside down. A loss that is minus a criterion of
    torch fails where nobody can mean it: not with several optimizers, places of `backward` or
    terms of the loss. Passing is no proof of a correct loop: stale gradients or a layer outside
    of the optimizer still learn one batch by heart.
    """

    steps: int = 100
    fall: float = 0.5
    optimizer: str | None = None

    since: ClassVar[str] = "0.1.0"
    examples: ClassVar[tuple[Passes | Fails | Unjudged, ...]] = (
        Passes(
            "the loop learns one batch by heart",
            _LOOP
            + """
    @overfits
    def test_training(tiny_loader):
        train(tiny_loader)
    """,
        ),
        Fails(
            "a learning rate of zero",
            _LOOP
            + """
    @overfits
    def test_training(tiny_loader):
        train(tiny_loader, lr=0.0)
    """,
            "overfits: the learning rate is 0 in all 20 steps of `optimizer` (AdamW, built at",
        ),
        Fails(
            "the loop is never called",
            """
            import pytest


            @pytest.mark.overfits
            def test_training(tiny_loader):
                assert len(tiny_loader) > 0
            """,
            "overfits: the test body never called backward",
        ),
        Unjudged(
            "two steps show no trend",
            _LOOP
            + """
    @overfits
    def test_training(tiny_loader):
        train(tiny_loader, epochs=1)
    """,
            "overfits: cannot judge: 2 training steps show no trend",
        ),
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be judged by."""
        if self.steps < FEWEST:
            raise OptionError(f"`steps` is at least {FEWEST}, not {self.steps}")
        if not 0 < self.fall < 1:
            raise OptionError(f"`fall` is a part between 0 and 1, not {self.fall}")

    def judge(self, body: Body) -> Verdict:
        """Run the body once, on frozen data."""
        freeze, stop = FreezeBatch(), _StopOnceFallen(self)
        run = body.run(freeze, FreezeChance(), stop)
        refuse_nothing(run)
        cause = pulls_up(run)
        if cause is not None:
            raise PromiseBrokenError.by(cause, *numbers(run))
        series = self._series_to_judge(stop.series, run)
        for index, losses in series.items():
            seen = Losses(losses, run, index, self.fall, list(freeze.first.values()))
            refuse(seen, Experiments(partial(self._try_rate, body, index), _seek(body)))
        index, losses = max(series.items(), key=lambda pair: len(pair[1]))
        return Verdict(
            f"loss {losses[0]:.4g} → {losses[-1]:.4g} in {len(losses)} steps",
            {
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "trend": trend_of(losses, self.fall).value,
                "frozen": freeze.used,
            },
        )

    def _try_rate(self, body: Body, index: int, factor: float) -> list[float]:
        """The losses of another run, whose learning rates are multiplied with `factor`."""
        stop = _StopOnceFallen(self)
        body.try_again(FreezeBatch(), FreezeChance(), ScaleRate(factor), stop)
        return stop.series.get(index, [])

    def _series_to_judge(self, series: dict[int, list[float]], run: Run) -> dict[int, list[float]]:
        names = [optimizer.name for optimizer in run.optimizers]
        if self.optimizer is not None:
            if self.optimizer not in names:
                known = ", ".join(f"`{name}`" for name in names)
                raise CannotJudgeError(f"no optimizer is called `{self.optimizer}`; seen: {known}")
            return {i: losses for i, losses in series.items() if names[i] == self.optimizer}
        if not series:
            raise CannotJudgeError(
                "the losses could not be read",
                advice="back-propagate a loss that has one value",
            )
        good = (Trend.REACHED, Trend.FALLING)
        trends = {i: trend_of(losses, self.fall) for i, losses in series.items()}
        all_fall = all(trend in good for trend in trends.values())
        if len(series) == 1 or all_fall or Trend.NOT_FINITE in trends.values():
            return series
        if nothing_learns(run) is None:
            several = " and ".join(f"`{names[i]}`" for i in series)
            raise CannotJudgeError(
                f"{several} are trained on losses of their own, which do not all fall",
                *(f"{title(run.optimizers[i])}: {describe(ls)}" for i, ls in series.items()),
                advice="losses that pull against each other need not fall; name the one to"
                f' judge: @overfits(optimizer="{names[next(iter(series))]}")',
            )
        return series


def _seek(body: Body) -> Callable[[int], Origin | None]:
    """Another run, up to a step, to find out where nan or infinity comes from."""

    def seek(steps: int) -> Origin | None:
        finder = FindNonFinite()
        body.try_again(FreezeBatch(), FreezeChance(), finder, StopAfter(steps))
        return finder.origin

    return seek


class _StopOnceFallen(StopAfter):
    """Collects the losses of each optimizer, and stops the run once all have fallen."""

    def __init__(self, check: Overfits) -> None:
        super().__init__(check.steps)
        self.check = check
        self.series: dict[int, list[float]] = {}
        self._last_backward: object = None

    def maximizes(self, step: Step) -> bool:
        """Whether the optimizer of a step is to raise what is back-propagated."""
        run = self.run
        return run is not None and run.optimizers[step.optimizer].maximizes

    def after_step(self, optimizer: Optimizer, step: Step) -> None:
        __tracebackhide__ = True
        loss = step.loss
        if loss is not None and self.maximizes(step):
            loss = -loss
        # Optimizers that step on the same gradients have one loss between them.
        if loss is not None and step.backwards[-1] is not self._last_backward:
            self._last_backward = step.backwards[-1]
            self.series.setdefault(step.optimizer, []).append(loss)
        super().after_step(optimizer, step)
        fallen = (has_reached(losses, self.check.fall) for losses in self.series.values())
        if self.series and all(fallen):
            self.stop()


overfits = Marker(Overfits)
