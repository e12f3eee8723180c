"""The rule `forward-called-directly`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Call,
    Either,
    FileFacts,
    Frame,
    Inside,
    Instance,
    Parameter,
    Result,
    Returned,
    Value,
    options,
)

#: What makes a module and nothing else.
_MAKERS = re.compile(
    r"torch\.nn\.|torchvision\.models\.|timm\.create_model$"
    r"|transformers\.(?:\w+\.)*\w*(?:Model|For[A-Z])\w*\.from_(?:pretrained|config)$"
)


class ForwardCalledDirectly(Rule):
    """A module's `forward` is called, not the module.

    Symptom: none at first. What hangs on the call does not happen: forward hooks (profilers,
    quantization, feature extraction, weight and spectral normalisation by hook), and FSDP.

    Why: calling a module runs its hooks and then `forward`. Calling `forward` runs `forward`.

    What torch does: nothing. `forward` is a method like any other.

    Limits: harmless as long as nobody hooks the module, so the rule speaks only when it is
    selected. It reports modules whose class is in sight, layers of torch, models of
    torchvision, timm and transformers, and what is annotated or wrapped as a module.
    """

    since = "0.1"
    default = False
    triggers = (".forward(",)
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.forward",
    )
    examples = (
        Bad(
            "the loop calls forward",
            """
            def train(loader, optimizer):
                model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(model.forward(x), y).backward()  # error
                    optimizer.step()
            """,
            fixed="""
            def train(loader, optimizer):
                model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y).backward()  # error
                    optimizer.step()
            """,
        ),
        Good(
            "the loop calls the model",
            """
            def train(loader, optimizer):
                model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "a pretrained model, one that is annotated, and one that is wrapped",
            """
            import torch
            from torch import nn
            from transformers import AutoModelForSequenceClassification

            def train(head: nn.Module, build, loader, several):
                model = AutoModelForSequenceClassification.from_pretrained("bert-base-cased")
                critic = build()
                if several:
                    critic = nn.DataParallel(critic)
                optimizer = torch.optim.Adam(model.parameters())
                for x, y in loader:
                    optimizer.zero_grad()
                    features = model.forward(x)  # error
                    logits = head.forward(features)  # error
                    (critic.forward(logits) - y).sum().backward()  # error
                    optimizer.step()
            """,
        ),
        Good(
            "things with a forward that may be no modules",
            """
            import torch
            from transformers import AutoTokenizer

            def train(loader, pipeline, build):
                reader = AutoTokenizer.from_pretrained("bert-base-cased")
                model = build()
                for x, y in loader:
                    print(pipeline.forward(reader.forward(x)), model.forward(y))
            """,
        ),
        Good(
            "a method builds on the one that it overrides",
            """
            class Scaled(nn.Linear):
                def forward(self, x):
                    return 2 * super().forward(x)

            class Plain(nn.Linear):
                def forward(self, x):
                    return nn.Linear.forward(self, x)
            """,
        ),
        Good(
            "one of the module's own methods goes through forward",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(8, 8)

                def forward(self, x):
                    return self.fc(x)

                def predict(self, x):
                    return self.forward(x).argmax(1)
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at each call of a method `forward`."""
        told: set[int] = set()
        for trace in file.traces:
            for call in trace.calls:
                if call.file is file.source and id(call.node) not in told and _bypasses(call):
                    told.add(id(call.node))
                    yield self._report(call)

    def _report(self, call: Call) -> Finding:
        model = call.receiver_text
        after = call.text.partition(f"{model}.forward(")[2]
        code = f"{model}({after}"
        return self.finding(
            call.place,
            f"`{call.name}(...)` skips the hooks of `{model}`",
            f"call `{model}(...)`",
            Fix((Edit("replace", call.place, code),), safe=False) if after else None,
        )


def _bypasses(call: Call) -> bool:
    """Whether the call is of another object's `forward`, and that object is a module."""
    if call.method != "forward" or call.receiver is None:
        return False
    if call.receiver_text == "self" or any(map(_stands_in_call, call.context)):
        return False
    wrapped = {id(value) for value in _wrapped(call.receiver)}
    return all(id(option) in wrapped or _is_module(option) for option in options(call.receiver))


def _is_module(value: Value) -> bool:
    """Whether the value surely is a module: by its class, its maker or its annotation."""
    if isinstance(value, Instance):
        return value.definition.is_module
    if isinstance(value, Parameter):
        return value.annotation == "torch.nn.Module"
    return isinstance(value, Result) and _MAKERS.match(value.call.qualified) is not None


def _wrapped(value: Value) -> Iterator[Value]:
    """What torch's wrappers (`nn.DataParallel`, DDP) were given, which take modules only."""
    if isinstance(value, Either):
        for option in value.options:
            yield from _wrapped(option)
    while isinstance(value, Returned):
        if value.call.qualified.startswith("torch.nn."):
            yield from options(value.value)
        value = value.value


def _stands_in_call(frame: Frame) -> bool:
    """Whether the code stands in a `__call__`, which takes the place of the module's own."""
    return isinstance(frame, Inside) and frame.function.name == "__call__"
