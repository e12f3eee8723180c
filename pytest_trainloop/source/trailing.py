"""How many dimensions a tensor has at its end: a column `(B, 1)`, or a flat `(B,)`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pytest_trainloop.source.activations import layers_of
from pytest_trainloop.source.values import (
    Attribute,
    Collection,
    Constant,
    Element,
    Operation,
    Result,
    Returned,
    Value,
    constant,
    options,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_trainloop.source.events import Call

Trailing = Literal["column", "flat", "wide", ""]

#: Methods and functions whose result has the shape of what they are given.
_SAME_SHAPE = frozenset(
    (
        *("contiguous", "to", "cpu", "cuda", "float", "double", "half", "bfloat16", "type"),
        *("type_as", "clone", "detach", "Variable", "requires_grad_", "sigmoid", "tanh", "relu"),
        *("exp", "log", "abs", "clamp", "softplus", "sqrt", "dropout", "long", "int"),
    )
)
_SAME_SHAPE_LAYER = re.compile(
    r"^torch\.nn\.(?:\w*Dropout\d?d?|Identity|Sigmoid|Tanh|ReLU6?|LeakyReLU|Softplus|ELU|GELU|SiLU"
    r"|BatchNorm\dd|LayerNorm|Hardtanh|PReLU|SELU)$"
)
_REDUCING = frozenset({"sum", "mean", "amax", "amin", "logsumexp", "norm", "prod"})
_PICKING = frozenset({"max", "min"})
_LAST = (1, -1)
#: How far back a value is followed.
_FARTHEST = 20


def trailing(value: Value, depth: int = 0) -> Trailing:
    """How a batch of numbers ends: `column` is (B, 1), `flat` is (B,), `wide` is (B, n); or "".

    Known only where layers and reshaping in sight say so, and alike on every way to the value.
    """
    if depth > _FARTHEST:
        return ""
    return _alike(_of_option(option, depth) for option in options(value))


def _alike(found: Iterable[Trailing]) -> Trailing:
    kinds = set(found)
    return kinds.pop() if len(kinds) == 1 else ""


def _of_option(value: Value, depth: int) -> Trailing:
    if isinstance(value, Returned):
        return trailing(value.value, depth + 1)
    if isinstance(value, Result):
        return _of_call(value.call, depth)
    if isinstance(value, Operation):
        return _of_operation(value, depth)
    if isinstance(value, Element):
        return _of_element(value, depth)
    if isinstance(value, Attribute) and value.name == "values":
        return _of_picked(value.base, depth)
    return ""


def _of_operation(value: Operation, depth: int) -> Trailing:
    """Arithmetic with numbers keeps the shape; between tensors, both have to be known alike."""
    if value.operator not in ("+", "-", "*", "/", "**"):
        return ""
    tensors = [operand for operand in value.operands if not isinstance(operand, Constant)]
    return _alike(trailing(operand, depth + 1) for operand in tensors)


def _of_element(value: Element, depth: int) -> Trailing:
    key = value.key
    if constant(key) == 0 and not isinstance(constant(key), bool):
        return _of_picked(value.base, depth)
    if isinstance(key, Collection) and len(key.items) == len(_LAST):
        first, last = (constant(item) for item in key.items)
        if last is None and isinstance(key.items[1], Constant):
            return "column" if trailing(value.base, depth + 1) == "flat" else ""
        if first is Ellipsis and isinstance(last, int):
            return "flat" if trailing(value.base, depth + 1) in ("column", "wide") else ""
    return ""


def _of_picked(base: Value, depth: int) -> Trailing:
    """`x.max(1)[0]`, `x.max(dim=1).values`: the largest of each row."""
    for option in options(base):
        if isinstance(option, Result) and option.call.method in _PICKING:
            return _reduced(option.call, depth)
    return ""


def _of_call(call: Call, depth: int) -> Trailing:
    method, source = call.method, _source(call)
    if call.qualified == "torch.nn.functional.linear" or source is None:
        return ""
    if method in ("view", "reshape"):
        return _viewed([constant(given) for given in _sizes(call)])
    if method in ("flatten", "ravel") and not _sizes(call) and not call.keywords:
        return "flat"
    if method == "squeeze":
        return _squeezed(call, source, depth)
    if method == "unsqueeze":
        return _unsqueezed(call, source, depth)
    if method in _REDUCING:
        return _reduced(call, depth)
    if method in _SAME_SHAPE:
        return trailing(source, depth + 1)
    return _of_layers(call, depth)


def _source(call: Call) -> Value | None:
    """The tensor that a method is called on, or that a function of torch is given first."""
    if call.qualified:
        return call.args[0] if call.qualified.startswith("torch.") and call.args else None
    if call.receiver is not None and isinstance(call.callee, Attribute):
        return call.receiver
    return call.args[0] if call.args else None


def _sizes(call: Call) -> tuple[Value, ...]:
    """The arguments after the tensor."""
    return call.args[1:] if call.qualified else call.args


def _viewed(sizes: list[object]) -> Trailing:
    if sizes == [-1]:
        return "flat"
    if len(sizes) == len(_LAST) and sizes[1] == 1:
        return "column"
    return ""


def _squeezed(call: Call, source: Value, depth: int) -> Trailing:
    before = trailing(source, depth + 1)
    sizes = _sizes(call)
    at = constant(sizes[0]) if sizes else constant(call.keywords.get("dim"))
    return "flat" if before == "column" and (at is None or at in _LAST) else ""


def _unsqueezed(call: Call, source: Value, depth: int) -> Trailing:
    sizes = _sizes(call)
    at = constant(sizes[0]) if sizes else constant(call.keywords.get("dim"))
    return "column" if at in _LAST and trailing(source, depth + 1) == "flat" else ""


def _reduced(call: Call, depth: int) -> Trailing:
    """`x.sum(1)`: one number for each row, if `x` is known to have rows."""
    sizes, source = _sizes(call), _source(call)
    at = constant(sizes[0]) if sizes else constant(call.keywords.get("dim"))
    if source is None or at not in _LAST or isinstance(at, bool):
        return ""
    # Of a (B, T, 1) tensor, which ends as a column does, dimension 1 is not the last.
    if trailing(source, depth + 1) not in (("wide", "column") if at == -1 else ("wide",)):
        return ""
    keeps = call.keywords.get("keepdim")
    if keeps is None:
        return "flat" if len(sizes) <= 1 else ""
    if not isinstance(keeps, Constant):
        return ""
    return "column" if keeps.value else "flat"


def _of_layers(call: Call, depth: int) -> Trailing:
    """What the layers that are called here leave at the end."""
    if call.followed or call.starred or not call.args:
        return ""
    return _alike(
        _of_layer(option.call, call.args[0], depth) if isinstance(option, Result) else ""
        for option in options(call.callee)
    )


def _of_layer(made: Call, given: Value, depth: int) -> Trailing:
    if made.qualified == "torch.nn.Sequential":
        return _of_sequential(made, given, depth)
    if made.qualified == "torch.nn.Linear":
        return "column" if constant(made.argument(1, "out_features")) == 1 else "wide"
    if _SAME_SHAPE_LAYER.match(made.qualified):
        return trailing(given, depth + 1)
    return ""


def _of_sequential(made: Call, given: Value, depth: int) -> Trailing:
    for layer in reversed(tuple(layers_of(made))):
        known = options(layer)
        if len(known) != 1 or not isinstance(known[0], Result):
            return ""
        if not _SAME_SHAPE_LAYER.match(known[0].call.qualified):
            return _of_layer(known[0].call, given, depth)
    return ""
