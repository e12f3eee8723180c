"""Reading statements; each reading returns True if the way through it always leaves the block."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_trainloop.source import follow, imports, members
from pytest_trainloop.source.events import Bare, Delete, Leave, Return, Store
from pytest_trainloop.source.expressions import operator
from pytest_trainloop.source.frames import Branch, Loop, Try, With
from pytest_trainloop.source.scopes import merge
from pytest_trainloop.source.values import (
    Attribute,
    Class,
    Constant,
    Function,
    Instance,
    Operation,
    Unknown,
    Value,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.definitions import ClassFacts
    from pytest_trainloop.source.reader import Reader


_BARE = (ast.Attribute, ast.Name, ast.Compare)


def read_expression(reader: Reader, node: ast.Expr) -> bool:
    """An expression that stands alone."""
    reader.standalone = node.value
    value = reader.evaluate(node.value)
    if isinstance(node.value, _BARE):
        reader.record(Bare(reader.file, node, reader.context, 0, value))
    return follow.always_exits(reader, node.value)


def read_assignment(reader: Reader, node: ast.Assign) -> bool:
    """`a = b = value`."""
    value = reader.evaluate(node.value)
    for target in node.targets:
        members.bind(reader, target, value, node)
    return False


def read_annotated(reader: Reader, node: ast.AnnAssign) -> bool:
    """`name: type = value`."""
    if node.value is not None:
        members.bind(reader, node.target, reader.evaluate(node.value), node)
    return False


def read_augmented(reader: Reader, node: ast.AugAssign) -> bool:
    """`total += loss`: the new value is made from the old one; the event holds what is added."""
    owner: Value | None = None
    bound_in = None
    if isinstance(node.target, ast.Name):
        binding = reader.scope.find(node.target.id)
        bound_in = binding.context if binding is not None else None
        before = reader.scope.look_up(node.target.id)
    else:
        before = reader.evaluate(node.target)
        if isinstance(node.target, ast.Attribute):
            owner = reader.evaluate(node.target.value)
            field = reader.fields.get((id(owner), node.target.attr))
            bound_in = field.context if field is not None else None
            if (
                bound_in is None
                and isinstance(owner, Instance)
                and not isinstance(before, Attribute)
            ):
                bound_in = ()  # some other method of the class binds it
    value = reader.evaluate(node.value)
    result = Operation(operator(node.op), (before, value))
    if isinstance(node.target, ast.Name):
        # The outright binding stays where it was: adding to a total does not reset it.
        reader.scope.bind(node.target.id, result, bound_in if bound_in is not None else ())
    elif isinstance(node.target, ast.Attribute) and owner is not None:
        reader.set_field(owner, node.target.attr, result)
        if bound_in is not None:
            reader.fields[id(owner), node.target.attr].context = bound_in
    kinds = {ast.Name: "name", ast.Attribute: "attribute", ast.Subscript: "item"}
    reader.record(
        Store(
            reader.file,
            node,
            reader.context,
            0,
            kinds[type(node.target)],
            node.target,
            value,
            owner,
            operator(node.op),
            bound_in,
            result,
        )
    )
    return False


def read_return(reader: Reader, node: ast.Return) -> bool:
    """`return value`."""
    value = reader.evaluate(node.value) if node.value is not None else Constant(None)
    reader.record(Return(reader.file, node, reader.context, 0, value))
    if reader.returned:
        reader.returned[-1].append(value)
    return True


def read_if(reader: Reader, node: ast.If) -> bool:
    """Both arms are read; what follows an arm that always leaves stands in the other arm."""
    if reader.is_import and _is_main_guard(node.test):
        return False
    test = reader.evaluate(node.test)
    certain = test.value if isinstance(test, Constant) else None
    if certain is not None and isinstance(certain, bool | int):
        return reader.run(node.body if certain else node.orelse)
    names = reader.scope.names
    before = dict(names)
    body = Branch(reader.file, node, test, "body")
    with reader.within(body):
        body_leaves = reader.run(node.body)
    after_body = reader.scope.names
    reader.scope.names = before
    orelse = Branch(reader.file, node, test, "orelse")
    with reader.within(orelse):
        orelse_leaves = reader.run(node.orelse)
    after_orelse = reader.scope.names
    if body_leaves and orelse_leaves:
        return True
    if body_leaves:
        reader.context = (*reader.context, orelse)
    elif orelse_leaves:
        reader.scope.names = after_body
        reader.context = (*reader.context, body)
    else:
        reader.scope.names = merge(after_body, after_orelse)
    return False


def _is_main_guard(test: ast.expr) -> bool:
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.left, ast.Name)
        and test.left.id == "__name__"
    )


def read_for(reader: Reader, node: ast.For | ast.AsyncFor) -> bool:
    """A `for`; the body is read once."""
    source = reader.evaluate(node.iter)
    loop = Loop(reader.file, node, "for", source, tuple(_target_names(node.target)))
    with reader.within(loop):
        members.bind(reader, node.target, follow.next_of(reader, source))
        reader.run(node.body)
    reader.run(node.orelse)
    return False


def read_while(reader: Reader, node: ast.While) -> bool:
    """A `while`; the body is read once. An endless loop without `break` is not left."""
    test = reader.evaluate(node.test)
    loop = Loop(reader.file, node, "while", test)
    with reader.within(loop):
        reader.run(node.body)
    reader.run(node.orelse)
    return False


def _target_names(target: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]


def read_with(reader: Reader, node: ast.With | ast.AsyncWith) -> bool:
    """A `with`; a context manager whose source is in sight is read around the body."""
    return _read_items(reader, node, list(node.items), ())


def _read_items(
    reader: Reader,
    node: ast.With | ast.AsyncWith,
    items: list[ast.withitem],
    managers: tuple[Value, ...],
) -> bool:
    if not items:
        with reader.within(With(reader.file, node, managers)):
            return reader.run(node.body)
    item, *rest = items
    manager = reader.evaluate(item.context_expr)
    leaves: list[bool] = []

    def body(entered: Value) -> None:
        if not leaves:
            if item.optional_vars is not None:
                members.bind(reader, item.optional_vars, entered)
            leaves.append(_read_items(reader, node, rest, (*managers, manager)))

    follow.enter(reader, manager, body)
    return bool(leaves and leaves[0])


def read_try(reader: Reader, node: ast.Try) -> bool:
    """A `try`: the handlers are read as if the body had run."""
    with reader.within(Try(reader.file, node, "body")):
        leaves = reader.run(node.body)
    if not leaves:
        with reader.within(Try(reader.file, node, "orelse")):
            leaves = reader.run(node.orelse)
    after = dict(reader.scope.names)
    for handler in node.handlers:
        if handler.name:
            reader.scope.bind(handler.name, Unknown(handler.name), reader.context)
        with reader.within(Try(reader.file, node, "handler")):
            handler_leaves = reader.run(handler.body)
        if handler_leaves:
            reader.scope.names = dict(after)
        else:
            leaves = False
            after = merge(after, reader.scope.names)
            reader.scope.names = dict(after)
    with reader.within(Try(reader.file, node, "finally")):
        return reader.run(node.finalbody) or leaves


def read_match(reader: Reader, node: ast.Match) -> bool:
    """A `match`: each case is one arm."""
    subject = reader.evaluate(node.subject)
    before = dict(reader.scope.names)
    after = before
    for case in node.cases:
        reader.scope.names = dict(before)
        with reader.within(Branch(reader.file, case, subject, "case")):
            if not reader.run(case.body):
                after = merge(after, reader.scope.names)
    reader.scope.names = after
    return False


def read_function(reader: Reader, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A function is bound to its name; its body is read when it is called."""
    for default in (*node.args.defaults, *node.args.kw_defaults):
        if default is not None:
            reader.evaluate(default)
    definition = reader.file.function_at(node)
    if definition is not None:
        reader.scope.bind(node.name, Function(definition, reader.scope), reader.context)
    return False


