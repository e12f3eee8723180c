"""Attributes, items and elements of values, and binding targets to values."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from pytest_trainloop.source.definitions import ClassFacts
from pytest_trainloop.source.events import Store
from pytest_trainloop.source.scopes import Binding
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
    Result,
    Returned,
    Super,
    Value,
    christen,
    either,
    options,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.frames import Context
    from pytest_trainloop.source.reader import Reader

#: Attributes under which a wrapper keeps what it wraps.
_WRAPPED = frozenset({"module", "_orig_mod"})


def attribute(reader: Reader, base: Value, name: str) -> Value:
    """The value of `base.name`."""
    known = reader.fields.get((id(base), name))
    if known is not None:
        return known.value
    found = _look_up(reader, base, name)
    if found is None:
        found = Attribute(base, name)
        # The same attribute read twice is the same value.
        reader.owners.append(base)
        reader.fields[id(base), name] = Binding(found, ())
    return found


def _look_up(reader: Reader, base: Value, name: str) -> Value | None:
    if isinstance(base, Imported):
        return reader.linked(reader.program.member_of(base, name))
    if isinstance(base, Instance):
        return of_instance(reader, base, name)
    if isinstance(base, Class):
        method = base.definition.method(name)
        return _function(method.owner or base.definition, name) if method else None
    if isinstance(base, Super):
        return _of_super(base, name)
    if isinstance(base, Returned):
        return base.value if name in _WRAPPED else attribute(reader, base.value, name)
    if isinstance(base, Either) and all(isinstance(option, Instance) for option in base.options):
        return either(*(attribute(reader, option, name) for option in base.options))
    return None


def of_instance(reader: Reader, instance: Instance, name: str) -> Value | None:
    """An attribute of an object of a class in sight; None if the class does not tell."""
    definition = instance.definition
    method = definition.method(name)
    if method is None and name == "__call__" and definition.is_module:
        return of_instance(reader, instance, "forward")
    if method is not None:
        bound = _function(method.owner or definition, name, instance)
        if "property" in method.decorator_names and isinstance(bound, Function):
            return reader.program.call(reader, bound)
        return bound
    return reader.program.assigned_attribute(reader, instance, name)


def _of_super(base: Super, name: str) -> Value | None:
    for ancestor in base.definition.ancestors():
        if isinstance(ancestor, ClassFacts) and name in ancestor.methods:
            return _function(ancestor, name, base.receiver)
    return None


def _function(owner: ClassFacts, name: str, receiver: Instance | None = None) -> Value | None:
    method = owner.method(name)
    scope = (method.owner.scope if method and method.owner else None) or owner.scope
    if method is None or scope is None:
        return None
    if "staticmethod" in method.decorator_names:
        return Function(method, scope)
    if "classmethod" in method.decorator_names:
        return Function(method, scope, receiver or Class(owner))
    return Function(method, scope, receiver)


def item(reader: Reader, base: Value, key: Value) -> Value:
    """The value of `base[key]`."""
    if isinstance(key, Constant):
        known = reader.fields.get((id(base), f"[{key.value!r}]"))
        if known is not None:
            return known.value
        for option in options(base):
            if isinstance(option, Collection):
                found = _in_collection(option, key)
                if found is not None:
                    return _still_returned(base, found)
    return Element(base, key)


def _still_returned(whole: Value, part: Value) -> Value:
    """A part of what a followed call returned still comes from that call."""
    first = whole.options[0] if isinstance(whole, Either) else whole
    return Returned(first.call, part) if isinstance(first, Returned) else part


def _in_collection(collection: Collection, key: Constant) -> Value | None:
    if collection.kind == "dict":
        for known, value in zip(collection.keys, collection.items, strict=False):
            if isinstance(known, Constant) and known.value == key.value:
                return value
        return None
    if collection.kind in ("list", "tuple") and isinstance(key.value, int):
        if -len(collection.items) <= key.value < len(collection.items):
            return collection.items[key.value]
        return None
    if collection.kind in ("listcomp", "generatorexp") and isinstance(key.value, int):
        return collection.items[0]
    return None


def element(reader: Reader, source: Value) -> Value:
    """What one iteration over `source` yields."""
    for option in options(source):
        if isinstance(option, Collection):
            if option.kind == "dict":
                return (
                    either(*(key for key in option.keys if key is not None))
                    if option.keys
                    else Element(option)
                )
            return either(*option.items) if option.items else Element(option)
        if isinstance(option, Result):
            return _element_of_call(reader, option)
    return Element(source)


def _element_of_call(reader: Reader, result: Result) -> Value:
    """What iterating over the result of a call yields: `enumerate`, `zip` and `items` pair up."""
    call = result.call
    if call.qualified == "builtins.enumerate" and call.args:
        return Collection("tuple", (Element(result), element(reader, call.args[0])))
    if call.qualified == "builtins.zip" and not call.starred:
        return Collection("tuple", tuple(element(reader, value) for value in call.args))
    if call.method == "items" and call.receiver is not None and not call.args:
        return Collection("tuple", (Element(result), Element(call.receiver)))
    wrapped = call.args[0] if call.args else call.keywords.get("iterable")
    if wrapped is not None and (call.method in _PASSING or call.qualified in _PASSING):
        return element(reader, wrapped)
    return Element(result)


#: Iterators that yield what they are given.
_PASSING = frozenset(
    {
        "tqdm",
        "trange",
        "track",
        "islice",
        "cycle",
        "builtins.iter",
        "builtins.reversed",
        "builtins.list",
    }
    | {
        "builtins.tuple",
        "builtins.sorted",
        "builtins.next",
        "log_every",
        "progress_bar",
        "prefetch",
    }
)


def bind(reader: Reader, target: ast.expr, value: Value, node: ast.AST | None = None) -> None:
    """Bind an assignment's target; with `node`, the statement, the binding is an event."""
    if isinstance(target, ast.Name):
        binding = reader.scope.find(target.id)
        bound_in: Context | None = binding.context if binding is not None else None
        reader.scope.bind(target.id, value, reader.context)
        christen(value, target.id)
        if node is not None:
            _store(reader, node, "name", target, value, None, bound_in)
    elif isinstance(target, ast.Attribute):
        owner = reader.evaluate(target.value)
        reader.set_field(owner, target.attr, value)
        christen(value, target.attr)
        _store(reader, node or target, "attribute", target, value, owner)
    elif isinstance(target, ast.Subscript):
        owner = reader.evaluate(target.value)
        key = reader.evaluate(target.slice)
        if isinstance(key, Constant):
            reader.set_field(owner, f"[{key.value!r}]", value)
        _store(reader, node or target, "item", target, value, owner)
    elif isinstance(target, ast.Starred):
        bind(reader, target.value, Element(value), node)
    elif isinstance(target, ast.Tuple | ast.List):
        for part, unpacked in zip(target.elts, unpack(reader, value, target.elts), strict=True):
            bind(reader, part, unpacked, node)


def _store(
    reader: Reader,
    node: ast.AST,
    kind: str,
    target: ast.expr,
    value: Value,
    owner: Value | None,
    bound_in: Context | None = None,
) -> None:
    reader.record(
        Store(
            reader.file,
            node,
            reader.context,
            0,
            kind,
            target,
            value,
            owner,
            "",
            bound_in,
        )
    )


def unpack(reader: Reader, value: Value, targets: list[ast.expr]) -> list[Value]:
    """The values of `a, b = value`, one for each target."""
    count = len(targets)
    starred = any(isinstance(target, ast.Starred) for target in targets)
    rows = [
        option.items
        for option in options(value)
        if isinstance(option, Collection)
        and option.kind in ("tuple", "list")
        and len(option.items) == count
    ]
    if rows and not starred:
        columns = [either(*(row[index] for row in rows)) for index in range(count)]
        return [_still_returned(value, column) for column in columns]
    return [item(reader, value, Constant(index)) for index in range(count)]
