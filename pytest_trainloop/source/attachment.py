"""Whether a value still holds the graph that autograd built for it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pytest_trainloop.source.modes import gradients
from pytest_trainloop.source.roles import is_engine, is_model
from pytest_trainloop.source.values import (
    Attribute,
    Class,
    Collection,
    Constant,
    Either,
    Element,
    Function,
    Imported,
    Instance,
    Operation,
    Result,
    Returned,
    Value,
)
from pytest_trainloop.source.vocabulary import CRITERION_NAME, words

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Call

#: Methods and attributes whose result has no graph, whatever they are applied to.
_CUTTING = words(
    "item detach detach_ numpy tolist data argmax argmin argsort eq ne gt lt ge le shape "
    "size dim long int bool byte dtype device numel nonzero bernoulli multinomial sign "
    "round floor ceil topk_indices isnan isinf isfinite any all grad_fn requires_grad "
    "new_zeros new_ones register_hook backward astype keys"
)
#: Methods of tensors whose result has a graph exactly if the tensor has one.
_CARRYING = words(
    "clone cpu cuda to float double half bfloat16 mean sum squeeze unsqueeze view reshape "
    "flatten contiguous add sub mul div pow sqrt abs exp log neg clamp clip max min norm "
    "var std permute transpose t index_select gather masked_select unbind chunk split "
    "expand repeat type type_as square log_softmax softmax sigmoid tanh relu add_ mul_ "
    "div_ scale values"
)
_TENSOR_FUNCTIONS = ("torch.nn.functional.", "torch.")
_NO_GRAPH = re.compile(
    r"^torch\.(?:tensor|arange|zeros|ones|empty|rand\w*|full|eye|linspace|argmax|argmin|eq|ne|gt|lt"
    r"|isnan|isinf|isfinite|no_grad|save|load|manual_seed|from_numpy|as_tensor|device|\w+_like)$"
    r"|^torch\.(?:optim|utils|cuda|distributed|jit|compile|amp|autograd|backends|profiler)\b"
)


#: How far a value is traced back; further back nothing is known.
DEEPEST_CHAIN = 12


def attached(value: Value, backpropagated: Iterable[Value] = (), depth: int = 0) -> bool | None:
    """True: it holds a graph with parameters in it; False: it does not; None: not known.

    `backpropagated` are values known to hold a graph, because `backward()` is called on them.
    """
    known = tuple(backpropagated)
    if any(value is other for other in known):
        return True
    if depth > DEEPEST_CHAIN:
        return None
    if isinstance(value, Returned):
        return attached(value.value, known, depth + 1)
    if isinstance(value, Either):
        return _all_alike(attached(option, known, depth + 1) for option in value.options)
    if isinstance(value, Operation):
        return _of_operation(value, known, depth)
    if isinstance(value, Result):
        return _of_call(value.call, known, depth)
    if isinstance(value, Attribute):
        return False if value.name in _CUTTING else _of_part(value.base, known, depth)
    if isinstance(value, Element):
        return _of_part(value.base, known, depth)
    if isinstance(value, Collection):
        return _any_attached(
            (attached(item, known, depth + 1) for item in value.items), empty=False
        )
    if isinstance(value, Constant):
        return False
    return None


def _of_operation(value: Operation, known: tuple[Value, ...], depth: int) -> bool | None:
    if value.operator == 'f""' or value.operator in _COMPARISONS:
        return False
    if value.operator in ("and", "or"):
        return _all_alike(attached(operand, known, depth + 1) for operand in value.operands)
    if value.operator == "%" and isinstance(value.operands[0], Constant):
        return False
    return _any_attached(
        (attached(operand, known, depth + 1) for operand in value.operands), empty=False
    )


_COMPARISONS = frozenset(
    {"eq", "noteq", "lt", "lte", "gt", "gte", "is", "isnot", "in", "notin", "not"}
)


def _of_part(base: Value, known: tuple[Value, ...], depth: int) -> bool | None:
    """A part of something: attached if the whole is what a model or a loss function returned."""
    if isinstance(base, Result | Returned | Either | Element | Attribute | Collection):
        return attached(base, known, depth + 1)
    return None


def _of_call(call: Call, known: tuple[Value, ...], depth: int) -> bool | None:
    if gradients(call.context) is False:
        return False
    if call.method in _CUTTING or call.qualified in _PLAIN:
        return False
    if _NO_GRAPH.search(call.qualified):
        return False
    recorded = gradients(call.context)
    state = _of_recorded_call(call, known, depth)
    return state if recorded or not state else None


_PLAIN = frozenset(
    f"builtins.{name}"
    for name in ("float", "int", "str", "bool", "len", "format", "repr", "round", "range", "id")
)


def _of_recorded_call(call: Call, known: tuple[Value, ...], depth: int) -> bool | None:
    receiver = call.receiver
    if receiver is not None and not isinstance(receiver, Imported) and call.method in _CARRYING:
        return attached(receiver, known, depth + 1)
    if call.qualified.startswith(_TENSOR_FUNCTIONS) and call.method[:1].islower():
        return _any_attached((attached(arg, known, depth + 1) for arg in call.args), empty=None)
    if call.qualified in ("builtins.sum", "builtins.max", "builtins.min"):
        return _any_attached((attached(arg, known, depth + 1) for arg in call.args), empty=None)
    if is_forward(call):
        return True
    if _is_criterion(call):
        return _any_attached((attached(arg, known, depth + 1) for arg in call.args), empty=None)
    return None


def is_forward(call: Call) -> bool:
    """Whether the call is a model's forward: the model itself is called."""
    callee = call.callee
    if isinstance(callee, Imported | Function | Class | Constant):
        return False
    if isinstance(callee, Instance):
        return callee.definition.is_module
    if is_engine(callee):
        return not call.discarded
    return is_model(callee) and not CRITERION_NAME.search(call.name) and not call.discarded


def _is_criterion(call: Call) -> bool:
    callee = call.callee
    if isinstance(callee, Result):
        return callee.call.qualified.startswith("torch.nn.") and callee.call.method.endswith("Loss")
    return False


def _any_attached(states: Iterable[bool | None], *, empty: bool | None) -> bool | None:
    found = list(states)
    if any(found):
        return True
    if found and all(state is False for state in found):
        return False
    return empty if not found else None


def _all_alike(states: Iterable[bool | None]) -> bool | None:
    found = list(states)
    return found[0] if found and all(state is found[0] for state in found) else None
