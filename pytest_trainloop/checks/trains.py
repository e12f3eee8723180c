"""`@trains`: every trainable parameter learns, and nothing else does."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from pytest_trainloop.checks._cause import not_learning, nothing_learns
from pytest_trainloop.checks._check import Check, Fails, Marker, Passes, Unjudged
from pytest_trainloop.checks._evidence import numbers
from pytest_trainloop.checks._nothing import refuse_nothing
from pytest_trainloop.checks._options import OptionError
from pytest_trainloop.checks._verdict import CannotJudgeError, Cause, PromiseBrokenError, Verdict
from pytest_trainloop.rules._naming import listed
from pytest_trainloop.runtime.drive import StopAfter

if TYPE_CHECKING:
    from pytest_trainloop.checks._body import Body
    from pytest_trainloop.runtime.record import Parameter

#: pytest leaves our frames out of a traceback of the user's code.
__tracebackhide__ = True


@dataclass(frozen=True, kw_only=True)
class Trains(Check):
    """Every trainable parameter gets a finite gradient and moves, and nothing frozen moves.

    The body of the test is run once, as it is. Then each parameter of the models that were
    trained is looked at: one with `requires_grad` has to be in an optimizer, to receive a
    gradient, and to have other values at the end than at first; one without has to have the
    same. Over-fitting a batch does not show any of that: what is left of the network learns
    the batch by heart.

    Options:
        steps: training steps after which the run is stopped.
        unused: patterns of the names of parameters that take no part on purpose, such as
            `"head.aux.*"`; they may have no gradient and stay where they are.
        frozen: patterns of the names of parameters that are frozen on purpose; with this
            option, none but those may be, and with `()` none at all. By default, what is frozen
            is taken to be so on purpose, and how many are is told.

    Limits: a parameter that moves by less than its precision holds counts as one that does not
    move. Updates written by hand, without an optimizer of `torch.optim`, are not seen.
    """

    steps: int = 20
    unused: tuple[str, ...] = ()
    frozen: tuple[str, ...] | None = None

    since: ClassVar[str] = "0.1.0"
    examples: ClassVar[tuple[Passes | Fails | Unjudged, ...]] = (
        Passes(
            "a frozen backbone and a head that learns",
            """
            import torch
            from torch import nn

            from pytest_trainloop import trains


            def train(loader):
                backbone, head = nn.Linear(4, 8), nn.Linear(8, 2)
                backbone.requires_grad_(False)
                model = nn.Sequential(backbone, nn.ReLU(), head)
                optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
                for x, y in loader:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x), y).backward()
                    optimizer.step()


            @trains
            def test_trains(tiny_loader):
                train(tiny_loader)
            """,
        ),
        Fails(
            "a layer that no optimizer holds",
            """
            import torch
            from torch import nn

            from pytest_trainloop import trains


            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.body = nn.Linear(4, 8)
                    self.head = nn.Linear(8, 2)

                def forward(self, x):
                    return self.head(self.body(x).relu())


            @trains
            def test_trains(tiny_loader):
                net = Net()
                optimizer = torch.optim.AdamW(net.head.parameters(), lr=1e-2)
                for x, y in tiny_loader:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(net(x), y).backward()
                    optimizer.step()
            """,
            cause="trains: no optimizer holds `body.weight` and `body.bias`",
        ),
        Fails(
            "a layer behind a detach",
            """
            import torch
            from torch import nn

            from pytest_trainloop import trains


            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.body = nn.Linear(4, 8)
                    self.head = nn.Linear(8, 2)

                def forward(self, x):
                    return self.head(self.body(x).detach().relu())


            @trains
            def test_trains(tiny_loader):
                net = Net()
                optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
                for x, y in tiny_loader:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(net(x), y).backward()
                    optimizer.step()
            """,
            cause="trains: no gradient ever reached `body.weight` and `body.bias`",
        ),
        Passes(
            "a head that takes no part on purpose",
            """
            import torch
            from torch import nn

            from pytest_trainloop import trains


            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.body = nn.Linear(4, 2)
                    self.auxiliary = nn.Linear(4, 3)

                def forward(self, x):
                    return self.body(x)


            @trains(unused=("*auxiliary*",))
            def test_trains(tiny_loader):
                net = Net()
                optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
                for x, y in tiny_loader:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(net(x), y).backward()
                    optimizer.step()
            """,
        ),
        Fails(
            "a head that was frozen together with the backbone",
            """
            import torch
            from torch import nn

            from pytest_trainloop import trains


            @trains(frozen=("backbone.*",))
            def test_trains(tiny_loader):
                net = nn.ModuleDict({"backbone": nn.Linear(4, 8), "head": nn.Linear(8, 2)})
                net.requires_grad_(False)
                scale = nn.Parameter(torch.ones(2))
                optimizer = torch.optim.AdamW([*net.parameters(), scale], lr=1e-2)
                for x, y in tiny_loader:
                    optimizer.zero_grad()
                    out = net["head"](net["backbone"](x).relu()) * scale
                    nn.functional.cross_entropy(out, y).backward()
                    optimizer.step()
            """,
            cause="trains: `head.weight` and `head.bias` are frozen: `requires_grad` is False, and"
            " `backbone.*` was to be frozen",
        ),
        Fails(
            "a loop that never steps",
            """
            from torch import nn

            from pytest_trainloop import trains


            @trains
            def test_trains(tiny_model, tiny_loader):
                for x, y in tiny_loader:
                    nn.functional.cross_entropy(tiny_model(x), y).backward()
            """,
            cause="trains: no optimizer stepped: 2 backward calls",
        ),
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot be judged by."""
        if self.steps < 1:
            raise OptionError(f"`steps` is at least 1, not {self.steps}")

    def judge(self, body: Body) -> Verdict:
        """Run the body, and look at every parameter of what it trained."""
        run = body.run(StopAfter(self.steps))
        refuse_nothing(run, *numbers(run))
        cause = nothing_learns(run)
        if cause is not None:
            raise PromiseBrokenError.by(cause, *numbers(run))
        parameters = [one for one in run.parameters if one.model is not None]
        if not parameters:
            raise CannotJudgeError(
                "the optimizers' parameters belong to no module that could be found",
                advice="keep the model in a variable of the test or of the loop",
            )
        frozen = [one for one in parameters if not one.trainable]
        learning = [one for one in parameters if one.trainable and not self._is_unused(one)]
        cause = self._frozen_wrongly(frozen) or not_learning(run, learning)
        if cause is not None:
            raise PromiseBrokenError.by(cause, *numbers(run))
        values = sum(one.size for one in learning)
        kept = f", {len(frozen)} are frozen" if frozen else ""
        return Verdict(
            f"{len(learning)} parameters ({values:,} values) moved in {run.training_steps} steps"
            + kept,
            {"parameters": len(learning), "values": values, "frozen": len(frozen)},
        )

    def _is_unused(self, parameter: Parameter) -> bool:
        return any(fnmatchcase(parameter.name, pattern) for pattern in self.unused)

    def _frozen_wrongly(self, frozen: list[Parameter]) -> Cause | None:
        moved = [one.name for one in frozen if one.moved]
        if moved:
            return Cause(
                f"frozen parameters moved: {listed(moved)}",
                "weight decay and momentum move what an optimizer holds, with or without"
                " `requires_grad`: leave frozen parameters out of the optimizer",
            )
        if self.frozen is None:
            return None
        others = [
            one.name
            for one in frozen
            if not any(fnmatchcase(one.name, pattern) for pattern in self.frozen)
        ]
        if not others:
            return None
        allowed = listed(self.frozen) or "nothing"
        return Cause(
            f"{listed(others)} {'is' if len(others) == 1 else 'are'} frozen: `requires_grad` is"
            f" False, and {allowed} was to be frozen",
            "unfreeze what is to learn with `requires_grad_(True)`, before the optimizer is"
            " built; or name it: @trains(frozen=(...))",
            rule="frozen-parameters",
        )


trains = Marker(Trains)
