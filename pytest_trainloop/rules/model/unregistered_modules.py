"""The rule `unregistered-modules`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_trainloop.rules._naming import counted
from pytest_trainloop.rules._rule import Bad, Edit, Finding, Fix, Good, Observation, Rule
from pytest_trainloop.rules.model._containers_in_text import containers
from pytest_trainloop.source.facts import (
    Class,
    ClassFacts,
    Collection,
    Element,
    FileFacts,
    Instance,
    Operation,
    Result,
    Returned,
    Store,
    Trace,
    Value,
    has_state,
    identity,
    options,
    same,
)

if TYPE_CHECKING:
    from pytest_trainloop.runtime.record import Run

#: Ways by which a class may register its modules, or do without.
_REGISTERING = frozenset({"add_module", "register_module", "setattr", "__setattr__", "_modules"})
_ASKING_FOR_ALL = ("__dict__", "vars", "dir", "getattr")
_OWN_ACCOUNT = frozenset(
    {"parameters", "named_parameters", "_apply", "to", "cuda", "train", "state_dict", "children"}
)
#: What may be done with a list of modules without registering them.
_READING = re.compile(
    r"^builtins\.(?:len|enumerate|zip|reversed|range|isinstance|print|sum|map|all|any|iter|next)$"
)
_ADDING = frozenset({"append", "insert", "extend", "setdefault", "update"})
_LISTS = frozenset({"list", "tuple", "listcomp"})
#: Modules without layers of their own, that are given some after they were made.
_FILLED = frozenset(
    {"torch.nn.Module", "torch.nn.Sequential", "torch.nn.ModuleList", "torch.nn.ModuleDict"}
)


class UnregisteredModules(Rule):
    """Modules are kept in a plain list or dict, where nothing finds them.

    Symptom: these layers stay at their random initialisation, on the CPU; they are in no
    checkpoint, and `eval()` does not reach them. The rest of the model trains, and makes up for
    some of it.

    Why: a module finds its parameters through its attributes. An attribute that is a list or a
    dict is only a list or a dict: `parameters()`, `to()`, `state_dict()`, `train()` and `eval()`
    do not look inside. `nn.ModuleList` and `nn.ModuleDict` are lists and dicts that they do look
    into.

    What torch does: nothing, as long as some parameters are found. The forward works.

    Limits: a list of one module is not reported: that is how a module is hidden on purpose. Nor
    are lists of layers without parameters, such as activations.
    """

    since = "0.1"
    triggers = ("append(|= [|= {|=[|={|= (|= dict(", "Module|super(", "nn.")
    sources = (
        "https://pytorch.org/docs/stable/generated/torch.nn.ModuleList.html",
        "https://github.com/pytorch/pytorch/issues/59925",
        "https://github.com/pytorch/pytorch/issues/715",
        "https://github.com/asyml/texar-pytorch/pull/72",
        "https://github.com/namisan/mt-dnn/issues/45",
        "https://github.com/pytorch/pytorch/issues/632",
    )
    examples = (
        Bad(
            "a list of layers",
            """
            class Net(nn.Module):
                def __init__(self, n, depth):
                    super().__init__()
                    self.layers = [nn.Linear(n, n) for _ in range(depth)]  # error
                    self.head = nn.Linear(n, 10)

                def forward(self, x):
                    for layer in self.layers:
                        x = torch.relu(layer(x))
                    return self.head(x)
            """,
            fixed="""
            class Net(nn.Module):
                def __init__(self, n, depth):
                    super().__init__()
                    self.layers = nn.ModuleList([nn.Linear(n, n) for _ in range(depth)])  # error
                    self.head = nn.Linear(n, 10)

                def forward(self, x):
                    for layer in self.layers:
                        x = torch.relu(layer(x))
                    return self.head(x)
            """,
        ),
        Good(
            "a ModuleList of layers",
            """
            class Net(nn.Module):
                def __init__(self, width, depth):
                    super().__init__()
                    self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
                    self.head = nn.Linear(width, 10)

                def forward(self, x):
                    for layer in self.layers:
                        x = torch.relu(layer(x))
                    return self.head(x)
            """,
        ),
        Bad(
            "a list that grows",
            """
            class Merge(nn.Module):
                def __init__(self, specs):
                    super().__init__()
                    self._layers = []  # error
                    for spec in specs:
                        self._layers.append(nn.Conv1d(*spec))

                def forward(self, x):
                    return torch.cat([layer(x) for layer in self._layers], dim=1)
            """,
            fixed="""
            class Merge(nn.Module):
                def __init__(self, specs):
                    super().__init__()
                    self._layers = nn.ModuleList([])  # error
                    for spec in specs:
                        self._layers.append(nn.Conv1d(*spec))

                def forward(self, x):
                    return torch.cat([layer(x) for layer in self._layers], dim=1)
            """,
        ),
        Bad(
            "a dict of layers, and one of a class of the same file",
            """
            class Block(nn.Module):
                def __init__(self, dim):
                    super().__init__()
                    self.fc = nn.Linear(dim, dim)

            class Relations(nn.Module):
                def __init__(self, names, dim):
                    super().__init__()
                    self.first = {}  # error
                    for name in names:
                        self.first[name] = nn.Linear(dim, dim)
                    self.second = {"a": Block(dim), "b": Block(dim)}  # error
            """,
        ),
        Bad(
            "a list of dropouts, which eval() never reaches",
            """
            class Answer(nn.Module):
                def __init__(self, rates):
                    super().__init__()
                    drops = []
                    for p in rates:
                        drops.append(nn.Dropout(p))
                    self.drops = drops  # error
                    self.fc = nn.Linear(8, 8)
            """,
            fixed="""
            class Answer(nn.Module):
                def __init__(self, rates):
                    super().__init__()
                    drops = []
                    for p in rates:
                        drops.append(nn.Dropout(p))
                    self.drops = nn.ModuleList(drops)  # error
                    self.fc = nn.Linear(8, 8)
            """,
        ),
        Bad(
            "a list of blocks whose layers are in other classes, each put in under a name",
            """
            class Attention(nn.Module):
                def __init__(self, n):
                    super().__init__()
                    self.mix = nn.Linear(n, n)

            class Block(nn.Module):
                def __init__(self, n):
                    super().__init__()
                    self.attention = Attention(n)

            class Net(nn.Module):
                def __init__(self, n, depth):
                    super().__init__()
                    self.first = Block(n)
                    self.blocks = []  # error
                    for _ in range(depth):
                        block = Block(n)
                        self.blocks.append(block)
            """,
        ),
        Bad(
            "a layer of torch's that others are added to",
            """
            class SplitNorm(nn.BatchNorm2d):
                def __init__(self, n, splits):
                    super().__init__(n)
                    self.others = [nn.BatchNorm2d(n) for _ in range(splits - 1)]  # error

            class Net(nn.Module):
                def __init__(self, n):
                    super().__init__()
                    self.norm = SplitNorm(n, 2)
            """,
        ),
        Bad(
            "a list of pairs of layers",
            """
            class Transformer(nn.Module):
                def __init__(self, n, depth):
                    super().__init__()
                    self.layers = []  # error
                    for _ in range(depth):
                        self.layers.append(nn.ModuleList([nn.LayerNorm(n), nn.Linear(n, n)]))
            """,
        ),
        Bad(
            "copies of a layer, and one more",
            """
            import copy
            from torch import nn

            class Stack(nn.Module):
                def __init__(self, n, depth):
                    super().__init__()
                    layer = nn.Linear(n, n)
                    self.layers = [copy.deepcopy(layer) for _ in range(depth)]  # error
                    last = nn.Linear(n, 1)
                    self.layers += [last]
            """,
        ),
        Bad(
            "lists of layers that are added to lists",
            """
            class Net(nn.Module):
                def __init__(self, n, depth):
                    super().__init__()
                    self.first = []  # error
                    self.first.extend(
                        [nn.Linear(n, n) for _ in range(depth)]
                    )
                    self.last = []  # error
                    self.last += [nn.Linear(n, n), nn.ReLU()]
                    self.last += [nn.Linear(n, 1)]
            """,
        ),
        Bad(
            "blocks that are filled before they are kept",
            """
            class Net(nn.Module):
                def __init__(self, n, depth):
                    super().__init__()
                    self.blocks = []  # error
                    self.stages = []  # error
                    for _ in range(depth):
                        layers = []
                        layers.extend([nn.Linear(n, n), nn.ReLU()])
                        self.blocks.append(nn.Sequential(*layers))
                        stage = nn.Module()
                        stage.up = nn.Linear(n, n)
                        self.stages.append(stage)
            """,
        ),
        Bad(
            "a class above functions that are called as its methods could be",
            """
            class Net(nn.Module):
                def __init__(self, n, depth):
                    super().__init__()
                    self.layers = []  # error
                    for _ in range(depth):
                        self.layers.append(nn.Linear(n, n))

            def train(model, loader):
                setattr(model, "loader", loader)
            """,
        ),
        Good(
            "blocks that are filled with what learns nothing",
            """
            class Net(nn.Module):
                def __init__(self, n, depth):
                    super().__init__()
                    self.fc = nn.Linear(n, n)
                    self.blocks = []
                    for _ in range(depth):
                        layers = []
                        layers.extend([nn.Flatten(), nn.ReLU()])
                        self.blocks.append(nn.Sequential(*layers))
            """,
        ),
        Good(
            "lists of layers that are added to what registers them",
            """
            class Net(nn.Module):
                def __init__(self, n, depth):
                    super().__init__()
                    self.first = nn.ModuleList()
                    self.first.extend([nn.Linear(n, n) for _ in range(depth)])
                    self.last = nn.ModuleList()
                    self.last += [nn.Linear(n, n), nn.ReLU()]
            """,
        ),
        Good(
            "the list becomes a Sequential",
            """
            class Net(nn.Module):
                def __init__(self, width, depth):
                    super().__init__()
                    self.layers = [nn.Linear(width, width)]
                    for _ in range(depth):
                        self.layers.append(nn.Linear(width, width))
                    self.net = nn.Sequential(*self.layers)
            """,
        ),
        Good(
            "the list becomes a ModuleList under its own name",
            """
            class Net(nn.Module):
                def __init__(self, width, depth):
                    super().__init__()
                    self.layers = []
                    for _ in range(depth):
                        self.layers.append(nn.Linear(width, width))
                    self.layers = nn.ModuleList(self.layers)
            """,
        ),
        Good(
            "each layer is registered by name, too",
            """
            class Net(nn.Module):
                def __init__(self, width, depth):
                    super().__init__()
                    self.layers = []
                    for i in range(depth):
                        layer = nn.Linear(width, width)
                        self.add_module(f"layer{i}", layer)
                        self.layers.append(layer)
            """,
        ),
        Good(
            "a list of layers that are attributes as well",
            """
            class Net(nn.Module):
                def __init__(self, width):
                    super().__init__()
                    self.first = nn.Linear(width, width)
                    self.second = nn.Linear(width, width)
                    self.layers = [self.first, self.second]
            """,
        ),
        Good(
            "a list that hides a teacher on purpose",
            """
            class Student(nn.Module):
                def __init__(self, width):
                    super().__init__()
                    self.fc = nn.Linear(width, width)
                    self.teacher = [nn.Linear(width, width)]
            """,
        ),
        Good(
            "frozen modules, kept out of the checkpoint on purpose",
            """
            class Perceptual(nn.Module):
                def __init__(self, width):
                    super().__init__()
                    self.fc = nn.Linear(width, width)
                    self.fixed = [nn.Linear(width, 1).requires_grad_(False) for _ in range(2)]
            """,
        ),
        Good(
            "a list of activations",
            """
            class Net(nn.Module):
                def __init__(self, width):
                    super().__init__()
                    self.fc = nn.Linear(width, width)
                    self.activations = [nn.ReLU(), torch.tanh, nn.Sigmoid()]
            """,
        ),
        Good(
            "an ensemble that is no module",
            """
            class Ensemble:
                def __init__(self, width, count):
                    self.members = [nn.Linear(width, 1) for _ in range(count)]

                def parameters(self):
                    return [p for member in self.members for p in member.parameters()]
            """,
        ),
        Good(
            "a module that hands out the parameters itself",
            """
            class Ensemble(nn.Module):
                def __init__(self, width, count):
                    super().__init__()
                    self.members = [nn.Linear(width, 1) for _ in range(count)]

                def parameters(self, recurse=True):
                    for member in self.members:
                        yield from member.parameters()
            """,
        ),
    )

    @classmethod
    def seek(cls, text: str) -> Iterator[int]:
        """Where something with a class's name is put into a list or a dict."""
        return containers(text)

    def lint(self, file: FileFacts) -> Iterator[Finding]:
        """Look at each list or dict that a module keeps, and at what is put into it."""
        for trace in file.traces:
            for store in trace.stores:
                if store.kind != "attribute" or store.augmented or store.file is not file.source:
                    continue
                module = _first_hidden(trace, store)
                if module is not None:
                    yield self._report(store, module)

    def watch(self, run: Run) -> Iterator[Observation]:
        """Ask for parameters in lists and dicts of a trained model, in no optimizer."""
        left = [
            p
            for p in run.parameters
            if p.hidden_in
            and p.reached
            and p.trainable
            and p.moved is False
            and not p.optimizers
            and not p.claimed
        ]
        for holder in dict.fromkeys(p.hidden_in for p in left) if run.steps else ():
            number = sum(p.hidden_in == holder for p in left)
            yield self.observation(
                f"`{holder}` holds {counted(number, 'parameter')} that the loss depends on and"
                " torch does not know of: no optimizer updates them",
                "make it an `nn.ModuleList` or `nn.ModuleDict`",
                run.backwards[-1].where,
            )

    def _report(self, store: Store, module: Value) -> Finding:
        collection = _collection_of(store)
        is_list = collection is not None and collection.kind in _LISTS
        container = "nn.ModuleList" if is_list else "nn.ModuleDict"
        maker = _maker_text(module)
        message = (
            f"`{store.target}` keeps `{maker}` in a plain {'list' if is_list else 'dict'}, where "
            f"`parameters()`, `to()`, `state_dict()` and `eval()` do not find it"
        )
        code = f"nn.ModuleList({store.value_text})"
        fix = None
        if is_list and maker.startswith("nn."):
            fix = Fix((Edit("replace", store.value_place, code),), safe=False)
        return self.finding(store.place, message, f"keep the modules in an `{container}`", fix)


