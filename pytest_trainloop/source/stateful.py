"""Modules with something to learn or to switch: the ones that have to be registered."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_trainloop.source.activations import layers_of
from pytest_trainloop.source.definitions import ClassFacts
from pytest_trainloop.source.values import Instance, Result, Value, options

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
        return any(has_state(layer) for layer in layers_of(module.call))
    return bool(_STATEFUL.match(module.call.qualified))


def _learns(definition: ClassFacts) -> bool:
    """Whether the constructor of a class, or of a base in sight, makes something that learns."""
    return any(_LEARNING_NAME.match(name) for name in _constructor_names(definition))


def _constructor_names(definition: ClassFacts) -> Iterator[str]:
    for each in (definition, *definition.ancestors()):
        if isinstance(each, ClassFacts) and "__init__" in each.methods:
            yield from each.methods["__init__"].identifiers
