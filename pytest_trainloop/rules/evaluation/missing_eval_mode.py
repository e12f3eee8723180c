"""The rule `missing-eval-mode`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._rule import Bad, Finding, Good, Observation, Rule
from pytest_trainloop.rules.evaluation._modes_in_runs import model, modules, trained_loaders
from pytest_trainloop.source.facts import (
    Call,
    FileFacts,
    Inside,
    Instance,
    Loop,
    Result,
    Trace,
    Value,
    comes_along,
    depends_on_mode,
    gradients,
    is_forward,
    loops_of,
    may_switch,
    may_switch_out_of_sight,
    options,
    origins,
    same,
    spelling,
    switch_of,
    trained_forwards,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run

_EVALUATING = re.compile(
    r"(?:^|[_./\"'])(?:val|valid|validat\w*|eval\w*|test(?!_?case)|dev|predict\w*|infer\w*)"
    r"(?:$|[_./\d(\"'])"
    r"|(?:val|valid|test|dev|eval)_?(?:loader|set|data|iter|ds|dl)",
    re.IGNORECASE,
)
_ON_PURPOSE = re.compile(
    r"(?:^|_)mc(?:_|$)|monte|uncertain|bayes|stochastic|update_bn|recalib|adapt", re.IGNORECASE
)

#: What a file with a model's training, or with a script around a model, is never without.
_MAKING = (".backward(", "DataLoader", ".load_state_dict(", "__main__")
#: A decorator of a function that evaluates nothing.
_NO_EVALUATION = re.compile(r"\w+(?:\(\))?\s+def _?(?:init|reset|generate|sample|update)\w*")


class MissingEvalMode(Rule):
    """A model is evaluated in train mode.

    Symptom: the validation score is noisy and too low; with BatchNorm, the statistics take
    in the validation data, and the score of a sample depends on its batch.

    Why: dropout drops, and BatchNorm normalizes by the batch and updates its statistics,
    until `model.eval()` is called. `torch.no_grad()` only switches the gradients off.

    What torch does: nothing. A forward in train mode is legal anywhere.

    Limits: the rule speaks only where it sees both the evaluation and how the model came to
    it: trained in the same program, or just made. An evaluation is a loop without gradients
    that is called so (`validate`, `test_loader`). A model that is known to have no layer
    that cares is left alone.
    """

    since = "0.1"
    triggers = ("no_grad|inference_mode|set_grad_enabled",)
    sources = (
        "https://pytorch.org/docs/stable/notes/autograd.html#evaluation-mode-nn-module-eval",
        "https://github.com/wolny/pytorch-3dunet/issues/53",
        "https://github.com/citoverse/cito/issues/55",
        "https://github.com/ipolharvard/ethos-ares/issues/20",
        "https://github.com/udacity/deep-learning-v2-pytorch/issues/3",
    )
    examples = (
        Bad(
            "gradients are off, dropout is not",
            """
            def train(model, train_loader, val_loader, optimizer, epochs):
                for epoch in range(epochs):
                    for x, y in train_loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    with torch.no_grad():
                        correct = 0
                        for x, y in val_loader:
                            correct += (model(x).argmax(1) == y).sum().item()  # error
            """,
        ),
        Good(
            "eval mode for the evaluation, train mode for the training",
            """
            def train(model, train_loader, val_loader, optimizer, epochs):
                for epoch in range(epochs):
                    model.train()
                    for x, y in train_loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    model.eval()
                    with torch.no_grad():
                        correct = 0
                        for x, y in val_loader:
                            correct += (model(x).argmax(1) == y).sum().item()
            """,
        ),
        Bad(
            "train mode for the training, and for what follows; a test later switches",
            """
            import torch
            from torch.nn import functional as F
            from transformers import AutoModel

            def main(loaders, epochs):
                model = AutoModel.from_pretrained("bert-base-cased")
                optimizer = torch.optim.AdamW(model.parameters())
                for epoch in range(epochs):
                    model.train()
                    for x, y in loaders["train"]:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    with torch.no_grad():
                        for x, y in loaders["validation"]:
                            print((model(x).argmax(1) == y).sum())  # error
                model.eval()
                with torch.no_grad():
                    for x, y in loaders["test"]:
                        print((model(x).argmax(1) == y).sum())
            """,
        ),
        Good(
            "two networks, of which one is a part of the other, which is switched",
            """
            import torch
            from torch import nn

            class Head(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.drop = nn.Dropout(0.5)
                    self.out = nn.Linear(8, 2)

                def forward(self, x):
                    return self.out(self.drop(x))

            class Whole(nn.Module):
                def __init__(self, parts):
                    super().__init__()
                    self.parts = nn.ModuleList(parts)

                def forward(self, x):
                    return self.parts[0](x)

            class Holder(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.inner = None

            def main(train_loader, val_loader, epochs):
                head, other = Head(), Head()
                whole, holder = Whole([head]), Holder()
                holder.inner = other
                optimizer = torch.optim.Adam([*whole.parameters(), *other.parameters()])
                for epoch in range(epochs):
                    whole.train()
                    holder.train()
                    for x, y in train_loader:
                        optimizer.zero_grad()
                        nn.functional.cross_entropy(head(x) + other(x), y).backward()
                        optimizer.step()
                    whole.eval()
                    holder.eval()
                    with torch.no_grad():
                        for x, y in val_loader:
                            print(head(x).argmax(1), other(x).argmax(1), y)
            """,
        ),
        Bad(
            "accelerate's steps of accumulation, which leave the mode alone",
            """
            import torch
            from accelerate import Accelerator
            from torch.nn import functional as F

            def main(model, optimizer, train_loader, val_loader, epochs):
                accelerator = Accelerator(gradient_accumulation_steps=2)
                for epoch in range(epochs):
                    model.train()
                    for x, y in train_loader:
                        with accelerator.accumulate(model):
                            accelerator.backward(F.cross_entropy(model(x), y))
                            optimizer.step()
                            optimizer.zero_grad()
                    for x, y in val_loader:
                        with torch.no_grad():
                            print((model(x).argmax(1) == y).sum())  # error
            """,
        ),
        Bad(
            "one function for both, which only switches the gradients",
            """
            import torch

            class Trainer:
                def __init__(self, model, optimizer, train_loader, test_loader):
                    self.model = model
                    self.optimizer = optimizer
                    self.train_loader = train_loader
                    self.test_loader = test_loader

                def run_epoch(self, loader, train):
                    for x, y in loader:
                        with torch.set_grad_enabled(train):
                            loss = torch.nn.functional.mse_loss(self.model(x), y)
                        if train:
                            self.optimizer.zero_grad()
                            loss.backward()
                            self.optimizer.step()

                def train(self, epochs):
                    for epoch in range(epochs):
                        self.run_epoch(self.train_loader, True)
                        self.run_epoch(self.test_loader, False)  # error
            """,
        ),
        Bad(
            "a model that was just made is in train mode",
            """
            import torch
            from torch import nn

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.norm = nn.BatchNorm1d(8)
                    self.out = nn.Linear(8, 2)

                def forward(self, x):
                    return self.out(self.norm(x))

            def predict(path, test_loader):
                model = Net()
                model.load_state_dict(torch.load(path))
                with torch.no_grad():
                    return [model(x).argmax(1) for x in test_loader]  # error
            """,
        ),
        Good(
            "a model without a layer that cares",
            """
            import torch
            from torch import nn

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.out = nn.Linear(8, 2)

                def forward(self, x):
                    return self.out(x).relu()

            def train(train_loader, val_loader, epochs):
                model = Net()
                optimizer = torch.optim.Adam(model.parameters())
                for epoch in range(epochs):
                    for x, y in train_loader:
                        optimizer.zero_grad()
                        nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    with torch.no_grad():
                        for x, y in val_loader:
                            print((model(x).argmax(1) == y).sum().item())
            """,
        ),
        Good(
            "layers of Opacus, which are those of torch",
            """
            import math
            import torch
            from opacus.layers import DPLSTM
            from torch import nn

            class Net(nn.Module):
                def __init__(self, size):
                    super().__init__()
                    self.lstm = DPLSTM(size, size, batch_first=True)
                    self.out = nn.Linear(size, 2)
                    self.scale = 1 / math.sqrt(size)

                def forward(self, x):
                    return self.out(self.lstm(x)[0][:, -1] * self.scale)

            def train(train_loader, val_loader, epochs):
                model = Net(8)
                optimizer = torch.optim.Adam(model.parameters())
                for epoch in range(epochs):
                    for x, y in train_loader:
                        optimizer.zero_grad()
                        nn.functional.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    with torch.no_grad():
                        for x, y in val_loader:
                            print((model(x).argmax(1) == y).sum().item())
            """,
        ),
        Good(
            "the caller, out of sight, may have switched",
            """
            @torch.no_grad()
            def evaluate(model, val_loader):
                return sum(F.cross_entropy(model(x), y).item() for x, y in val_loader)
            """,
        ),
        Good(
            "the caller switches",
            """
            @torch.no_grad()
            def evaluate(model, val_loader):
                return sum(F.cross_entropy(model(x), y).item() for x, y in val_loader)

            def train(model, train_loader, val_loader, optimizer, epochs):
                for epoch in range(epochs):
                    model.train()
                    for x, y in train_loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    model.eval()
                    print(evaluate(model, val_loader))
            """,
        ),
        Good(
            "Monte Carlo dropout",
            """
            @torch.no_grad()
            def predict_mc_dropout(model, test_loader, samples):
                return [[model(x) for _ in range(samples)] for x in test_loader]

            def run(model, train_loader, test_loader, optimizer):
                for x, y in train_loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                print(predict_mc_dropout(model, test_loader, 20))
            """,
        ),
        Good(
            "train mode on purpose, set for the evaluation",
            """
            def test(model, test_loader):
                model.train()  # batch statistics, as in training
                with torch.no_grad():
                    return sum(F.cross_entropy(model(x), y).item() for x, y in test_loader)

            def run(model, train_loader, test_loader, optimizer):
                for x, y in train_loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                print(test(model, test_loader))
            """,
        ),
        Good(
            "BatchNorm statistics are estimated again",
            """
            def update_bn(model, val_loader):
                with torch.no_grad():
                    for x, y in val_loader:
                        model(x)

            def train(model, train_loader, val_loader, optimizer):
                for x, y in train_loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                update_bn(model, val_loader)
            """,
        ),
        Good(
            "the averaged copy is kept in eval mode by what keeps it",
            """
            def train(model, ema_model, train_loader, val_loader, optimizer):
                for x, y in train_loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                with torch.no_grad():
                    for x, y in val_loader:
                        print(F.cross_entropy(ema_model(x), y).item())
            """,
        ),
        Good(
            "a target computed without gradients is no evaluation",
            """
            def train(model, loader, optimizer, gamma):
                for state, reward, next_state in loader:
                    with torch.no_grad():
                        target = reward + gamma * model(next_state).max(1).values
                    optimizer.zero_grad()
                    F.mse_loss(model(state).max(1).values, target).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "another object switches, out of sight",
            """
            def train(model, train_loader, val_loader, optimizer, hooks):
                for x, y in train_loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                hooks.before_evaluation(model)
                with torch.no_grad():
                    for x, y in val_loader:
                        print(F.cross_entropy(model(x), y).item())
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Yield what switches gradients off, in scripts that train or make a model and loop."""
        if not any(word in text for word in _MAKING):
            return
        for at in super().seek(text):
            if not _NO_EVALUATION.match(text, at):
                yield at

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for evaluations of models that were trained, or made, and never switched."""
        for trace in file.traces:
            reported: list[Value] = []
            for call in trace.calls:
                if not _is_evaluation(call) or any(same(call.callee, known) for known in reported):
                    continue
                trained = _trained_with(file, trace, call)
                since = _in_train_mode_since(trace, call, trained)
                history = _history(trace, call, trained, since)
                if history and not _may_be_switched(trace, call, since):
                    reported.append(call.callee)
                    yield self._report(call, _told_at(call, trained), history)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for a trained model in train mode on data that nobody trains on.

        Data that are asked for without gradients. Silent where the data are also evaluated in
        eval mode (the statistics were adapted to them), and where `train()` was just called.
        """
        trained = trained_loaders(run)
        for loader in {one.loader for one in run.evaluations} - trained - {None}:
            looks = [one for one in run.evaluations if one.loader == loader]
            if any(one.in_eval_mode or one.asked_for_train for one in looks):
                continue
            for look in looks:
                if not look.in_train_mode or any(map(_ON_PURPOSE.search, look.within)):
                    continue
                name = model(run, look.in_train_mode)
                yield self.observation(
                    f"`{name}` is evaluated in train mode: {modules(run, look.in_train_mode)}",
                    f"call `{name}.eval()` before the evaluation and `{name}.train()` after it",
                    look.where,
                    ("its data are asked for without gradients, and never trained on",),
                )
                break

    def _report(self, call: Call, told_at: Call, history: str) -> Finding:
        name = call.name or "the model"
        return self.finding(
            told_at.place,
            f"`{name}` is evaluated in train mode: {history}, and nothing calls `{name}.eval()`",
            f"call `{name}.eval()` before the evaluation, and `{name}.train()` before training",
        )


def _is_evaluation(call: Call) -> bool:
    """Whether the call is a forward, without gradients, over data that is held out."""
    if not is_forward(call) or gradients(call.context) is not False:
        return False
    functions = [frame.function for frame in call.context if isinstance(frame, Inside)]
    if any(f.owner is not None and f.owner.is_module for f in functions):
        return False
    if any(isinstance(frame, Inside) and frame.handed for frame in call.context):
        return False
    loops = loops_of(call.context)
    if not loops or any(_ON_PURPOSE.search(f.name) for f in functions):
        return False
    named = any(_EVALUATING.search(f.name) for f in functions)
    return named or any(_is_held_out(loop) and _feeds(loop, call) for loop in loops)


def _feeds(loop: Loop, forward: Call) -> bool:
    """Whether what the forward is given comes out of what the loop goes over."""
    source = {id(origin) for origin in origins(loop.source, limit=20)}
    return any(id(origin) in source for given in forward.inputs for origin in origins(given))


def _is_held_out(loop: Loop) -> bool:
    if _EVALUATING.search(loop.header.partition(" in ")[2]):
        return True
    return any(_EVALUATING.search(spelling(origin)) for origin in origins(loop.source, limit=20))


def _trained_with(file: FileFacts, trace: Trace, evaluation: Call) -> Call | None:
    """A forward that trains the model in the same program."""
    for training in file.loops:
        for forward in trained_forwards(training) if training.trace is trace else ():
            if forward is not evaluation and same(forward.callee, evaluation.callee):
                return forward
    return None


def _in_train_mode_since(trace: Trace, evaluation: Call, trained: Call | None) -> Call | None:
    """The `train()` for the training that comes before the evaluation each time, if there is one.

    From there on nothing counts but what comes in between: how the model was made, and what
    switches it before or later, says nothing of this evaluation.
    """
    if trained is None or trained.index > evaluation.index:
        return None
    switches = [
        call
        for call in trace.calls
        if call.index < trained.index
        and switch_of(call) is True
        and call.receiver is not None
        and same(call.receiver, evaluation.callee)
        and comes_along(call, trained)
        and comes_along(call, evaluation)
    ]
    return switches[-1] if switches else None


def _history(trace: Trace, evaluation: Call, trained: Call | None, since: Call | None) -> str:
    """How the model came to the evaluation in train mode; empty if that is not known."""
    depends = depends_on_mode(evaluation.callee)
    if depends is False or (since is None and _is_pretrained(evaluation.callee)):
        return ""
    if trained is not None:
        return f"it is trained at line {trained.line}"
    made = _made(evaluation.callee)
    if not depends or made is None or _is_a_test(evaluation):
        return ""
    if any(call is made for call in trace.calls[: evaluation.index]):
        return f"a model is in train mode when it is made (line {made.line})"
    return ""


def _is_a_test(evaluation: Call) -> bool:
    """Whether a test of the code runs the model, for which either mode is right."""
    return any(
        isinstance(frame, Inside) and frame.function.name.startswith("test_")
        for frame in evaluation.context
    )


def _told_at(evaluation: Call, trained: Call | None) -> Call:
    """The call that makes it an evaluation, where one body serves training and evaluation."""
    if trained is None or trained.node is not evaluation.node:
        return evaluation
    for frame in evaluation.context:
        if isinstance(frame, Inside) and frame not in trained.context and frame.call is not None:
            return frame.call
    return evaluation


def _made(model: Value) -> Call | None:
    """The call that made the model in sight."""
    for option in options(model):
        if isinstance(option, Instance | Result) and option.call is not None:
            return option.call
    return None


def _is_pretrained(model: Value) -> bool:
    """Whether the model comes out of a function that may give it in eval mode."""
    return any(
        isinstance(option, Result)
        and not option.call.qualified.startswith(("torch.nn.", "torchvision.models."))
        for option in options(model)
    )


def _may_be_switched(trace: Trace, evaluation: Call, since: Call | None) -> bool:
    """Whether the model may be in eval mode at the evaluation, or be in train mode on purpose."""
    inside = [frame for frame in evaluation.context if isinstance(frame, Inside)]
    between_them = slice(since.index + 1, evaluation.index) if since is not None else slice(None)
    for call in trace.events[between_them]:
        if not isinstance(call, Call):
            continue
        state = switch_of(call)
        if state is True:
            if inside and inside[-1] in call.context and _is_of(call, evaluation):
                return True
        elif may_switch(call) or may_switch_out_of_sight(call, evaluation.callee):
            return True
    return False


def _is_of(switch: Call, evaluation: Call) -> bool:
    """Whether the switch is made for the evaluation itself, not for a training around it."""
    loops = loops_of(switch.context)
    around = loops_of(evaluation.context)
    return switch.index < evaluation.index and all(loop in around for loop in loops)
