"""The rule `train-mode-not-restored`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted
from pytest_trainloop.rules._rule import Bad, Finding, Good, Observation, Rule
from pytest_trainloop.rules.evaluation._modes_in_runs import left_by, model, modules, trained_steps
from pytest_trainloop.source.facts import (
    Call,
    FileFacts,
    Loop,
    TrainingLoop,
    Value,
    comes_along,
    depends_on_mode,
    is_forward,
    may_switch,
    may_switch_out_of_sight,
    same,
    switch_of,
    trained_forwards,
)

if TYPE_CHECKING:
    from pytest_trainloop.rules.evaluation._modes_in_runs import TrainedStep
    from pytest_trainloop.runtime.record import Run


class TrainModeNotRestored(Rule):
    """Training goes on in eval mode after an evaluation.

    Symptom: the training loss drops suddenly after the first validation, and the validation
    score stops improving: dropout is off, BatchNorm is frozen.

    Why: `model.eval()` lasts until `model.train()`. An evaluation inside the training loop
    that does not switch back leaves all further batches in eval mode.

    What torch does: nothing. Training in eval mode is legal, and some fine-tuning does it
    on purpose.
    """

    since = "0.1"
    triggers = ("eval", ".backward(|manual_backward(", "step")
    sources = (
        "https://pytorch.org/docs/stable/notes/autograd.html#evaluation-mode-nn-module-eval",
        "https://github.com/wkentaro/pytorch-fcn/pull/56",
        "https://github.com/joeynmt/joeynmt/issues/184",
        "https://github.com/tk-rusch/coRNN/issues/1",
        "https://github.com/pliang279/MultiBench/issues/26",
        "https://github.com/pytorch/tutorials/issues/1624",
    )
    examples = (
        Bad(
            "train mode is set once, before all epochs",
            """
            def train(model, loader, validation, optimizer, epochs):
                model.train()
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    model.eval()  # error
                    with torch.no_grad():
                        print(sum(F.cross_entropy(model(x), y).item() for x, y in validation))
            """,
        ),
        Good(
            "train mode is set in each epoch",
            """
            def train(model, loader, validation, optimizer, epochs):
                for epoch in range(epochs):
                    model.train()
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    model.eval()
                    with torch.no_grad():
                        print(sum(F.cross_entropy(model(x), y).item() for x, y in validation))
            """,
        ),
        Bad(
            "an evaluation by a method of the model, and a wrapper that is asked for other things",
            """
            import torch
            from torch import nn
            from torch.nn import functional as F

            class Net(nn.Module):
                def __init__(self, n):
                    super().__init__()
                    self.drop = nn.Dropout(0.1)
                    self.out = nn.Linear(n, n)

                def forward(self, x):
                    return self.out(self.drop(x))

                @torch.no_grad()
                def inference(self, x):
                    return self.out(x).clamp(0, 1)

            def fit(loader, val_loader, optimizer, epochs):
                model = Net(8)
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        with model.no_sync():
                            F.mse_loss(model(x), y).backward()
                        optimizer.step()
                    model.eval()  # error
                    for x, y in val_loader:
                        print(F.mse_loss(model.inference(x), y).item())
            """,
        ),
        Bad(
            "an evaluation in the middle of an epoch leaves the rest of it in eval mode",
            """
            def evaluate(model, validation):
                model.eval()  # error
                with torch.no_grad():
                    return sum(F.cross_entropy(model(x), y).item() for x, y in validation)

            def train(model, loader, validation, optimizer, epochs):
                for epoch in range(epochs):
                    model.train()
                    for i, (x, y) in enumerate(loader):
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                        if i % 100 == 0:
                            print(evaluate(model, validation))
            """,
        ),
        Bad(
            "in the methods of a trainer",
            """
            import torch

            class Trainer:
                def __init__(self, model, optimizer, loader, validation):
                    self.model = model
                    self.optimizer = optimizer
                    self.loader = loader
                    self.validation = validation

                def validate(self):
                    self.model.eval()  # error
                    with torch.no_grad():
                        for x, y in self.validation:
                            print(self.model(x) - y)

                def train_epoch(self):
                    for x, y in self.loader:
                        self.optimizer.zero_grad()
                        torch.nn.functional.mse_loss(self.model(x), y).backward()
                        self.optimizer.step()

                def train(self, epochs):
                    for epoch in range(epochs):
                        self.train_epoch()
                        self.validate()
            """,
        ),
        Bad(
            "one function for both, which only switches off",
            """
            def run(model, optimizer, loader, training):
                if not training:
                    model.eval()  # error
                for x, y in loader:
                    loss = F.mse_loss(model(x), y)
                    if training:
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()

            def fit(model, optimizer, loader, val_loader, epochs):
                for epoch in range(epochs):
                    run(model, optimizer, loader, True)
                    run(model, optimizer, val_loader, False)
            """,
        ),
        Good(
            "a frozen backbone is trained on in eval mode, as it is evaluated",
            """
            def fit(make, loader, val_loader, epochs):
                model = make()
                optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)
                for epoch in range(epochs):
                    model.eval()  # the statistics stay as they are
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.mse_loss(model(x), y).backward()
                        optimizer.step()
                    model.eval()
                    with torch.no_grad():
                        print(sum(F.mse_loss(model(x), y).item() for x, y in val_loader))
            """,
        ),
        Good(
            "the evaluation switches back",
            """
            def evaluate(model, validation):
                model.eval()
                with torch.no_grad():
                    loss = sum(F.cross_entropy(model(x), y).item() for x, y in validation)
                model.train()
                return loss

            def train(model, loader, validation, optimizer):
                for i, (x, y) in enumerate(loader):
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    if i % 100 == 0:
                        print(evaluate(model, validation))
            """,
        ),
        Good(
            "the mode is put back as it was",
            """
            def evaluate(model, validation):
                was_training = model.training
                model.eval()
                with torch.no_grad():
                    loss = sum(F.cross_entropy(model(x), y).item() for x, y in validation)
                model.train(was_training)
                return loss

            def train(model, loader, validation, optimizer):
                for i, (x, y) in enumerate(loader):
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    if i % 100 == 0:
                        print(evaluate(model, validation))
            """,
        ),
        Good(
            "a context manager puts the mode back",
            """
            from contextlib import contextmanager
            import torch
            import torch.nn.functional as F

            @contextmanager
            def evaluating(model):
                was_training = model.training
                try:
                    model.eval()
                    yield
                finally:
                    if was_training:
                        model.train()

            def train(model, loader, validation, optimizer):
                for i, (x, y) in enumerate(loader):
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    if i % 100 == 0:
                        with evaluating(model), torch.no_grad():
                            print(sum(F.cross_entropy(model(x), y).item() for x, y in validation))
            """,
        ),
        Good(
            "eval mode on purpose: it is set for the training itself",
            """
            def train(model, loader, validation, optimizer, epochs):
                for epoch in range(epochs):
                    model.eval()
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    with torch.no_grad():
                        print(sum(F.cross_entropy(model(x), y).item() for x, y in validation))
            """,
        ),
        Good(
            "only the averaged copy is in eval mode",
            """
            def train(model, ema_model, loader, validation, optimizer, epochs):
                model.train()
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    ema_model.eval()
                    with torch.no_grad():
                        print(sum(F.cross_entropy(ema_model(x), y).item() for x, y in validation))
            """,
        ),
        Good(
            "a frozen backbone stays in eval mode",
            """
            def train(backbone, head, loader, validation, optimizer, epochs):
                backbone.eval()
                for epoch in range(epochs):
                    head.train()
                    for x, y in loader:
                        optimizer.zero_grad()
                        with torch.no_grad():
                            features = backbone(x)
                        F.cross_entropy(head(features), y).backward()
                        optimizer.step()
                    head.eval()
                    with torch.no_grad():
                        print(sum(F.cross_entropy(head(backbone(x)), y) for x, y in validation))
            """,
        ),
        Good(
            "an attack in eval mode, then training",
            """
            def train(model, loader, optimizer, attack):
                for x, y in loader:
                    model.eval()
                    delta = attack(model, x, y)
                    model.train()
                    optimizer.zero_grad()
                    F.cross_entropy(model(x + delta), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a model that is the same in both modes",
            """
            import torch
            from torch import nn

            class Linear(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.layer = nn.Linear(8, 2)

                def forward(self, x):
                    return self.layer(x)

            def train(loader, validation, epochs):
                model = Linear()
                optimizer = torch.optim.Adam(model.parameters())
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    model.eval()
                    with torch.no_grad():
                        print(sum(nn.functional.cross_entropy(model(x), y) for x, y in validation))
            """,
        ),
        Good(
            "the evaluation comes after all training",
            """
            def run(model, loader, test, optimizer, epochs):
                for epoch in range(epochs):
                    for x, y in loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                model.eval()
                with torch.no_grad():
                    print(sum(F.cross_entropy(model(x), y).item() for x, y in test))
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Follow the mode around each loop that holds training and an evaluation."""
        for training in file.loops:
            if training.loop is None or training.is_handed:
                continue
            for forward in trained_forwards(training):
                if depends_on_mode(forward.callee) is False:
                    continue
                found = _left_in_eval(training, forward)
                if found is not None:
                    yield self._report(*found, forward)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for a step in eval mode after an evaluation, where the one before was in train mode.

        Nobody touched the mode after the evaluation: where somebody did, they meant it.
        """
        before: dict[int, TrainedStep] = {}
        steps = list(trained_steps(run))
        for number, now in enumerate(steps):
            last = before.get(now.root)
            before[now.root] = now
            fell = now.in_eval_mode - last.in_eval_mode if last is not None else frozenset()
            switch = left_by(run, fell, last.backward, now.backward) if fell and last else None
            if switch is None:
                continue
            names = tuple(sorted(fell))
            left = sum(fell <= one.in_eval_mode for one in steps[number:])
            yield self.observation(
                f"`{model(run, names)}` stays in eval mode after an evaluation, and is trained on:"
                f" {modules(run, names)}",
                f"switch back after the evaluation: `{model(run, names)}.train()`",
                switch.where,
                (f"{counted(left, 'step')} in eval mode, the first at {now.step.where}",),
            )
            return

    def _report(self, switch: Call, loop: Loop, forward: Call) -> Finding:
        name = switch.receiver_text
        return self.finding(
            switch.place,
            f"`{name}` stays in eval mode after this: nothing in the loop `{loop.header}` "
            f"(line {loop.line}) switches back before `{forward.text}` (line {forward.line}) is "
            "trained again",
            f"switch back after the evaluation: `{name}.train()`",
        )


def _left_in_eval(training: TrainingLoop, forward: Call) -> tuple[Call, Loop] | None:
    """The switch to eval mode that the next turn of some loop still trains in, with that loop."""
    for depth in range(len(training.context), 0, -1):
        loop = training.context[depth - 1]
        if not isinstance(loop, Loop):
            continue
        turn = [e for e in training.trace.inside(training.context[:depth]) if isinstance(e, Call)]
        if any(_may_restore(call, forward) for call in turn):
            return None
        if _is_trained_in_eval_mode(turn, forward, training):
            return None
        last = _last_evaluation(turn, forward, training)
        if last is not None:
            return last, loop
    return None


def _is_trained_in_eval_mode(turn: list[Call], forward: Call, training: TrainingLoop) -> bool:
    """Whether a switch to eval mode right before the training shows that it is meant to be so."""
    switches = [
        call
        for call in turn
        if call.index < forward.index
        and switch_of(call) is False
        and call.receiver is not None
        and same(call.receiver, forward.callee)
        and any(comes_along(call, backward.call) for backward in training.backwards)
    ]
    if not switches:
        return False
    trained = trained_forwards(training)
    return not any(
        switches[-1].index < call.index < forward.index
        and _runs(call, forward.callee)
        and not any(call is other for other in trained)
        for call in turn
    )


def _may_restore(call: Call, forward: Call) -> bool:
    """Whether the call may put the model into train mode, or is out of sight and given it."""
    state = switch_of(call)
    if state is False:
        return False
    if may_switch(call):
        return True
    return may_switch_out_of_sight(call, forward.callee)


def _last_evaluation(turn: list[Call], forward: Call, training: TrainingLoop) -> Call | None:
    """The last switch of the model to eval mode in a turn, if an evaluation follows it."""
    trained = trained_forwards(training)
    switches = [
        call
        for call in turn
        if switch_of(call) is False
        and call.receiver is not None
        and same(call.receiver, forward.callee)
        and not call.starred
    ]
    for switch in reversed(switches):
        evaluates = any(
            call.index > switch.index
            and _runs(call, forward.callee)
            and not any(call is other for other in trained)
            and _comes_between(switch, call, forward)
            for call in turn
        )
        if evaluates:
            return switch
    return None


def _runs(call: Call, model: Value) -> bool:
    """Whether the call is a forward of the model, or asks one of its methods for a result."""
    if is_forward(call):
        return same(call.callee, model)
    return call.followed and call.receiver is not None and same(call.receiver, model)


def _comes_between(switch: Call, evaluation: Call, forward: Call) -> bool:
    """Whether the evaluation comes before the next trained forward of the turn, if there is one."""
    return not switch.index < forward.index < evaluation.index
