"""Following calls into the bodies of functions whose source is in sight."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_trainloop.source import members
from pytest_trainloop.source.dullness import is_dull
from pytest_trainloop.source.events import Call
from pytest_trainloop.source.frames import Branch, Inside
from pytest_trainloop.source.imports import canonical
from pytest_trainloop.source.scopes import Scope
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
    Parameter,
    Partial,
    Result,
    Returned,
    Unknown,
    Value,
    either,
    options,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.definitions import FunctionFacts, SourceFile
    from pytest_trainloop.source.reader import Reader

#: How many functions a call may mean for each of them to be followed.
MOST_CALLEES = 3

#: How many calls in a row are followed in other files than the one being linted.
MOST_FOREIGN_CALLS = 3
#: How many modules' methods of a name are followed into each other.
_DEEPEST_NESTING = {"forward": 2, "__init__": 1}

_EXITS = frozenset({"sys.exit", "builtins.exit", "builtins.quit", "os._exit"})


#: Values that tell nothing of a body; together, because a union is made anew at each question.
_OUT_OF_SIGHT = (Imported, Attribute, Unknown, Parameter, Result)


def always_exits(reader: Reader, node: ast.expr) -> bool:
    """Whether an expression statement ends the program."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
        return False
    last = reader.trace.events[-1] if reader.trace.events else None
    return isinstance(last, Call) and last.node is node and last.qualified in _EXITS


def into(reader: Reader, call: Call) -> Value | None:
    """Follow a call; None where the callee is out of sight or its result is not known."""
    callee = call.callee
    if isinstance(callee, _OUT_OF_SIGHT):
        return None
    if isinstance(callee, Either):
        known = [option for option in options(callee) if isinstance(option, Function | Instance)]
        if len(known) != len(options(callee)) or len(known) > MOST_CALLEES:
            return None
        return _into_each(reader, call, known)
    for option in options(callee):
        return _into_one(reader, call, option)
    return None


def _into_each(reader: Reader, call: Call, callees: list[Function | Instance]) -> Value | None:
    values = []
    for number, option in enumerate(callees):
        arm = Branch(reader.file, call.node, Unknown(""), "body" if number == 0 else "orelse")
        with reader.within(arm):
            values.append(_into_one(reader, call, option) or Result(call))
    return either(*values)


def _into_one(reader: Reader, call: Call, callee: Value) -> Value | None:
    if isinstance(callee, Partial):
        keywords = {**callee.keywords, **call.keywords}
        if isinstance(callee.function, Function):
            return function(reader, callee.function, (*callee.args, *call.args), keywords, call)
        if isinstance(callee.function, Class):
            return _construct(reader, call, callee.function, (*callee.args, *call.args), keywords)
        return None
    if isinstance(callee, Function):
        return function(reader, callee, call.args, call.keywords, call)
    if isinstance(callee, Class):
        return _construct(reader, call, callee, call.args, call.keywords)
    if isinstance(callee, Instance):
        for name in ("__call__", "forward"):
            bound = members.attribute(reader, callee, name)
            if isinstance(bound, Function):
                return function(reader, bound, call.args, call.keywords, call)
    return None


def _construct(
    reader: Reader,
    call: Call,
    callee: Class,
    args: tuple[Value, ...],
    keywords: dict[str, Value],
) -> Value:
    constructor = callee.definition.method("__init__")
    if constructor is not None and _is_nested_module(reader, constructor):
        # One object stands for all of its kind, so that what it holds is looked up once.
        call.followed = True
        return Returned(call, reader.program.instance_of(callee.definition))
    instance = Instance(callee.definition, call)
    initializer = members.attribute(reader, instance, "__init__")
    if isinstance(initializer, Function):
        function(reader, initializer, args, keywords, call)
    call.followed = True
    return Returned(call, instance)