def _maker_text(module: Value) -> str:
    for option in options(module):
        if isinstance(option, Result):
            return option.call.name
        if isinstance(option, Instance):
            return option.definition.name
    return ""


def _collection_of(store: Store) -> Collection | None:
    found = [option for option in options(store.value) if isinstance(option, Collection)]
    return found[0] if len(found) == len(options(store.value)) == 1 else None


def _first_hidden(trace: Trace, store: Store) -> Value | None:
    """The first module in what the store keeps, if nothing but the store keeps it."""
    owner, collection = store.owner, _collection_of(store)
    if collection is None or not isinstance(owner, Instance) or not owner.definition.is_module:
        return None
    if _answers_for_itself(owner.definition, store) or _is_wrapped_by_name(owner.definition, store):
        return None
    put = list(_put_into(trace, collection))
    if len(collection.items) == 1 and collection.kind in ("list", "tuple", "dict") and not put:
        return None
    items = [*_flattened(collection), *put]
    hidden = [item for item in items if has_state(item) or _is_filled(trace, item)]
    if not hidden or _is_passed_on(trace, collection):
        return None
    if any(_is_kept(trace, store, item) or _is_frozen(item) for item in hidden):
        return None
    return hidden[0]


def _flattened(collection: Collection) -> Iterator[Value]:
    for item in collection.items:
        inner = identity(item)
        if isinstance(inner, Collection):
            yield from _flattened(inner)
        else:
            yield item


