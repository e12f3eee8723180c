"""The rule `frozen-batchnorm-updates`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.rules._rule import Bad, Finding, Good, Rule
from pytest_trainloop.source.facts import (
    Attribute,
    Call,
    Constant,
    Element,
    Event,
    FileFacts,
    Result,
    Store,
    Trace,
    TrainingLoop,
    Value,
    constant,
    may_switch_out_of_sight,
    options,
    origins,
    same,
    switch_of,
    trained_forwards,
)

#: Makers of networks that are built with BatchNorm.
_WITH_BATCH_NORM = re.compile(
    r"^torchvision\.models\.(?:resnet|resnext|wide_resnet|densenet|mobilenet|efficientnet|mnasnet"
    r"|shufflenet|regnet|inception|googlenet|vgg\d+_bn)"
)


class FrozenBatchnormUpdates(Rule):
    """A frozen network goes on updating its BatchNorm statistics.

    Symptom: the "frozen" features drift while the head is trained, and what was saved as the
    pretrained backbone is not the pretrained backbone any more.

    Why: `requires_grad = False` stops the optimizer, not BatchNorm: in train mode its running
    mean and variance follow every batch.

    What torch does: nothing. Buffers are no parameters; only `eval()` stops their updates.

    Limits: statistics that adapt to the new data are often wanted (and common in
    self-supervised learning), so the rule speaks only when it is asked to, with `--select`.
    It knows the networks of torchvision that are built with BatchNorm.
    """

    since = "0.1"
    default = False
    triggers = ("requires_grad", "torchvision", "step", "train")
    sources = (
        "https://github.com/pytorch/pytorch/issues/86590",
        "https://github.com/lightly-ai/lightly/issues/1438",
        "https://github.com/ultralytics/ultralytics/issues/8753",
    )
    examples = (
        Bad(
            "the backbone is frozen, and in train mode",
            """
            import torch
            import torchvision

            def train(loader, epochs):
                backbone = torchvision.models.resnet18(weights="DEFAULT")
                for p in backbone.parameters():
                    p.requires_grad = False
                head = torch.nn.Linear(1000, 2)
                optimizer = torch.optim.AdamW(head.parameters())
                for epoch in range(epochs):
                    backbone.train()  # error
                    for x, y in loader:
                        optimizer.zero_grad()
                        torch.nn.functional.cross_entropy(head(backbone(x)), y).backward()
                        optimizer.step()
            """,
        ),
        Good(
            "the frozen backbone is in eval mode",
            """
            import torch
            import torchvision

            def train(loader, epochs):
                backbone = torchvision.models.resnet18(weights="DEFAULT")
                for p in backbone.parameters():
                    p.requires_grad = False
                head = torch.nn.Linear(1000, 2)
                optimizer = torch.optim.AdamW(head.parameters())
                for epoch in range(epochs):
                    backbone.eval()
                    for x, y in loader:
                        optimizer.zero_grad()
                        torch.nn.functional.cross_entropy(head(backbone(x)), y).backward()
                        optimizer.step()
            """,
        ),
        Bad(
            "frozen by one call",
            """
            import torch
            import torchvision

            def train(loader):
                net = torchvision.models.mobilenet_v2(weights="DEFAULT")
                net.requires_grad_(False)
                net.classifier = torch.nn.Linear(1280, 2)
                optimizer = torch.optim.AdamW(net.classifier.parameters())
                net.train()  # error
                for x, y in loader:
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(net(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "nothing is frozen",
            """
            import torch
            import torchvision

            def train(loader):
                net = torchvision.models.resnet18(weights="DEFAULT")
                optimizer = torch.optim.AdamW(net.parameters())
                net.train()
                for x, y in loader:
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(net(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "frozen for a while, then trained as a whole",
            """
            import torch
            import torchvision

            def train(loader):
                net = torchvision.models.resnet18(weights="DEFAULT")
                for p in net.parameters():
                    p.requires_grad = False
                for p in net.parameters():
                    p.requires_grad = True
                optimizer = torch.optim.AdamW(net.parameters())
                net.train()
                for x, y in loader:
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(net(x), y).backward()
                    optimizer.step()
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for networks that are frozen whole, and put into train mode to be trained with."""
        for training in file.loops:
            for forward in trained_forwards(training):
                if _has_batch_norm(forward.callee) and _is_frozen(training.trace, forward.callee):
                    switch = _into_train_mode(training, forward)
                    if switch is not None:
                        yield self._report(switch)
                        break

    def _report(self, switch: Call) -> Finding:
        name = switch.receiver_text
        return self.finding(
            switch.place,
            f"`{name}` is frozen, but in train mode its BatchNorm statistics follow every batch",
            f"keep `{name}` in eval mode, and switch only what is trained",
        )


def _has_batch_norm(model: Value) -> bool:
    return any(
        isinstance(option, Result) and _WITH_BATCH_NORM.match(option.call.qualified)
        for option in options(model)
    )


def _is_frozen(trace: Trace, model: Value) -> bool:
    """Whether all parameters of the model were frozen, and none thawed by the same means."""
    states = [state for event in trace.events if (state := _requires(event, model)) is not None]
    return bool(states) and not any(states)


def _requires(event: Event, model: Value) -> bool | None:
    """True or False: the event sets whether all parameters of the model take gradients."""
    if isinstance(event, Call) and event.method == "requires_grad_" and event.receiver is not None:
        if same(event.receiver, model):
            given = event.argument(0, "requires_grad")
            return bool(constant(given)) if isinstance(given, Constant) else True
        return None
    if isinstance(event, Store) and event.target.endswith(".requires_grad"):
        if event.owner is not None and _is_parameter_of(event.owner, model):
            return bool(constant(event.value)) if isinstance(event.value, Constant) else True
    return None


def _is_parameter_of(value: Value, model: Value) -> bool:
    return isinstance(value, Element) and any(
        isinstance(origin, Result)
        and origin.call.method in ("parameters", "named_parameters")
        and origin.call.receiver is not None
        and (same(origin.call.receiver, model) or _is_part_of(origin.call.receiver, model))
        for origin in origins(value)
    )


def _is_part_of(value: Value, model: Value) -> bool:
    return isinstance(value, Attribute) and same(value.base, model)


def _into_train_mode(training: TrainingLoop, forward: Call) -> Call | None:
    """The switch of the model to train mode that is in force at the forward."""
    last: Call | None = None
    for call in training.trace.calls:
        state = switch_of(call)
        if state is None and may_switch_out_of_sight(call, forward.callee):
            return None
        if state is None or call.index >= forward.index or call.receiver is None:
            continue
        if same(call.receiver, forward.callee):
            last = call if state else None
        elif not state:
            # A part of the model, or its wrapper, is switched on its own.
            return None
    return last
