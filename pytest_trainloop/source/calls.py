"""Reading calls: the event, what the callee is, and what comes back."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from pytest_trainloop.source import follow, members
from pytest_trainloop.source.events import Call
from pytest_trainloop.source.frames import Loop
from pytest_trainloop.source.imports import canonical
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
    Partial,
    Result,
    Returned,
    Super,
    Value,
    options,
)
from pytest_trainloop.source.vocabulary import words

if TYPE_CHECKING:
    from pytest_trainloop.source.reader import Reader

#: Methods that give back the object they are called on, or the same thing elsewhere.
_SELF_RETURNING = words(
    "to cuda cpu float half double bfloat16 train eval requires_grad_ to_empty compile contiguous"
)
#: Functions that give back their first argument, wrapped.
_WRAPPING = words(
    "DistributedDataParallel DDP DataParallel FullyShardedDataParallel FSDP fully_shard "
    "compile script DistributedOptimizer wrap_model setup_module convert_sync_batchnorm "
    "auto_model auto_optim"
)
#: Methods that give back their arguments, wrapped, one for one.
_PREPARING = frozenset({"prepare", "setup", "initialize", "setup_optimizers", "setup_dataloaders"})
#: Functions that call, at once or later, a function they are given, in a loop.
_ENGINES = frozenset({"ignite.engine.Engine", "ignite.engine.engine.Engine"})
_STEPPING = frozenset({"step", "first_step", "second_step", "optimizer_step"})


_INDIRECT = (Either, Returned)


def read_call(reader: Reader, node: ast.Call) -> Value:
    """A call: callee and arguments are read, then the call happens, then its body is followed."""
    func = node.func
    receiver: Value | None = None
    method = ""
    discarded = node is reader.standalone
    if isinstance(func, ast.Attribute):
        method = func.attr
        receiver = reader.evaluate(func.value)
        callee = members.attribute(reader, receiver, method)
    else:
        if isinstance(func, ast.Name):
            method = func.id
        callee = reader.evaluate(func)
    starred = False
    args: list[Value] = []
    for arg in node.args:
        if isinstance(arg, ast.Starred):
            starred = True
            args.append(Element(reader.evaluate(arg.value)))
        else:
            args.append(reader.evaluate(arg))
    keywords = {given.arg or "**": reader.evaluate(given.value) for given in node.keywords}
    call = Call(
        reader.file,
        node,
        reader.context,
        0,
        method,
        _qualified(callee),
        callee,
        receiver,
        tuple(args),
        keywords,
        starred or "**" in keywords,
        discarded=discarded,
    )
    return _happen(reader, call)


def _qualified(callee: Value) -> str:
    if isinstance(callee, Imported):
        return canonical(callee.qualified)
    if isinstance(callee, _INDIRECT):
        for option in options(callee):
            if isinstance(option, Imported):
                return canonical(option.qualified)
    return ""


def _happen(reader: Reader, call: Call) -> Value:
    if call.qualified in _SPECIAL:
        special = _special(reader, call)
        if special is not None:
            return special
    if call.method in _STEPPING:
        _read_closures(reader, call)
    reader.record(call)
    value = follow.into(reader, call)
    if value is not None:
        return value
    if not call.followed:
        _hand_over(reader, call)
    return _passed_on(call) or Result(call)


_SPECIAL = frozenset(
    {"builtins.super", "builtins.getattr", "functools.partial", "torch.utils._functools.partial"}
)


def _special(reader: Reader, call: Call) -> Value | None:
    """Builtins that say something about names and functions rather than about data."""
    if call.qualified == "builtins.super":
        receiver, owner = _enclosing_method(reader)
        return (
            Super(receiver, owner.definition)
            if receiver is not None and owner is not None
            else None
        )
    if call.qualified in ("functools.partial", "torch.utils._functools.partial") and call.args:
        if isinstance(call.args[0], Function | Class | Partial):
            return Partial(call.args[0], call.args[1:], call.keywords)
    if call.qualified == "builtins.getattr" and len(call.args) > 1:
        name = call.args[1]
        if isinstance(name, Constant) and isinstance(name.value, str):
            return members.attribute(reader, call.args[0], name.value)
    return None


def _enclosing_method(reader: Reader) -> tuple[Instance | None, Class | None]:
    for function in reversed(reader.stack):
        if function.owner is not None and function.parameters:
            receiver = reader.scope.look_up(function.parameters[0])
            if isinstance(receiver, Instance):
                return receiver, Class(function.owner)
            return None, None
    return None, None


def _read_closures(reader: Reader, call: Call) -> None:
    """The closure given to `optimizer.step(closure)` runs before the update."""
    for value in (*call.args, *call.keywords.values()):
        if isinstance(value, Function):
            follow.function(reader, value, (), {}, call)


def _hand_over(reader: Reader, call: Call) -> None:
    """Functions given to code out of sight may be called there."""
    if call.method in _STEPPING:
        return
    handed = [
        value for value in (*call.args, *call.keywords.values()) if isinstance(value, Function)
    ]
    for value in handed:
        if call.qualified in _ENGINES:
            loop = Loop(reader.file, call.node, "engine", call.callee)
            with reader.within(loop):
                follow.function(reader, value, (), {}, call, handed=True)
        else:
            follow.function(reader, value, (), {}, call, handed=True)


def _passed_on(call: Call) -> Value | None:
    """What comes back where a call is known to give back what it was given."""
    if call.receiver is not None and call.method in _SELF_RETURNING and not call.qualified:
        return Returned(call, call.receiver)
    if not call.args:
        return None
    if call.method in _WRAPPING and (call.qualified or isinstance(call.callee, Attribute)):
        return Returned(call, call.args[0])
    if (
        call.method in _PREPARING
        and not call.starred
        and not call.qualified.startswith("deepspeed")
    ):
        if len(call.args) == 1:
            return Returned(call, call.args[0]) if call.method != "initialize" else None
        return Collection(
            "tuple", tuple(Returned(call, arg) for arg in call.args), context=call.context
        )
    return None
