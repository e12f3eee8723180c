"""Reading expressions: what each kind of expression stands for."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_trainloop.source import calls, members
from pytest_trainloop.source.definitions import FunctionFacts
from pytest_trainloop.source.events import Return
from pytest_trainloop.source.frames import Branch, Loop
from pytest_trainloop.source.values import (
    Collection,
    Constant,
    Element,
    Function,
    Imported,
    Operation,
    Unknown,
    Value,
    either,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.reader import Reader

_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.MatMult: "@",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
}


def operator(node: ast.operator) -> str:
    """An arithmetic operator as it is written."""
    return _OPERATORS[type(node)]


def read_constant(_: Reader, node: ast.Constant) -> Value:
    """A literal."""
    return Constant(node.value)


def read_name(reader: Reader, node: ast.Name) -> Value:
    """A name."""
    value = reader.scope.look_up(node.id)
    return reader.linked(value) if isinstance(value, Imported) else value


def read_attribute(reader: Reader, node: ast.Attribute) -> Value:
    """`base.name`."""
    return members.attribute(reader, reader.evaluate(node.value), node.attr)


def read_subscript(reader: Reader, node: ast.Subscript) -> Value:
    """`base[key]`."""
    base = reader.evaluate(node.value)
    return members.item(reader, base, reader.evaluate(node.slice))


def read_slice(reader: Reader, node: ast.Slice) -> Value:
    """`low:high:step` inside a subscript."""
    bounds = (node.lower, node.upper, node.step)
    return Operation(":", tuple(reader.evaluate(bound) for bound in bounds if bound is not None))


def read_binary(reader: Reader, node: ast.BinOp) -> Value:
    """Arithmetic."""
    left = reader.evaluate(node.left)
    return Operation(operator(node.op), (left, reader.evaluate(node.right)))


def read_unary(reader: Reader, node: ast.UnaryOp) -> Value:
    """`-x`, `not x`; a negative literal stays a literal."""
    operand = reader.evaluate(node.operand)
    if isinstance(node.op, ast.USub):
        if isinstance(operand, Constant) and isinstance(operand.value, int | float):
            return Constant(-operand.value)
        return Operation("-", (operand,))
    return Operation("not" if isinstance(node.op, ast.Not) else "+", (operand,))


def read_boolean(reader: Reader, node: ast.BoolOp) -> Value:
    """`a and b`, `a or b`: the value is one of them."""
    name = "and" if isinstance(node.op, ast.And) else "or"
    return Operation(name, tuple(reader.evaluate(value) for value in node.values))


def read_comparison(reader: Reader, node: ast.Compare) -> Value:
    """A comparison; the operator is the class name of the first, in lower case (`eq`)."""
    operands = (reader.evaluate(node.left), *map(reader.evaluate, node.comparators))
    return Operation(type(node.ops[0]).__name__.lower(), operands)


def read_formatted(reader: Reader, node: ast.JoinedStr) -> Value:
    """An f-string: a string, made from its values; read only where it may call something."""
    if not any("(" in text for text in _texts(reader, node)):
        return Operation('f""', ())
    parts = [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
    return Operation('f""', tuple(reader.evaluate(part) for part in parts))


def _texts(reader: Reader, node: ast.JoinedStr) -> list[str]:
    return reader.file.lines[node.lineno - 1 : node.end_lineno]


def read_choice(reader: Reader, node: ast.IfExp) -> Value:
    """`a if test else b`."""
    test = reader.evaluate(node.test)
    with reader.within(Branch(reader.file, node, test, "body")):
        first = reader.evaluate(node.body)
    with reader.within(Branch(reader.file, node, test, "orelse")):
        second = reader.evaluate(node.orelse)
    return either(first, second)


def read_sequence(reader: Reader, node: ast.List | ast.Tuple | ast.Set) -> Value:
    """A list, tuple or set written down."""
    items = tuple(
        Element(reader.evaluate(item.value))
        if isinstance(item, ast.Starred)
        else reader.evaluate(item)
        for item in node.elts
    )
    return Collection(type(node).__name__.lower(), items, context=reader.context)


def read_dict(reader: Reader, node: ast.Dict) -> Value:
    """A dict written down; a `**other` has the key None."""
    keys = tuple(reader.evaluate(key) if key is not None else None for key in node.keys)
    items = tuple(reader.evaluate(value) for value in node.values)
    return Collection("dict", items, keys, reader.context)


def read_comprehension(
    reader: Reader, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
) -> Value:
    """A comprehension: a loop that makes a collection of one representative item."""
    loops = []
    before = reader.context
    for generator in node.generators:
        source = reader.evaluate(generator.iter)
        loop = Loop(reader.file, node, "comprehension", source)
        loops.append(loop)
        reader.context = (*reader.context, loop)
        members.bind(reader, generator.target, members.element(reader, source))
        for test in generator.ifs:
            reader.evaluate(test)
    keys: tuple[Value, ...] = ()
    if isinstance(node, ast.DictComp):
        keys = (reader.evaluate(node.key),)
        item = reader.evaluate(node.value)
    else:
        item = reader.evaluate(node.elt)
    reader.context = before
    return Collection(type(node).__name__.lower(), (item,), keys, before)


def read_lambda(reader: Reader, node: ast.Lambda) -> Value:
    """A function without a name."""
    parent = reader.stack[-1] if reader.stack else None
    return Function(FunctionFacts(reader.file, node, "lambda", None, parent), reader.scope)


def read_walrus(reader: Reader, node: ast.NamedExpr) -> Value:
    """`name := value`."""
    value = reader.evaluate(node.value)
    members.bind(reader, node.target, value, node)
    return value


def read_await(reader: Reader, node: ast.Await | ast.Starred) -> Value:
    """`await x` and `*x`: what they are made from."""
    return reader.evaluate(node.value)


def read_yield(reader: Reader, node: ast.Yield | ast.YieldFrom) -> Value:
    """`yield`: in a context manager that is being followed, the body of its `with`."""
    value = reader.evaluate(node.value) if node.value is not None else Constant(None)
    reader.record(Return(reader.file, node, reader.context, 0, value, "yield"))
    action = reader.at_yield[-1] if reader.at_yield else None
    if action is not None:
        action(value)
    elif reader.returned:
        reader.returned[-1].append(Collection("yield", (value,), context=reader.context))
    return Unknown("")


EXPRESSIONS: dict[type[ast.expr], Callable[[Reader, Any], Value]] = {
    ast.Constant: read_constant,
    ast.Name: read_name,
    ast.Attribute: read_attribute,
    ast.Subscript: read_subscript,
    ast.Slice: read_slice,
    ast.BinOp: read_binary,
    ast.UnaryOp: read_unary,
    ast.BoolOp: read_boolean,
    ast.Compare: read_comparison,
    ast.JoinedStr: read_formatted,
    ast.IfExp: read_choice,
    ast.List: read_sequence,
    ast.Tuple: read_sequence,
    ast.Set: read_sequence,
    ast.Dict: read_dict,
    ast.ListComp: read_comprehension,
    ast.SetComp: read_comprehension,
    ast.GeneratorExp: read_comprehension,
    ast.DictComp: read_comprehension,
    ast.Lambda: read_lambda,
    ast.NamedExpr: read_walrus,
    ast.Await: read_await,
    ast.Starred: read_await,
    ast.Yield: read_yield,
    ast.YieldFrom: read_yield,
    ast.Call: calls.read_call,
}