def function(
    reader: Reader,
    callee: Function,
    args: tuple[Value, ...],
    keywords: dict[str, Value],
    call: Call | None,
    *,
    handed: bool = False,
) -> Value | None:
    """Read a function's body as called from here; None if it is not read.

    A function that is in sight but holds nothing of interest is not read; the call still
    counts as followed, because it can do no harm.
    """
    definition = callee.definition
    recursive = definition in reader.stack
    harmless = (
        not definition.is_interesting
        or definition in reader.program.dull
        or _is_nested_module(reader, definition)
    )
    if call is not None and not handed and (recursive or harmless):
        call.followed = True
    if recursive or harmless or reader.is_spent or _is_far_away(reader, definition):
        return None
    if definition.is_generator and not handed and not reader.at_yield_pending:
        if call is not None:
            call.followed = True
        return None
    scope = Scope(definition.file, callee.scope)
    reader.program.read.add(definition)
    given_all = call is not None and not handed
    spread = call is not None and _spreads(call)
    _bind_parameters(reader, scope, callee, args, keywords, given_all=given_all, spread=spread)
    frame = Inside(definition.file, definition.node, definition, call, handed)
    first = len(reader.trace.events)
    value = body(reader, definition, scope, frame)
    if is_dull(reader.trace.events[first:]):
        reader.program.dull.add(definition)
    if call is not None and not handed:
        call.followed = True
        return Returned(call, value)
    return value


def _is_far_away(reader: Reader, definition: FunctionFacts) -> bool:
    """Whether it lies too deep in other files than the one that is being linted.

    What a training loop leaves to a helper of another file is done there or one call
    further; behind that begins a library's own plumbing. Such a call is not followed, so
    that it may do anything.
    """
    home = reader.trace.file
    if definition.file is home:
        return False
    if any(_is_left_to_itself(function, home) for function in reader.stack):
        return True
    return sum(function.file is not home for function in reader.stack) >= MOST_FOREIGN_CALLS


def _is_left_to_itself(function: FunctionFacts, home: SourceFile) -> bool:
    """Whether it is a constructor of a module, or of another file.

    What a constructor keeps is looked up when somebody asks for it.
    """
    owner = function.owner
    if function.name != "__init__" or owner is None:
        return False
    return function.file is not home or owner.is_module


def _is_nested_module(reader: Reader, definition: FunctionFacts) -> bool:
    """Whether it is a module's method deep inside the same method of other modules.

    A network is built of networks. What trains it sees the outermost, and the layers that
    give its output; the inside of the inside changes nothing and is most of the work. What
    a constructor that is not followed assigns is looked up when somebody asks for it.
    """
    deepest = _DEEPEST_NESTING.get(definition.name)
    if deepest is None or definition.owner is None or not definition.owner.is_module:
        return False
    around = [
        function
        for function in reader.stack
        if function.name == definition.name and function.owner and function.owner.is_module
    ]
    return len(around) >= deepest


def body(reader: Reader, definition: FunctionFacts, scope: Scope, frame: Inside) -> Value:
    """Read a function's body in a scope of its own; what it returns."""
    caller = reader.file, reader.scope
    pending, reader.at_yield_pending = reader.at_yield_pending, None
    reader.file, reader.scope = definition.file, scope
    reader.stack.append(definition)
    reader.returned.append([])
    reader.at_yield.append(pending)
    try:
        with reader.within(frame):
            if isinstance(definition.node, ast.Lambda):
                reader.returned[-1].append(reader.evaluate(definition.node.body))
            else:
                reader.run(definition.node.body)
    finally:
        reader.at_yield.pop()
        returned = reader.returned.pop()
        reader.stack.pop()
        reader.file, reader.scope = caller
    return either(*returned) if returned else Constant(None)


def _spreads(call: Call) -> bool:
    """Whether the call has a `*args`, so that positions do not tell which argument is which."""
    return isinstance(call.node, ast.Call) and any(
        isinstance(arg, ast.Starred) for arg in call.node.args
    )


def _bind_parameters(
    reader: Reader,
    scope: Scope,
    callee: Function,
    args: tuple[Value, ...],
    keywords: dict[str, Value],
    *,
    given_all: bool,
    spread: bool,
) -> None:
    parameters = callee.definition.node.args
    names = [*parameters.posonlyargs, *parameters.args]
    values = list(args) if callee.receiver is None else [callee.receiver, *args]
    defaults = dict(
        zip([arg.arg for arg in reversed(names)], reversed(parameters.defaults), strict=False)
    )
    defaults |= {
        arg.arg: default
        for arg, default in zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True)
        if default is not None
    }
    for position, arg in enumerate([*names, *parameters.kwonlyargs]):
        if arg.arg in keywords:
            value = keywords[arg.arg]
        elif position < min(len(values), len(names)) and not (spread and position):
            value = values[position]
        else:
            default = defaults.get(arg.arg)
            value = _left_out(
                scope,
                arg,
                default,
                certain=given_all and not spread and "**" not in keywords,
            )
        scope.bind(arg.arg, value, reader.context)
    if parameters.vararg is not None:
        rest = tuple(values[len(names) :])
        packed: Value = (
            Collection("tuple", rest)
            if given_all and not spread
            else Unknown(parameters.vararg.arg)
        )
        scope.bind(parameters.vararg.arg, packed, reader.context)
    if parameters.kwarg is not None:
        scope.bind(parameters.kwarg.arg, Unknown(parameters.kwarg.arg), reader.context)


