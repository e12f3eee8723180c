"""Which layer or function a value last went through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_trainloop.source.values import (
    Attribute,
    Collection,
    Constant,
    Element,
    Imported,
    Instance,
    Operation,
    Result,
    Returned,
    Value,
    options,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Call

#: Methods and functions that only move, cut or copy numbers.
_MOVING = frozenset(
    (
        *("view", "reshape", "squeeze", "unsqueeze", "flatten", "unflatten", "contiguous"),
        *("transpose", "permute", "t", "swapaxes", "movedim", "narrow", "expand", "expand_as"),
        *("to", "cpu", "cuda", "float", "double", "half", "bfloat16", "type", "type_as", "clone"),
        *("repeat", "view_as", "reshape_as", "gather", "index_select", "masked_select"),
        *("detach", "Variable", "requires_grad_"),
    )
)
#: Those that leave the dimensions as they are.
_SHAPE_KEEPING = frozenset(
    (
        *("contiguous", "to", "cpu", "cuda", "float", "double", "half", "bfloat16", "type"),
        *("type_as", "clone", "detach", "Variable", "requires_grad_"),
    )
)
#: How far back a value is followed.
_FARTHEST = 30
_CLASSES = {
    "Softmax": "softmax",
    "Softmax2d": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
    "LogSigmoid": "logsigmoid",
}
_FUNCTIONS = frozenset({"softmax", "log_softmax", "sigmoid", "logsigmoid"})
_MODULES = ("torch", "torch.nn.functional", "torch.special")
_WEIGHTED = re.compile(r"^torch\.nn\.(?:Linear|Bilinear|Conv\dd|ConvTranspose\dd)$")
#: Layers that keep the kind of number that comes in: in eval mode they do nothing.
_KEEPING = re.compile(r"^torch\.nn\.(?:\w*Dropout\d?d?|Identity|Flatten|Unflatten)$")


@dataclass(frozen=True, eq=False)
class Activation:
    """The last thing that made the numbers of a value what they are."""

    #: `softmax`, `log_softmax`, `sigmoid`, `logsigmoid`, or `linear`: a weighted sum.
    kind: str
    #: What is to be changed about it: the call that applies it; the call that makes the layer
    #: where the layer stands in an `nn.Sequential`.
    call: Call
    #: The call that made the layer, or that is the function: it holds `dim`.
    made: Call
    #: Whether the dimensions were changed since, so that `dim` counts others.
    is_reshaped: bool = False

    @property
    def dim(self) -> Value | None:
        """The dimension it is taken over, where that is given."""
        if self.made.qualified.startswith("torch.nn.") and self.made.method[:1].isupper():
            return self.made.argument(0, "dim")
        return self.made.argument(
            1 if isinstance(self.made.receiver, Imported | None) else 0, "dim"
        )


def activations(value: Value) -> tuple[Activation, ...]:
    """What a value last went through, one for each way to it; empty if any way is not known."""
    found: list[Activation] = []
    for option in options(value):
        inner = _of_option(option, 0)
        if not inner:
            return ()
        found.extend(inner)
    return tuple(found)


def _of_value(value: Value, depth: int) -> tuple[Activation, ...]:
    if depth > _FARTHEST:
        return ()
    found = [_of_option(option, depth) for option in options(value)]
    return tuple(each for inner in found for each in inner) if all(found) else ()


def _of_option(value: Value, depth: int) -> tuple[Activation, ...]:
    if isinstance(value, Returned):
        return _of_value(value.value, depth + 1)
    if isinstance(value, Element) and value.key is not None and _is_slice(value.key):
        return _reshaped(_of_value(value.base, depth + 1))
    if isinstance(value, Result):
        return _of_call(value.call, depth)
    return ()


def _is_slice(key: Value) -> bool:
    """Whether an index keeps a tensor a tensor of the same kind of numbers (not a tuple's part)."""
    if isinstance(key, Collection):
        return True
    return isinstance(key, (Operation, Result | Attribute))


def _of_call(call: Call, depth: int) -> tuple[Activation, ...]:
    module, _, name = call.qualified.rpartition(".")
    if module in _MODULES and name in _FUNCTIONS:
        return (Activation(name, call, call),)
    if call.qualified == "torch.nn.functional.linear":
        return (Activation("linear", call, call),)
    if call.method in _MOVING:
        return _moved(call, depth)
    if _is_tensor_method(call):
        return (Activation(call.method, call, call),)
    return _of_layer_call(call, depth)


def _moved(call: Call, depth: int) -> tuple[Activation, ...]:
    source = call.receiver
    if call.qualified:
        source = call.args[0] if call.args and call.qualified.startswith("torch.") else None
    found = _of_value(source, depth + 1) if source is not None else ()
    return found if call.method in _SHAPE_KEEPING else _reshaped(found)


def _reshaped(found: tuple[Activation, ...]) -> tuple[Activation, ...]:
    return tuple(replace(each, is_reshaped=True) for each in found)


def _is_tensor_method(call: Call) -> bool:
    """Whether the call is `tensor.softmax(...)`, and not that of an object's layer or function."""
    callee = call.callee
    if call.method not in _FUNCTIONS or not isinstance(callee, Attribute):
        return False
    if isinstance(callee.base, Instance | Imported):
        return False
    return all(isinstance(given, Constant) for given in (*call.args, *call.keywords.values()))


def _of_layer_call(call: Call, depth: int) -> tuple[Activation, ...]:
    """What the layers that are called here do last."""
    if call.followed or call.starred:
        return ()
    found: list[Activation] = []
    for option in options(call.callee):
        if not isinstance(option, Result):
            return ()
        inner = _of_layer(option.call, call, depth)
        if not inner:
            return ()
        found.extend(inner)
    return tuple(found)


def _of_layer(made: Call, applied: Call, depth: int) -> tuple[Activation, ...]:
    module, _, name = made.qualified.rpartition(".")
    if module != "torch.nn":
        return ()
    if name in _CLASSES:
        return (Activation(_CLASSES[name], applied, made),)
    if _WEIGHTED.match(made.qualified):
        return (Activation("linear", applied, made),)
    if _KEEPING.match(made.qualified):
        found = _of_value(applied.args[0], depth + 1) if applied.args else ()
        return _reshaped(found) if name.endswith("latten") else found
    if name == "Sequential":
        return _of_sequential(made, applied, depth)
    return ()


def _of_sequential(made: Call, applied: Call, depth: int) -> tuple[Activation, ...]:
    """The last layer of an `nn.Sequential` that matters."""
    for layer in reversed(tuple(layers_of(made))):
        known = [option for option in options(layer) if isinstance(option, Result)]
        if len(known) != 1 or len(options(layer)) != 1:
            return ()
        inner = known[0].call
        if _KEEPING.match(inner.qualified):
            continue
        found = _of_layer(inner, applied, depth)
        return tuple(replace(each, call=inner) if each.call is applied else each for each in found)
    return ()


def layers_of(sequential: Call) -> Iterator[Value]:
    """The layers of an `nn.Sequential`, in order; a part out of sight is an `Element`."""
    for given in sequential.args:
        for option in options(given):
            if isinstance(option, Result) and option.call.method == "OrderedDict":
                yield from _named_layers(option.call)
            elif isinstance(option, Collection) and option.kind == "dict":
                yield from option.items
            else:
                yield option


def _named_layers(call: Call) -> Iterator[Value]:
    """The layers of `OrderedDict([("name", layer), ...])`."""
    for given in call.args:
        for item in given.items if isinstance(given, Collection) else (given,):
            match item:
                case Collection(items=(_, layer)):
                    yield layer
                case _:
                    yield item
