"""The rule `step-in-evaluation`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Branch,
    Call,
    Context,
    FileFacts,
    Inside,
    Loop,
    Step,
    TrainingLoop,
    options,
    origins,
    same,
    spelling,
    switch_of,
    trained_forwards,
)

_HELD_OUT = re.compile(
    r"(?:^|[_./])(?:val|valid|validation|test|dev|eval)(?:$|[_./\d(])"
    r"|(?:val|valid|validation|test|dev|eval)_?(?:loader|set|data|iter|ds|dl)",
    re.IGNORECASE,
)
_EVALUATION = re.compile(
    r"^_?(?:eval|evaluate|valid|validate|validation|test)(?:_|$)", re.IGNORECASE
)
_ON_PURPOSE = re.compile(
    r"adapt|tta|ttt|tent|meta|inner|maml|bilevel|arch_|architect|nas|search|attack", re.IGNORECASE
)


class StepInEvaluation(Rule):
    """The optimizer steps on validation data.

    Symptom: the validation score is as good as the training score, and the test score is
    not: the model has been trained on what it is measured with.

    Why: a copied training loop became the validation loop, and kept its `backward()` and
    `step()`.

    What torch does: nothing. It does not know which data are held out; eval mode does not
    keep an optimizer from stepping.

    Limits: the rule speaks only where the model was put into eval mode, the loop goes over
    data that are called held out, and the same optimizer also trains elsewhere. Adaptation
    at test time and search over architectures, which step on purpose, keep an optimizer of
    their own or say so by name.
    """

    since = "0.1"
    triggers = ("eval", ".backward(|manual_backward(", "step")
    sources = (
        "https://github.com/SKrisanski/FSCT/issues/12",
        "https://github.com/NifTK/NiftyNet/issues/28",
        "https://github.com/princeton-vl/pose-ae-train/issues/11",
    )
    examples = (
        Bad(
            "the validation loop was copied from the training loop",
            """
            def train(model, train_loader, val_loader, optimizer, epochs):
                for epoch in range(epochs):
                    model.train()
                    for x, y in train_loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    model.eval()
                    for x, y in val_loader:
                        optimizer.zero_grad()
                        loss = F.cross_entropy(model(x), y)
                        loss.backward()
                        optimizer.step()  # error
                        print(loss.item())
            """,
        ),
        Good(
            "the validation loop only looks",
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
                        for x, y in val_loader:
                            print(F.cross_entropy(model(x), y).item())
            """,
        ),
        Bad(
            "in a function of its own",
            """
            def validate(model, loader, optimizer):
                model.eval()
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()  # error

            def train(model, train_loader, val_loader, optimizer, epochs):
                for epoch in range(epochs):
                    model.train()
                    for x, y in train_loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
                    validate(model, val_loader, optimizer)
            """,
        ),
        Good(
            "one function for both, which steps only in training",
            """
            def run_epoch(model, loader, optimizer, training):
                if training:
                    model.train()
                else:
                    model.eval()
                for x, y in loader:
                    with torch.set_grad_enabled(training):
                        loss = F.cross_entropy(model(x), y)
                    if training:
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()

            def train(model, train_loader, val_loader, optimizer, epochs):
                for epoch in range(epochs):
                    run_epoch(model, train_loader, optimizer, True)
                    run_epoch(model, val_loader, optimizer, False)
            """,
        ),
        Good(
            "adaptation at test time has an optimizer of its own",
            """
            def train(model, train_loader, test_loader, optimizer):
                model.train()
                for x, y in train_loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                model.eval()
                adapting = torch.optim.SGD(model.parameters(), lr=1e-4)
                for x, y in test_loader:
                    adapting.zero_grad()
                    model(x).softmax(1).max(1).values.mean().neg().backward()
                    adapting.step()
            """,
        ),
        Good(
            "a search over architectures steps on validation data",
            """
            def search(model, train_loader, val_loader, optimizer, arch_optimizer):
                for (x, y), (x_val, y_val) in zip(train_loader, val_loader):
                    arch_optimizer.zero_grad()
                    F.cross_entropy(model(x_val), y_val).backward()
                    arch_optimizer.step()
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "training in eval mode, on training data",
            """
            def fine_tune(model, train_loader, optimizer, epochs):
                for epoch in range(epochs):
                    model.eval()
                    for x, y in train_loader:
                        optimizer.zero_grad()
                        F.cross_entropy(model(x), y).backward()
                        optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for steps over held-out data while the model is in eval mode."""
        for training in file.loops:
            if training.loop is None or training.is_handed or not _is_held_out(training):
                continue
            switch = _switch_before(training)
            step = training.steps[0]
            if (
                switch is not None
                and _is_certain(step, training)
                and _trains_elsewhere(file, training)
            ):
                yield self._report(step, switch, training.loop)

    def _report(self, step: Step, switch: Call, loop: Loop) -> Finding:
        return self.finding(
            step.call.place,
            f"`{step.call.text}` trains on held-out data: `{loop.header}` (line {loop.line}) is an "
            f"evaluation, `{switch.text}` stands before it",
            "remove `backward()` and `step()` from the evaluation, and run it under "
            "`with torch.no_grad():`",
        )


def _is_held_out(training: TrainingLoop) -> bool:
    """Whether the loop goes over data that are called held out."""
    loop = training.loop
    functions = [frame.function.name for frame in training.context if isinstance(frame, Inside)]
    if loop is None or any(_ON_PURPOSE.search(name) for name in functions):
        return False
    named = bool(functions) and bool(_EVALUATION.match(functions[-1]))
    header = loop.header.partition(" in ")[2]
    data = any(_HELD_OUT.search(spelling(origin)) for origin in origins(loop.source, limit=20))
    return (named or data or bool(_HELD_OUT.search(header))) and "train" not in header


def _switch_before(training: TrainingLoop) -> Call | None:
    """The switch to eval mode that is in force in the loop, for the model that it trains."""
    last: Call | None = None
    first = training.steps[0].call
    models = [forward.callee for forward in trained_forwards(training)]
    for call in training.trace.calls:
        if call.index >= first.index:
            break
        state = switch_of(call)
        if state is None or call.receiver is None:
            continue
        if any(same(call.receiver, model) for model in models) and _is_on_the_way(
            call, training.context
        ):
            last = None if state else call
    return last


def _is_on_the_way(call: Call, context: Context) -> bool:
    """Whether every way to the loop comes by the call."""
    return not any(isinstance(frame, Branch) and frame not in context for frame in call.context)


def _is_certain(step: Step, training: TrainingLoop) -> bool:
    """Whether the step is taken in every turn."""
    return training.is_unconditional(step.call)


def _trains_elsewhere(file: FileFacts, evaluation: TrainingLoop) -> bool:
    """Whether the same optimizer steps in another loop too, which is no evaluation."""
    optimizer = evaluation.steps[0].optimizer
    return any(
        same(step.optimizer, optimizer)
        for training in file.loops
        if training.loop is not evaluation.loop and not _is_held_out(training)
        for step in training.steps
    ) and bool(options(optimizer))
