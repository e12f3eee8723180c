"""The rule `forward-called-directly`."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Rule
from pytest_trainloop.source.facts import (
    Call,
    FileFacts,
    Frame,
    Inside,
    Instance,
    Result,
    options,
)


class ForwardCalledDirectly(Rule):
    """A module's `forward` is called, not the module.

    Symptom: none at first. What hangs on the call does not happen: forward hooks (profilers,
    quantization, feature extraction, weight and spectral normalisation by hook), and FSDP.

    Why: calling a module runs its hooks and then `forward`. Calling `forward` runs `forward`.

    What torch does: nothing. `forward` is a method like any other.

    Limits: harmless as long as nobody hooks the module, so the rule speaks only when it is
    selected. It reports modules whose class is in sight, and layers of torch.
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
    return all(
        (isinstance(option, Instance) and option.definition.is_module)
        or (isinstance(option, Result) and option.call.qualified.startswith("torch.nn."))
        for option in options(call.receiver)
    )


def _stands_in_call(frame: Frame) -> bool:
    """Whether the code stands in a `__call__`, which takes the place of the module's own."""
    return isinstance(frame, Inside) and frame.function.name == "__call__"
