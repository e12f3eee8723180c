"""Modules with something to learn or to switch: the ones that have to be registered."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.source.activations import layers_of
from pytest_trainloop.source.definitions import ClassFacts
from pytest_trainloop.source.imports import canonical
from pytest_trainloop.source.roles import identity
from pytest_trainloop.source.values import Class, Collection, Instance, Result, Value, options

#: Layers with parameters of their own.
_LEARNING = (
    r"Linear|Bilinear|Conv\dd|ConvTranspose\dd|Lazy\w+|Embedding|EmbeddingBag|LSTM|GRU|RNN|LSTMCell"
    r"|GRUCell|RNNCell|MultiheadAttention|Transformer\w*|BatchNorm\dd|SyncBatchNorm|GroupNorm"
    r"|LayerNorm|RMSNorm|PReLU"
)
_STATEFUL = re.compile(rf"^torch\.nn\.(?:{_LEARNING}|\w*Dropout\d?d?)$")
_LEARNING_NAME = re.compile(rf"^(?:{_LEARNING}|Parameter|ParameterList)$")
_CONTAINERS = frozenset({"torch.nn.Sequential", "torch.nn.ModuleList", "torch.nn.ModuleDict"})


def has_state(module: Value) -> bool:
    """Whether a value surely is a module with parameters, buffers or a mode that matters."""
    found = [_has_state(option) for option in options(module)]
    return bool(found) and all(found)


def _has_state(module: Value) -> bool:
    if isinstance(module, Instance):
        return module.definition.is_module and _learns(module.definition)
    if not isinstance(module, Result):
        return False
    if module.call.qualified in _CONTAINERS:
        return any(_holds_state(layer) for layer in layers_of(module.call))
    if module.call.qualified == "copy.deepcopy" and module.call.args:
        return has_state(module.call.args[0])
    return bool(_STATEFUL.match(module.call.qualified))


def _holds_state(layer: Value) -> bool:
    """Whether a layer, or one of a list of them, has a state."""
    inner = identity(layer)
    if isinstance(inner, Collection):
        return any(_holds_state(item) for item in inner.items)
    return has_state(layer)


def _learns(definition: ClassFacts) -> bool:
    """Whether the constructor of a class makes something that learns, or of what it makes."""
    seen: set[int] = set()
    queue = [definition]
    for current in queue:
        if id(current) in seen or len(seen) >= _MOST_CLASSES:
            continue
        seen.add(id(current))
        if _is_built_on_a_layer(current):
            return True
        for name in _constructor_names(current):
            if _LEARNING_NAME.match(name):
                return True
            if name[0].isupper():
                queue.extend(_modules_called(current, name))
    return False


def _is_built_on_a_layer(definition: ClassFacts) -> bool:
    """Whether a class is a layer of torch's that learns, with something added."""
    return any(
        isinstance(base, str) and _STATEFUL.match(canonical(base)) is not None
        for base in definition.ancestors()
    )


#: How many classes are asked, from one to those that it is built from, whether they learn.
_MOST_CLASSES = 12


def _modules_called(definition: ClassFacts, name: str) -> Iterator[ClassFacts]:
    """The class of modules that a name means where a class is defined, if it is in sight."""
    binding = definition.scope.find(name) if definition.scope is not None else None
    for option in options(binding.value) if binding is not None else ():
        found = definition.link(option) if definition.link is not None else option
        if isinstance(found, Class) and found.definition.is_module:
            yield found.definition


def _constructor_names(definition: ClassFacts) -> Iterator[str]:
    for each in (definition, *definition.ancestors()):
        if isinstance(each, ClassFacts) and "__init__" in each.methods:
            yield from each.methods["__init__"].identifiers
