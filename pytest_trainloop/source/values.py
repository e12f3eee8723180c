"""What is known about the value of an expression, kept as where it came from.

Values are compared by identity: two names hold the same tensor exactly if they hold the
same `Value`. What cannot be known is an `Unknown`, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_trainloop.source.definitions import ClassFacts, FunctionFacts
    from pytest_trainloop.source.events import Call
    from pytest_trainloop.source.frames import Context
    from pytest_trainloop.source.scopes import Scope


@dataclass(slots=True, eq=False, repr=False)
class Value:
    """Anything an expression can stand for."""

    def __repr__(self) -> str:
        """Short enough to read while looking for a mistake."""
        return f"<{type(self).__name__} {spelling(self)}>"

    def parts(self) -> tuple[Value, ...]:
        """The values that this one was made from, one step back."""
        return ()


@dataclass(slots=True, eq=False, repr=False)
class Unknown(Value):
    """A value of which only the spelling is known."""

    spelling: str


@dataclass(slots=True, eq=False, repr=False)
class Parameter(Value):
    """A parameter of a function that was read without its caller."""

    spelling: str
    #: What the annotation names, resolved through the imports; empty without annotation.
    annotation: str = ""
    default: Value | None = None


@dataclass(slots=True, eq=False, repr=False)
class Imported(Value):
    """A module, or what was imported from one, by its full name (`torch.nn.functional`)."""

    qualified: str
    #: The linted file that the module is, if it is one; `member` is the name within it.
    path: str | None = None
    member: str = ""


@dataclass(slots=True, eq=False, repr=False)
class Constant(Value):
    """A literal."""

    value: Any


@dataclass(slots=True, eq=False, repr=False)
class Result(Value):
    """What a call returned."""

    call: Call
    #: The name or attribute that it was bound to first: a hint where nothing better is known.
    bound_to: str = ""

    def parts(self) -> tuple[Value, ...]:
        """The receiver and the arguments."""
        return self.call.inputs


@dataclass(slots=True, eq=False, repr=False)
class Returned(Value):
    """What a followed call returned, as it is known from the function's body."""

    call: Call
    value: Value

    def parts(self) -> tuple[Value, ...]:
        """The value in the function's `return`."""
        return (self.value,)


@dataclass(slots=True, eq=False, repr=False)
class Attribute(Value):
    """An attribute of a value of which no more is known."""

    base: Value
    name: str

    def parts(self) -> tuple[Value, ...]:
        """The object whose attribute it is."""
        return (self.base,)


@dataclass(slots=True, eq=False, repr=False)
class Element(Value):
    """One element of a value: by index, by iteration, or by unpacking.

    `key` is the index; None where iteration chooses.
    """

    base: Value
    key: Value | None = None
    #: The name or attribute that it was bound to first: a hint where nothing better is known.
    bound_to: str = ""

    def parts(self) -> tuple[Value, ...]:
        """What it is an element of."""
        return (self.base,)


@dataclass(slots=True, eq=False, repr=False)
class Operation(Value):
    """Arithmetic, comparison or formatting; `operator` as in Python's source (`/`, `+`, `f""`)."""

    operator: str
    operands: tuple[Value, ...]

    def parts(self) -> tuple[Value, ...]:
        """The operands."""
        return self.operands


@dataclass(slots=True, eq=False, repr=False)
class Collection(Value):
    """A list, tuple, set or dict written down; `keys` only for a dict."""

    kind: str
    items: tuple[Value, ...]
    keys: tuple[Value | None, ...] = ()
    #: Where it was made.
    context: Context = ()

    def parts(self) -> tuple[Value, ...]:
        """The items."""
        return self.items


@dataclass(slots=True, eq=False, repr=False)
class Either(Value):
    """One of several values, depending on the way taken."""

    options: tuple[Value, ...]

    def parts(self) -> tuple[Value, ...]:
        """All that it can be."""
        return self.options


@dataclass(slots=True, eq=False, repr=False)
class Instance(Value):
    """An object of a class whose source is known; `call` made it, or None for a bare `self`."""

    definition: ClassFacts
    call: Call | None
    attributes: dict[str, Value] = field(default_factory=dict)


@dataclass(slots=True, eq=False, repr=False)
class Function(Value):
    """A function whose source is known, with the scope it closes over and the bound `self`."""

    definition: FunctionFacts
    scope: Scope
    receiver: Value | None = None


@dataclass(slots=True, eq=False, repr=False)
class Partial(Value):
    """A known function with some arguments given in advance (`functools.partial`)."""

    function: Value
    args: tuple[Value, ...]
    keywords: dict[str, Value]


@dataclass(slots=True, eq=False, repr=False)
class Class(Value):
    """A class whose source is known."""

    definition: ClassFacts


@dataclass(slots=True, eq=False, repr=False)
class Super(Value):
    """`super()` inside a method of a known class."""

    receiver: Instance
    definition: ClassFacts


def either(*values: Value) -> Value:
    """One of the values; nested alternatives are flattened, doubles dropped."""
    options: list[Value] = []
    for value in values:
        for option in value.options if isinstance(value, Either) else (value,):
            if not any(option is known for known in options):
                options.append(option)
    return options[0] if len(options) == 1 else Either(tuple(options[:8]))


def options(value: Value) -> tuple[Value, ...]:
    """The alternatives of a value, looking through followed calls: at least one."""
    while isinstance(value, Returned):
        value = value.value
    if not isinstance(value, Either):
        return (value,)
    for option in value.options:
        if isinstance(option, _NESTED):
            return tuple(inner for option in value.options for inner in options(option))
    return value.options


#: What has alternatives of its own.
_NESTED = (Either, Returned)


def christen(value: Value, name: str) -> None:
    """Note the name that a value is bound to, if it is what a call gave and has none yet."""
    for option in options(value):
        if isinstance(option, Result | Element) and not option.bound_to:
            option.bound_to = name


def origins(value: Value, limit: int = 400) -> Iterator[Value]:
    """The value and all it was made from, nearest first, each once."""
    seen: set[int] = set()
    queue = [value]
    for current in queue:
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if len(seen) >= limit:
            return
        queue.extend(current.parts())


def spelling(value: Value) -> str:
    """How the value is named where it came from, as far as it has a name."""
    if isinstance(value, Unknown | Parameter):
        return value.spelling
    if isinstance(value, Imported):
        return value.qualified
    if isinstance(value, Attribute):
        return f"{spelling(value.base)}.{value.name}"
    if isinstance(value, Element):
        return spelling(value.base)
    if isinstance(value, Result | Returned):
        return f"{value.call.name}()"
    if isinstance(value, Function | Instance | Class):
        return value.definition.name
    return ""


def constant(value: Value | None) -> Any:
    """The literal that a value stands for, or None (also for the literal None)."""
    return value.value if isinstance(value, Constant) else None