def _left_out(scope: Scope, arg: ast.arg, default: ast.expr | None, *, certain: bool) -> Value:
    """The value of a parameter that the call in sight does not give, or that has no call."""
    value = Constant(default.value) if isinstance(default, ast.Constant) else None
    if certain and value is not None:
        return value
    return Parameter(arg.arg, annotation(scope, arg.annotation), value)


def annotation(scope: Scope, node: ast.expr | None) -> str:
    """The full name of an annotation that is a plain (dotted) name; else empty."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            node = ast.parse(node.value, mode="eval").body
        except SyntaxError:
            return ""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    binding = scope.find(node.id)
    if binding is not None and isinstance(binding.value, Class):
        names = [base for base in binding.value.definition.ancestors() if isinstance(base, str)]
        return canonical(names[0]) if names else ""
    base = binding.value if binding is not None else None
    root = base.qualified if isinstance(base, Imported) else node.id
    return canonical(".".join([root, *reversed(parts)]))


def next_of(reader: Reader, source: Value) -> Value:
    """What a `for` binds at each turn; a generator in sight is read here, inside the loop."""
    for option in options(source):
        if isinstance(option, Result):
            callee = option.call.callee
            if isinstance(callee, Function) and callee.definition.is_generator:
                return _read_generator(reader, option.call, callee)
    return members.element(reader, source)


def _read_generator(reader: Reader, call: Call, callee: Function) -> Value:
    definition = callee.definition
    if definition in reader.stack or reader.is_spent or not definition.is_interesting:
        return Element(Result(call))
    scope = Scope(definition.file, callee.scope)
    reader.program.read.add(definition)
    _bind_parameters(
        reader, scope, callee, call.args, call.keywords, given_all=True, spread=_spreads(call)
    )
    value = body(
        reader, definition, scope, Inside(definition.file, definition.node, definition, call)
    )
    yielded = [
        option.items[0]
        for option in options(value)
        if isinstance(option, Collection) and option.kind == "yield"
    ]
    return either(*yielded) if yielded else Element(Result(call))


def enter(reader: Reader, manager: Value, action: Callable[[Value], None]) -> None:
    """Read `action`, the body of a `with`, inside a context manager."""
    for option in options(manager):
        if isinstance(option, Result) and isinstance(option.call.callee, Function):
            callee = option.call.callee
            if callee.definition.is_generator and callee.definition.is_interesting:
                _enter_generator(reader, option.call, callee, action)
                return
        if isinstance(option, Instance) and option.definition.method("__enter__"):
            _call_method(reader, option, "__enter__")
            action(option)
            _call_method(reader, option, "__exit__")
            return
    action(manager)


def _enter_generator(
    reader: Reader, call: Call, callee: Function, action: Callable[[Value], None]
) -> None:
    caller = reader.file, reader.scope
    depth = len(reader.context)
    done: list[bool] = []

    def at_yield(value: Value) -> None:
        inner = reader.file, reader.scope
        reader.file, reader.scope = caller
        reader.at_yield.append(None)
        done.append(True)
        for frame in reader.context[depth:]:
            if isinstance(frame, Branch):
                frame.forget_condition()
        try:
            action(value)
        finally:
            reader.at_yield.pop()
            reader.file, reader.scope = inner

    reader.at_yield_pending = at_yield
    function(reader, callee, call.args, call.keywords, call)
    reader.at_yield_pending = None
    if not done:
        action(Result(call))


def _call_method(reader: Reader, instance: Instance, name: str) -> None:
    bound = members.attribute(reader, instance, name)
    if isinstance(bound, Function):
        function(reader, bound, (), {}, None)
