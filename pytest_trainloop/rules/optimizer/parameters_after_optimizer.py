"""The rule `parameters-after-optimizer`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import call_of, counted, listed, title
from pytest_trainloop.rules._rule import Bad, Finding, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Attribute,
    Branch,
    Call,
    Element,
    Event,
    FileFacts,
    Result,
    Returned,
    Store,
    Trace,
    Value,
    constant,
    is_known_harmless,
    is_optimizer,
    may_do_anything,
    options,
    same,
    stepped_optimizer,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Parameter, Run


#: What stands before `.parameters()` where nothing but a model is given.
_OF_ALL = re.compile(r"\w\(\s*(?:params\s*=\s*)?[^\s(),]*$")


class ParametersAfterOptimizer(Rule):
    """A layer is made, replaced or re-sharded after the optimizer was given the parameters.

    Symptom: the new layer (often the head that matters most) keeps its random
    initialisation; the loss falls a little and stays there.

    Why: the optimizer holds the parameters that the model had when it was made. A layer that
    is assigned later is not among them, and the layer that it replaces is trained in vain.
    Wrapping a model in FSDP replaces its parameters too.

    What torch does: nothing. The new parameters get gradients, and nobody uses them.
    """

    since = "0.1"
    triggers = (".parameters()", "torch.optim|optim.", "step")
    sources = (
        "https://pytorch.org/docs/stable/optim.html#constructing-it",
        "https://github.com/microsoft/nni/issues/4521",
        "https://github.com/openvinotoolkit/nncf/issues/327",
        "https://github.com/LaurentMazare/ocaml-torch/issues/36",
        "https://github.com/pytorch/pytorch/issues/54765",
        "https://github.com/huggingface/accelerate/issues/3256",
        "https://github.com/pytorch/pytorch/issues/107843",
    )
    examples = (
        Bad(
            "the head is replaced after the optimizer was made",
            """
            import torch
            import torch.nn.functional as F
            import torchvision

            def finetune(loader, classes):
                model = torchvision.models.resnet18(weights="DEFAULT")
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                model.fc = torch.nn.Linear(512, classes)  # error
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the head is replaced first",
            """
            import torch
            import torch.nn.functional as F
            import torchvision

            def finetune(loader, classes):
                model = torchvision.models.resnet18(weights="DEFAULT")
                model.fc = torch.nn.Linear(512, classes)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "a parameter deep inside the model",
            """
            def calibrate(model, loader):
                optimizer = torch.optim.Adam(model.parameters())
                model.block.scale = nn.Parameter(torch.ones(1))  # error
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "a module is added",
            """
            def extend(model, loader):
                optimizer = torch.optim.Adam(model.parameters())
                model.add_module("adapter", nn.Linear(8, 8))  # error
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Bad(
            "the optimizer is made before the model is sharded",
            """
            from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
            import torch
            import torch.nn.functional as F

            def train(net, loader):
                optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
                model = FSDP(net)  # error
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the optimizer is told of the new layer",
            """
            def finetune(model, loader, classes):
                optimizer = torch.optim.SGD(model.backbone.parameters(), lr=0.01)
                model.head = nn.Linear(512, classes)
                optimizer.add_param_group({"params": model.head.parameters(), "lr": 0.1})
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the optimizer is made again later",
            """
            def finetune(model, loader, classes):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                model.fc = nn.Linear(512, classes)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "weights are loaded in place",
            """
            def resume(model, loader, path):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                model.load_state_dict(torch.load(path))
                model.pool = nn.AdaptiveAvgPool2d(1)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "lazy layers take their shapes in the first forward",
            """
            def train(loader):
                model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(1))
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "another model gets the new layer",
            """
            def train(student, teacher, loader, classes):
                optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
                teacher.fc = nn.Linear(512, classes)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(student(x), teacher(x)).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "the new layer has an optimizer of its own",
            """
            def train(model, loader, classes):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                model.probe = nn.Linear(512, classes)
                probe_optimizer = torch.optim.SGD(model.probe.parameters(), lr=0.1)
                for x, y in loader:
                    optimizer.zero_grad()
                    probe_optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    probe_optimizer.step()
            """,
        ),
        Good(
            "replaced once the training is over",
            """
            def pretrain(model, loader, classes):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                model.fc = nn.Linear(512, classes)
                return model
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where something is made of all parameters of a model."""
        for at in super().seek(text):
            if _OF_ALL.search(text, max(at - 80, 0), at):
                yield at

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Follow each optimizer from where it is made to its steps, and look for new layers."""
        for trace in file.traces:
            steps = _steps(trace)
            for made in trace.calls:
                if _takes_a_whole_model(made):
                    yield from self._optimizer(trace, made, steps)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for parameters that the loss depends on and that no optimizer updates."""
        left = [p for p in run.parameters if _is_late(p)]
        for root in dict.fromkeys(p.root for p in left):
            names = [p.name for p in left if p.root == root]
            trained = [p for p in run.parameters if p.root == root and p.optimizers]
            if not any(p.moved for p in trained):
                continue
            optimizer = run.optimizers[trained[0].optimizers[0]]
            yield self.observation(
                f"{listed(names)} became part of the model after {title(optimizer)} had been"
                " built: no optimizer updates them",
                "build the optimizer when the model is complete, or hand them over with"
                f" {call_of(optimizer, 'add_param_group')}",
                optimizer.built,
                (f"{title(optimizer)} has {counted(len(trained), 'parameter')} of the model",),
            )

    def _optimizer(
        self, trace: Trace, made: Call, steps: list[tuple[Call, Value]]
    ) -> Iterator[Finding]:
        own = [call for call, optimizer in steps if _is_made_by(optimizer, made)]
        own = [call for call in own if call.index > made.index]
        if not own:
            return
        model = _model_of(made)
        changes = [
            event
            for event in trace.events[made.index + 1 : own[0].index]
            if _changes(event, model) and not _is_conditional(event, own[0])
        ]
        if not changes or _is_told(trace, made, changes[0]):
            return
        what = _what(changes[0])
        yield self.finding(
            changes[0].place,
            f"{what} after `{made.name}` was given `{made.argument_text(0, 'params')}`, so "
            f"`{own[0].text}` never updates its parameters",
            f"make the optimizer after this line, or call "
            f"`{_optimizer_text(own[0])}.add_param_group(...)`"
            if isinstance(changes[0], Store)
            else "make the optimizer after this line",
        )


def _steps(trace: Trace) -> list[tuple[Call, Value]]:
    found = ((call, stepped_optimizer(call)) for call in trace.calls)
    return [(call, optimizer) for call, optimizer in found if optimizer is not None]


def _takes_a_whole_model(call: Call) -> bool:
    """Whether the call makes an optimizer of torch's from `model.parameters()` and nothing else."""
    if not call.qualified.startswith("torch.optim.") or not is_optimizer(Result(call)):
        return False
    given = call.argument(0, "params")
    ways = options(given) if given is not None else ()
    return len(ways) == 1 and isinstance(ways[0], Result) and ways[0].call.method == "parameters"