def _is_filled(trace: Trace, item: Value) -> bool:
    """Whether the item is a container of torch's, or a bare module, that is given layers."""
    made = identity(item)
    if not isinstance(made, Result) or made.call.qualified not in _FILLED:
        return False
    given = [part.base for part in made.call.args if isinstance(part, Element)]
    inside = [value for filled in (made, *given) for value in _put_into(trace, filled)]
    inside += [store.value for store in trace.stores if _is_named_part(store, made)]
    return any(
        has_state(value) or any(map(has_state, _put_into(trace, identity(value))))
        for value in inside
    )


def _is_named_part(store: Store, module: Value) -> bool:
    return store.kind == "attribute" and store.owner is not None and same(store.owner, module)


def _put_into(trace: Trace, collection: Value) -> Iterator[Value]:
    """What is appended to a list, or stored under a key, after it was made."""
    for call in trace.calls:
        if call.method in _ADDING and call.receiver is not None and same(call.receiver, collection):
            for given in call.args:
                inner = identity(given)
                yield from _flattened(inner) if isinstance(inner, Collection) else (given,)
    for store in trace.stores:
        if store.kind == "item" and store.owner is not None and same(store.owner, collection):
            yield store.value
        elif store.augmented == "+" and _grows(store.total, collection):
            inner = identity(store.value)
            yield from _flattened(inner) if isinstance(inner, Collection) else ()