def read_class(reader: Reader, node: ast.ClassDef) -> bool:
    """A class is bound to its name; its bases become known."""
    definition = reader.file.class_at(node)
    if definition is not None:
        definition.bases = tuple(reader.evaluate(base) for base in node.bases)
        definition.scope = reader.scope
        definition.link = reader.program.linked
        definition.is_settled = reader.program.is_settled
        _read_class_body(reader, definition)
        reader.scope.bind(node.name, Class(definition), reader.context)
    return False


def _read_class_body(reader: Reader, definition: ClassFacts) -> None:
    owner = Class(definition)
    for statement in definition.node.body:
        if isinstance(statement, ast.Assign):
            value = reader.evaluate(statement.value)
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    definition.class_values[target.id] = value
                    reader.set_field(owner, target.id, value)
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if statement.value is not None:
                definition.class_values[statement.target.id] = reader.evaluate(statement.value)
        elif isinstance(statement, ast.ClassDef):
            read_class(reader, statement)


def read_global(reader: Reader, node: ast.Global | ast.Nonlocal) -> bool:
    """Names that live in an outer scope."""
    for name in node.names:
        scope = reader.scope.module
        if isinstance(node, ast.Nonlocal):
            outer = reader.scope.parent
            while outer is not None and name not in outer.names:
                outer = outer.parent
            scope = outer or scope
        reader.scope.elsewhere[name] = scope
    return False


def read_delete(reader: Reader, node: ast.Delete) -> bool:
    """`del target`."""
    for target in node.targets:
        owner = reader.evaluate(target.value) if isinstance(target, ast.Attribute) else None
        text = reader.file.text_of(target)
        reader.record(Delete(reader.file, target, reader.context, 0, text, owner))
        if isinstance(target, ast.Name):
            reader.scope.bind(target.id, Unknown(target.id), reader.context)
    return False


def read_leaving(reader: Reader, node: ast.Continue | ast.Break | ast.Raise) -> bool:
    """`continue`, `break`, `raise`."""
    # What is raised is not read: an error message computes nothing that trains.
    kind = type(node).__name__.lower()
    reader.record(Leave(reader.file, node, reader.context, 0, kind))
    return True


def read_assert(reader: Reader, node: ast.Assert) -> bool:
    """`assert test`."""
    reader.evaluate(node.test)
    return False


def _read_import(reader: Reader, node: ast.Import | ast.ImportFrom) -> bool:
    imports.read_import(reader, node)
    return False


STATEMENTS: dict[type[ast.stmt], Callable[[Reader, Any], bool]] = {
    ast.Expr: read_expression,
    ast.Assign: read_assignment,
    ast.AnnAssign: read_annotated,
    ast.AugAssign: read_augmented,
    ast.Return: read_return,
    ast.If: read_if,
    ast.For: read_for,
    ast.AsyncFor: read_for,
    ast.While: read_while,
    ast.With: read_with,
    ast.AsyncWith: read_with,
    ast.Try: read_try,
    ast.Match: read_match,
    ast.FunctionDef: read_function,
    ast.AsyncFunctionDef: read_function,
    ast.ClassDef: read_class,
    ast.Global: read_global,
    ast.Nonlocal: read_global,
    ast.Delete: read_delete,
    ast.Continue: read_leaving,
    ast.Break: read_leaving,
    ast.Raise: read_leaving,
    ast.Assert: read_assert,
    ast.Import: _read_import,
    ast.ImportFrom: _read_import,
}
if hasattr(ast, "TryStar"):  # Python 3.11 and later
    STATEMENTS[ast.TryStar] = read_try
