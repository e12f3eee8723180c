"""The rule `parameters-not-in-optimizer`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted, listed, title
from pytest_trainloop.rules._rule import Bad, Finding, Good, Observation, Rule
from pytest_trainloop.source.facts import (
    Attribute,
    Call,
    ClassFacts,
    Collection,
    Element,
    Event,
    FileFacts,
    Instance,
    Operation,
    Result,
    Return,
    Returned,
    Store,
    Trace,
    TrainingLoop,
    Value,
    constant,
    is_optimizer,
    options,
    origins,
    same,
    unclaimed,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Parameter, Run


class ParametersNotInOptimizer(Rule):
    """Some trainable parameters are in no group that the optimizer is given.

    Symptom: the loss falls, and one batch can even be learned by heart, but a layer stays at
    its initialisation: the rest of the model works around it.

    Why: groups of parameters that are written by hand (for different rates, or for weight
    decay) hold what was put into them and nothing else. A forgotten group is not noticed.

    What torch does: nothing. It raises for an empty list, not for an incomplete one.

    Limits: from source, three forms are certain: a group that is filled and given to no
    optimizer, groups that name the layers of a model one by one and leave one out, and a
    network of its own that is put in train mode and whose parameters nothing asks for.
    A watched run compares the optimizer with the model itself.
    """

    since = "0.1"
    triggers = ("params|.backward(", "torch.optim|optim.", "parameters")
    sources = (
        "https://pytorch.org/docs/stable/optim.html#per-parameter-options",
        "https://github.com/zjunlp/HVPNeT/issues/5",
        "https://github.com/ohhhyeahhh/SiamCAR/issues/18",
        "https://github.com/facebookresearch/mmf/issues/620",
        "https://github.com/namisan/mt-dnn/issues/5",
    )
    examples = (
        Bad(
            "the second group is filled and never used",
            """
            def make_optimizer(model):
                groups = []
                group = {"lr": 2e-5, "params": []}
                for name, p in model.named_parameters():
                    if "bert" in name:
                        group["params"].append(p)
                groups.append(group)
                group = {"lr": 5e-2, "params": []}  # error
                for name, p in model.named_parameters():
                    if "crf" in name or name.startswith("fc"):
                        group["params"].append(p)
                return torch.optim.AdamW(groups)
            """,
        ),
        Good(
            "both groups are given to the optimizer",
            """
            def make_optimizer(model):
                groups = []
                group = {"lr": 2e-5, "params": []}
                for name, p in model.named_parameters():
                    if "bert" in name:
                        group["params"].append(p)
                groups.append(group)
                group = {"lr": 5e-2, "params": []}
                for name, p in model.named_parameters():
                    if "crf" in name or name.startswith("fc"):
                        group["params"].append(p)
                groups.append(group)
                return torch.optim.AdamW(groups)
            """,
        ),
        Bad(
            "one of two networks is left out",
            """
            class Predictor(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.lin = nn.Linear(8, 1)

                def forward(self, a, b):
                    return self.lin(a * b)

            class Encoder(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.lin = nn.Linear(4, 8)

                def forward(self, x):
                    return self.lin(x)

            def train(encoder, predictor, loader, optimizer):
                encoder.train()
                predictor.train()
                for a, b, y in loader:
                    optimizer.zero_grad()
                    loss = F.mse_loss(predictor(encoder(a), encoder(b)), y)
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
                    optimizer.step()

            def main(loader):
                encoder, predictor = Encoder(), Predictor()
                optimizer = torch.optim.Adam(list(encoder.parameters()), lr=0.01)  # error
                train(encoder, predictor, loader, optimizer)
            """,
        ),
        Good(
            "a network with fixed random weights, and one that another optimizer has",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.lin = nn.Linear(8, 8)

                def forward(self, x):
                    return self.lin(x)

            def main(loader):
                fixed, learned, judge = Net(), Net(), Net()
                learned.train()
                judge.train()
                groups = {"judge": judge}
                opt = torch.optim.Adam(learned.parameters())
                opt_judge = torch.optim.Adam([p for n in groups.values() for p in n.parameters()])
                for x in loader:
                    opt.zero_grad()
                    F.mse_loss(learned(x), judge(fixed(x))).backward()
                    opt.step()
                return opt_judge
            """,
        ),
        Good(
            "collected from all of them, in turn",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.lin = nn.Linear(8, 8)

                def forward(self, x):
                    return self.lin(x)

            def main(loader):
                first, second, third, fourth = Net(), Net(), Net(), Net()
                parameters = [p for net in (first, second) for p in net.parameters()]
                for net in [third, fourth]:
                    net.train()
                    parameters += list(net.parameters())
                first.train()
                second.train()
                optimizer = torch.optim.Adam(parameters)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(fourth(third(second(first(x)))), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "a part of a larger one, which the optimizer has",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.lin = nn.Linear(8, 8)

                def forward(self, x):
                    return self.lin(x)

            class Whole(nn.Module):
                def __init__(self, part):
                    super().__init__()
                    self.part = part
                    self.head = nn.Linear(8, 1)

            def main(loader):
                part = Net()
                part.train()
                whole = Whole(part)
                optimizer = torch.optim.Adam(whole.parameters())
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(whole.head(part(x)), y).backward()
                    optimizer.step()
            """,
        ),
        Good(
            "frozen while the other one learns, and a copy that follows",
            """
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.lin = nn.Linear(8, 8)

                def forward(self, x):
                    return self.lin(x)

            def main(loader, weights):
                backbone, head, mean = Net(), Net(), Net()
                backbone.load_state_dict(weights)
                backbone.train()
                mean.train()
                optimizer = torch.optim.Adam(head.parameters())
                for x, y in loader:
                    optimizer.zero_grad()
                    F.mse_loss(head(backbone(x)), mean(x)).backward()
                    optimizer.step()
                    for a, b in zip(mean.parameters(), head.parameters()):
                        a.data.lerp_(b.data, 0.01)
            """,
        ),
        Bad(
            "one layer of the model is in no group",
            """
            class Tracker(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.backbone = nn.Conv2d(3, 64, 3)
                    self.down = nn.ConvTranspose2d(64, 32, 1)  # error
                    self.head = nn.Linear(32, 4)

                def forward(self, x):
                    return self.head(self.down(self.backbone(x)).flatten(1))

            def main():
                model = Tracker().cuda().train()
                groups = [{"params": model.backbone.parameters(), "lr": 1e-4}]
                groups += [{"params": model.head.parameters(), "lr": 1e-2}]
                return torch.optim.SGD(groups, momentum=0.9)
            """,
        ),
        Bad(
            "a group whose list is set later",
            """
            def make_optimizer(model, lr):
                groups = []
                group = {"lr": lr, "weight_decay": 0.01}
                group["params"] = [p for n, p in model.named_parameters() if "encoder" in n]
                groups.append(group)
                group = {"lr": 10 * lr, "weight_decay": 0.0}  # error
                group["params"] = [p for n, p in model.named_parameters() if "head" in n]
                return torch.optim.AdamW(groups)
            """,
        ),
        Good(
            "a layer that is frozen on purpose",
            """
            class Tracker(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.backbone = nn.Conv2d(3, 64, 3)
                    self.neck = nn.Conv2d(64, 32, 1)
                    self.head = nn.Linear(32, 4)
                    for p in self.backbone.parameters():
                        p.requires_grad = False

                def forward(self, x):
                    return self.head(self.neck(self.backbone(x)).flatten(1))

            def main():
                model = Tracker()
                groups = [
                    {"params": model.neck.parameters(), "lr": 1e-4},
                    {"params": model.head.parameters(), "lr": 1e-2},
                ]
                return torch.optim.SGD(groups, momentum=0.9)
            """,
        ),
        Good(
            "another optimizer has the rest",
            """
            class Pair(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.stem = nn.Linear(4, 4)
                    self.left = nn.Linear(4, 4)
                    self.right = nn.Linear(4, 4)

                def forward(self, x):
                    return self.left(self.stem(x)), self.right(self.stem(x))

            def main():
                model = Pair()
                first = torch.optim.SGD(
                    [{"params": model.stem.parameters()}, {"params": model.left.parameters()}],
                    lr=0.1,
                )
                second = torch.optim.SGD(model.right.parameters(), lr=0.1)
                return first, second
            """,
        ),
        Good(
            "a target network that follows by averaging",
            """
            class Agent(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.encoder = nn.Linear(4, 4)
                    self.online = nn.Linear(4, 4)
                    self.target = nn.Linear(4, 4)

                def forward(self, x):
                    return self.online(self.encoder(x)), self.target(self.encoder(x))

                def follow(self):
                    for a, b in zip(self.online.parameters(), self.target.parameters()):
                        b.data.lerp_(a.data, 0.01)

            def main():
                agent = Agent()
                return torch.optim.Adam(
                    [
                        {"params": agent.encoder.parameters()},
                        {"params": agent.online.parameters(), "lr": 1e-4},
                    ]
                )
            """,
        ),
        Good(
            "groups that a function collects",
            """
            def split(model):
                decay = {"params": [], "weight_decay": 0.01}
                plain = {"params": [], "weight_decay": 0.0}
                for name, p in model.named_parameters():
                    (plain if p.ndim < 2 else decay)["params"].append(p)
                return [decay, plain]

            def make_optimizer(model):
                return torch.optim.AdamW(split(model))
            """,
        ),
        Good(
            "arguments of something else that are called params",
            """
            import requests
            import torch

            def fetch(model, url):
                query = {"params": ["a"]}
                query["params"].append("b")
                print(query)
                return torch.optim.SGD(model.parameters(), lr=0.1), requests.get(url)
            """,
        ),
    )

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look for groups that reach no optimizer, and for layers that are in no group."""
        for trace in file.traces:
            made = [call for call in trace.calls if _makes_optimizer(call)]
            if made:
                yield from self._lost_groups(trace, made[-1])
            if len(made) == 1:
                yield from self._lost_layers(trace, made[0])
        for loop in file.loops:
            for network in unclaimed(loop, file.traces):
                yield from self._lost_network(loop, network)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for parameters that the loss depends on and that no optimizer updates."""
        left = [p for p in run.parameters if _is_left_out(p) and not p.late]
        for root in dict.fromkeys(p.root for p in left):
            names = [p.name for p in left if p.root == root]
            trained = [p for p in run.parameters if p.root == root and p.optimizers]
            if not any(p.moved for p in trained):
                continue
            optimizer = run.optimizers[trained[0].optimizers[0]]
            yield self.observation(
                f"{listed(names)} get gradients but {'is' if len(names) == 1 else 'are'} in no"
                f" optimizer, and did not move in {counted(optimizer.steps, 'step')}",
                "give them to the optimizer (`model.parameters()`), or freeze what is not to"
                " learn with `requires_grad_(False)`",
                optimizer.built,
                (f"{title(optimizer)} has {counted(len(trained), 'parameter')} of the model",),
            )

    def _lost_groups(self, trace: Trace, made: Call) -> Iterator[Finding]:
        for store in trace.stores:
            if store.index > made.index or not _is_group(trace, store):
                continue
            if not any(_uses(event, store) for event in trace.events):
                yield self.finding(
                    store.place,
                    f"the group of parameters `{store.target}` is filled, but given to no "
                    f"optimizer: `{made.name}` does not get it",
                    f"add it to the list that `{made.name}` gets",
                )

    def _lost_network(self, loop: TrainingLoop, network: Instance) -> Iterator[Finding]:
        called = [
            s.target for s in loop.trace.stores if s.kind == "name" and same(s.value, network)
        ]
        makers = [way.call for way in options(loop.optimizers[-1]) if isinstance(way, Result)]
        if called and makers:
            yield self.finding(
                makers[-1].place,
                f"no optimizer gets the parameters of `{called[0]}`, though the loss of "
                f"`{loop.backwards[-1].call.text}` leads to them, and it is set up to be trained",
                f"add `{called[0]}.parameters()`, or freeze it: "
                f"`{called[0]}.requires_grad_(False)`",
            )

    def _lost_layers(self, trace: Trace, made: Call) -> Iterator[Finding]:
        layers = _layers(trace)
        named = _named_layers(trace, made, layers)
        owner = named[0].owner if named else None
        attributes = {_attribute(store) for store in named}
        if len(attributes) < 2 or not isinstance(owner, Instance):  # noqa: PLR2004 -- one by one
            return
        for store in layers:
            attribute = _attribute(store)
            if store.owner is not owner or attribute in attributes or not _is_layer(store.value):
                continue
            if _is_only_called(owner.definition, attribute, made):
                yield self.finding(
                    store.place,
                    f"`{store.target}` is in no group of `{made.name}`, which names the layers of "
                    f"`{owner.definition.name}` one by one: {', '.join(sorted(attributes))}",
                    f"add a group with the parameters of `{attribute}`, or freeze them",
                )


def _makes_optimizer(call: Call) -> bool:
    return call.qualified.startswith("torch.optim.") and is_optimizer(Result(call))


def _is_group(trace: Trace, store: Store) -> bool:
    """Whether `store` names a dict with `"params"` that is filled from a model's parameters."""
    group = store.value
    if store.kind != "name" or not isinstance(group, Collection) or group.kind != "dict":
        return False
    inside = [
        value
        for key, value in zip(group.keys, group.items, strict=False)
        if constant(key) == "params"
    ]
    inside += [
        other.value
        for other in trace.stores
        if other.kind == "item" and other.owner is group and _IS_PARAMS.search(other.target)
    ]
    return any(_is_filled(trace, value) for value in inside)


_IS_PARAMS = re.compile(r"""\[["']params["']\]$""")


def _is_filled(trace: Trace, params: Value) -> bool:
    """Whether a list holds, or is given, parameters of a model."""
    if _comes_from_model(params):
        return True
    return any(
        call.method in ("append", "extend")
        and call.receiver is params
        and any(_comes_from_model(given) for given in call.args)
        for call in trace.calls
    )


def _comes_from_model(value: Value) -> bool:
    return any(
        isinstance(part, Result) and part.call.method in ("parameters", "named_parameters")
        for part in origins(value, 60)
    )


def _uses(event: Event, store: Store) -> bool:
    """Whether the event passes the group on, whole, to anything."""
    if event is store:
        return False
    if isinstance(event, Call):
        given = event.inputs
    elif isinstance(event, Store | Return):
        given = (event.value,)
    else:
        return False
    return any(part is store.value for value in given for part in origins(value, 60))


def _layers(trace: Trace) -> list[Store]:
    """Where the modules that are made in sight get their parts."""
    return [
        store
        for store in trace.stores
        if store.kind == "attribute" and isinstance(store.owner, Instance) and not store.augmented
    ]


def _named_layers(trace: Trace, made: Call, layers: list[Store]) -> list[Store]:
    """The parts of one model whose parameters the optimizer gets; none if it gets others too."""
    given = made.argument(0, "params")
    found: list[Store] = []
    for call in _sources(trace, given) if given is not None else ():
        store = _part_of(call.receiver, layers)
        if store is None or (found and store.owner is not found[0].owner):
            return []
        found.append(store)
    return found


def _sources(trace: Trace, given: Value) -> list[Call]:
    """The `parameters()` calls that the optimizer's argument is made from."""
    values = list(origins(given))
    lists = [value for value in values if isinstance(value, Collection | Operation)]
    for call in trace.calls:
        if call.method in ("append", "extend") and any(call.receiver is each for each in lists):
            values += [part for arg in call.args for part in origins(arg)]
    calls = [value.call for value in values if isinstance(value, Result)]
    return [call for call in calls if call.method in ("parameters", "named_parameters")]


def _part_of(value: Value | None, layers: list[Store]) -> Store | None:
    """The store that made a value, or the value that it is a part of, a part of a model."""
    while value is not None:
        for store in layers:
            if same(store.value, value):
                return store
        if isinstance(value, Attribute | Element):
            value = value.base
        elif isinstance(value, Returned):
            value = value.value
        else:
            return None
    return None


def _attribute(store: Store) -> str:
    return store.target.rpartition(".")[2]


_LAYER = re.compile(
    r"^torch\.nn\.(?:Linear|Bilinear|Conv\w+|Embedding\w*|LSTM|GRU|RNN|MultiheadAttention"
    r"|Transformer\w+)$"
)


def _is_layer(value: Value) -> bool:
    """Whether the value is a layer of torch's with weights, or a stack that holds one."""
    ways = options(value)
    if len(ways) != 1 or not isinstance(ways[0], Result):
        return False
    call = ways[0].call
    if call.qualified == "torch.nn.Sequential":
        return any(_is_layer(given) for given in call.args)
    return bool(_LAYER.match(call.qualified))


def _is_only_called(definition: ClassFacts, attribute: str, made: Call) -> bool:
    """Whether a layer is made and called, and nothing else is ever done with it by its name."""
    name = re.escape(attribute)
    text = definition.file.text
    uses = len(re.findall(rf"\.{name}\b", text))
    calls = len(re.findall(rf"\bself\.{name}\(", text))
    stores = len(re.findall(rf"\bself\.{name}\s*=[^=]", text))
    elsewhere = made.file is not definition.file and re.search(rf"\.{name}\b", made.file.text)
    return stores == 1 and calls > 0 and uses == calls + stores and not elsewhere


def _is_left_out(parameter: Parameter) -> bool:
    return (
        parameter.reached
        and parameter.trainable
        and parameter.moved is False
        and not parameter.optimizers
        and not parameter.claimed
        and not parameter.hidden_in
    )
