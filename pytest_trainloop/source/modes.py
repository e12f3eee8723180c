"""Whether gradients are recorded at a place, as far as the frames around it tell."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from pytest_trainloop.source.frames import Context, Inside, With
from pytest_trainloop.source.imports import canonical
from pytest_trainloop.source.values import Constant, Imported, Result, Value, options

if TYPE_CHECKING:
    from pytest_trainloop.source.events import Call

_OFF = frozenset({"torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad"})
_ON = frozenset({"torch.enable_grad"})
_SET = frozenset({"torch.set_grad_enabled", "torch.autograd.set_grad_enabled"})
_HINT = re.compile(r"no_?grad|inference|eval|grad", re.IGNORECASE)


def gradients(context: Context) -> bool | None:
    """True: recorded; False: switched off; None: a context manager out of sight may decide."""
    for frame in reversed(context):
        if isinstance(frame, With):
            states = [_of_manager(manager) for manager in frame.managers]
        elif isinstance(frame, Inside):
            states = [_of_decorator(frame, node) for node in frame.function.decorators]
        else:
            continue
        for state in states:
            if state != "silent":
                return {"on": True, "off": False}.get(state)
    return True


def _of_manager(manager: Value) -> str:
    for option in options(manager):
        if isinstance(option, Result):
            return _of_call(option.call)
        if isinstance(option, Imported):
            return "off" if canonical(option.qualified) in _OFF else "silent"
    return "unknown"


def _of_call(call: Call) -> str:
    if call.qualified in _OFF:
        given = call.argument(0, "mode")
        return (
            "off" if given is None or (isinstance(given, Constant) and given.value) else "unknown"
        )
    if call.qualified in _ON:
        return "on"
    if call.qualified in _SET:
        given = call.argument(0, "mode")
        if isinstance(given, Constant):
            return "on" if given.value else "off"
        return "unknown"
    if call.followed or call.qualified.startswith(("torch.", "contextlib.nullcontext")):
        return "silent"
    return "unknown" if _HINT.search(call.method) else "silent"


def _of_decorator(frame: Inside, node: ast.expr) -> str:
    plain = node.func if isinstance(node, ast.Call) else node
    name = frame.file.text_of(plain)
    last = name.rpartition(".")[2]
    if last in ("no_grad", "inference_mode"):
        return "off"
    if last == "enable_grad":
        return "on"
    if last == "set_grad_enabled" or (_HINT.search(last) and last != "property"):
        return "unknown"
    return "silent"