def _model_of(made: Call) -> Value:
    given = made.argument(0, "params")
    for way in options(given) if given is not None else ():
        if isinstance(way, Result) and way.call.receiver is not None:
            return way.call.receiver
    return made.callee


def _optimizer_text(step: Call) -> str:
    """The optimizer as written at its step: `optimizer.step()` or `scaler.step(optimizer)`."""
    return step.argument_text(0) or step.receiver_text


def _what(change: Event) -> str:
    if isinstance(change, Store):
        return f"`{change.target}` becomes a new layer"
    return f"`{change.text}` gives the model new parameters"


def _is_made_by(optimizer: Value, made: Call) -> bool:
    ways = options(optimizer)
    return len(ways) == 1 and isinstance(ways[0], Result) and ways[0].call is made


def _is_conditional(event: Event, step: Call) -> bool:
    return any(isinstance(frame, Branch) and frame not in step.context for frame in event.context)


#: Layers of torch that have parameters.
_LAYERS = re.compile(
    r"^torch\.nn\.(?:Linear|Bilinear|Conv\w+|Embedding\w*|LSTM\w*|GRU\w*|RNN\w*|BatchNorm\w+"
    r"|LayerNorm|GroupNorm|MultiheadAttention|Transformer\w*|Parameter|PReLU)$"
)


def _changes(event: Event, model: Value) -> bool:
    """Whether the event gives the model parameters that it did not have before."""
    if isinstance(event, Store):
        if event.kind != "attribute" or event.augmented or not _is_new_layer(event.value):
            return False
        return event.owner is not None and same(_root(event.owner, model), model)
    if not isinstance(event, Call):
        return False
    if event.method in ("add_module", "register_parameter") and event.receiver is not None:
        layer = event.argument(1)
        is_new = layer is not None and _is_new_layer(layer)
        return is_new and same(_root(event.receiver, model), model)
    if event.qualified.startswith("torch.distributed.fsdp.") and event.args:
        is_wrapper = event.method in ("FullyShardedDataParallel", "FSDP", "fully_shard")
        return is_wrapper and same(event.args[0], model)
    return False


def _is_new_layer(value: Value) -> bool:
    """Whether the value is a layer with parameters, or a stack of some, made of nothing older."""
    ways = options(value)
    if len(ways) != 1 or not isinstance(ways[0], Result):
        return False
    call = ways[0].call
    if call.qualified == "torch.nn.Parameter":
        return constant(call.argument(1, "requires_grad")) is not False
    if _LAYERS.match(call.qualified):
        return True
    return call.qualified == "torch.nn.Sequential" and any(map(_is_new_layer, call.args))


def _root(value: Value, model: Value) -> Value:
    """What a chain of attributes and items begins with: `model` of `model.layers[0].proj`."""
    while not same(value, model):
        if isinstance(value, Attribute | Element):
            value = value.base
        elif isinstance(value, Returned):
            value = value.value
        else:
            break
    return value


def _is_told(trace: Trace, made: Call, change: Event) -> bool:
    """Whether an optimizer hears of the new parameters after all, or may."""
    own = next(
        (optimizer for _, optimizer in _steps(trace) if _is_made_by(optimizer, made)), made.callee
    )
    later = [call for call in trace.calls if call.index > change.index]
    return any(
        call.method == "add_param_group"
        or (bool(call.args) and is_optimizer(Result(call)))
        or _may_tell(call, own)
        for call in later
    )


def _may_tell(call: Call, optimizer: Value) -> bool:
    if stepped_optimizer(call) is not None or is_known_harmless(call) or call.method in _READING:
        return False
    return may_do_anything(call, optimizer)


#: Methods that use an optimizer and leave its parameters alone.
_READING = frozenset({"zero_grad", "state_dict", "load_state_dict", "step"})


def _is_late(parameter: Parameter) -> bool:
    return (
        parameter.late
        and parameter.reached
        and parameter.trainable
        and parameter.moved is False
        and not parameter.optimizers
        and not parameter.claimed
    )
