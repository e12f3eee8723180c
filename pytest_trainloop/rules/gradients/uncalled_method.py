"""The rule `uncalled-method`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Attribute,
    Bare,
    FileFacts,
    Function,
    Value,
    is_model,
    is_optimizer,
    is_scaler,
    is_scheduler,
    options,
)

_METHODS = ("zero_grad", "step", "backward", "eval", "train", "update")
#: A method's name at the end of a statement.
_AT_THE_END = re.compile(rf"\.(?:{'|'.join(_METHODS)})[ \t]*(?:[;#\r\n]|$)")


class UncalledMethod(Rule):
    """A method of the loop is named but not called: the parentheses are missing.

    Symptom: whatever the missing call brings about. Without `optimizer.step()` nothing is
    learned, without `zero_grad()` gradients pile up, without `model.eval()` validation is
    noisy.

    Why: `optimizer.step` on a line of its own looks the method up and throws it away.

    What torch does: nothing, and Python does nothing either. General linters call it a
    useless expression.

    Limits: only a plain statement is reported. A method that is passed on (a callback) is
    meant as it is.
    """

    since = "0.1"
    triggers = ("|".join(f".{method}" for method in _METHODS),)
    sources = (
        "https://pytorch.org/docs/stable/optim.html#taking-an-optimization-step",
        "https://docs.astral.sh/ruff/rules/useless-expression/",
    )
    examples = (
        Bad(
            "the step is not taken",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step  # error
            """,
            fixed="""
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()  # error
            """,
        ),
        Good(
            "the step is taken",
            """
            def train(model, loader, optimizer):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "gradients are not cleared, and the model is not put into eval mode",
            """
            def fit(model, loader, optimizer, validate):
                for x, y in loader:
                    optimizer.zero_grad  # error
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                model.eval  # error
                validate(model)
            """,
            fixed="""
            def fit(model, loader, optimizer, validate):
                for x, y in loader:
                    optimizer.zero_grad()  # error
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                model.eval()  # error
                validate(model)
            """,
        ),
        Bad(
            "the loss is not back-propagated, the schedule and the scaler do not move",
            """
            def update(self, x, y):
                loss = F.cross_entropy(self.model(x), y)
                loss.backward  # error
                self.optimizer.step()
                self.scheduler.step  # error
                self.scaler.update  # error
            """,
        ),
        Bad(
            "a model whose class is in sight",
            """
            class Net(nn.Module):
                def forward(self, x):
                    return torch.sigmoid(x)

            def validate(loader):
                net = Net()
                net.eval  # error
                with torch.no_grad():
                    return [net(x) for x in loader]
            """,
        ),
        Good(
            "the bound method is passed on",
            """
            def train(model, loader, optimizer, after_batch):
                after_batch.append(optimizer.zero_grad)
                finish = model.eval
                for x, y in loader:
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    for call in after_batch:
                        call()
                return finish
            """,
        ),
        Good(
            "an attribute of something else",
            """
            def show(progress, config):
                progress.step
                config.train
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Yield the methods' names that end a statement."""
        return (match.start() for match in _AT_THE_END.finditer(text))

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for statements that only name a method."""
        for trace in file.traces:
            for event in trace.events:
                if isinstance(event, Bare) and _names_method(event):
                    yield self.finding(
                        event.place,
                        f"`{event.text}` names the method but does not call it, so nothing happens",
                        f"call it: `{event.text}()`",
                        Fix((Edit("append", event.place, "()"),), safe=False),
                    )


def _names_method(event: Bare) -> bool:
    method = event.text.rpartition(".")[2]
    if method not in _METHODS:
        return False
    return any(
        isinstance(option, Function)
        or (isinstance(option, Attribute) and _has_method(option.base, method))
        for option in options(event.value)
    )


def _has_method(owner: Value, method: str) -> bool:
    """Whether the object is known to be of a kind that has such a method."""
    if method in ("zero_grad", "backward"):
        return True
    if method == "step":
        return is_optimizer(owner) or is_scheduler(owner)
    if method == "update":
        return is_scaler(owner)
    return is_model(owner)