def _grows(total: Value | None, collection: Value) -> bool:
    """Whether `layers += [...]` adds to the list, the first time or again."""
    while isinstance(total, Operation) and total.operator == "+":
        total = total.operands[0]
    return total is not None and any(option is collection for option in options(total))


def _answers_for_itself(definition: ClassFacts, store: Store) -> bool:
    """Whether a class has its own way to register modules, or to hand out their parameters.

    What a base does for all its classes cannot know of this list, unless it asks for everything.
    """
    if not _OWN_ACCOUNT.isdisjoint(definition.methods):
        return True
    known = {store.target.rpartition(".")[2], *_ASKING_FOR_ALL}
    for each in (definition, *definition.ancestors()):
        if not isinstance(each, ClassFacts):
            continue
        for name, method in each.methods.items():
            if name in _OWN_ACCOUNT and not known.isdisjoint(method.identifiers):
                return True
            if not _REGISTERING.isdisjoint(method.identifiers):
                if each is definition or not known.isdisjoint(method.identifiers):
                    return True
    return False


def _is_wrapped_by_name(definition: ClassFacts, store: Store) -> bool:
    """Whether some method gives `self.layers` to a container; read in the text of the class."""
    name = re.escape(store.target.partition(".")[2])
    rows = definition.file.lines[definition.place.line - 1 : definition.place.end_line]
    wrapped = rf"(?:ModuleList|ModuleDict|Sequential)\([^()]*\bself\.{name}\b"
    return bool(re.search(wrapped, "\n".join(rows)))


def _is_passed_on(trace: Trace, collection: Collection) -> bool:
    """Whether a call is given the whole collection, and may register what is in it."""
    return any(
        _concerns(given, collection)
        for call in trace.calls
        if not _READING.match(call.qualified)
        for given in (*call.args, *call.keywords.values())
    )


def _concerns(given: Value, collection: Collection) -> bool:
    return any(
        option is collection or (isinstance(option, Element) and same(option.base, collection))
        for option in options(given)
    )


def _is_kept(trace: Trace, store: Store, item: Value) -> bool:
    """Whether the module is an attribute as well, or is given to something that may register it."""
    for other in trace.stores:
        if other.kind == "attribute" and other is not store and _is_one(other.value, item):
            return True
    return any(
        any(_is_one(given, item) for given in (*call.args, *call.keywords.values()))
        for call in trace.calls
        if call.method not in _ADDING and not _READING.match(call.qualified)
    )


def _is_one(first: Value, second: Value) -> bool:
    """Whether two values may be one object: not if two calls of a class have made them.

    One value stands for all modules of a class that are made inside others.
    """
    if isinstance(first, Returned) and isinstance(second, Returned) and first.value is second.value:
        makers = (first.call, second.call)
        if all(isinstance(call.callee, Class) for call in makers):
            return first.call.node is second.call.node
    return same(first, second)


def _is_frozen(item: Value) -> bool:
    """Whether the module is put into eval mode, or takes no gradients: it is not to be trained."""
    while isinstance(item, Returned):
        if item.call.method in ("eval", "requires_grad_"):
            return True
        item = item.value
    return False
