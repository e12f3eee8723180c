"""What happens when a program runs, in the order in which it happens."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_trainloop.source.definitions import FunctionFacts, SourceFile
    from pytest_trainloop.source.frames import Context
    from pytest_trainloop.source.place import Place
    from pytest_trainloop.source.values import Value


def dotted(node: ast.expr) -> str:
    """A chain of names as written (`self.optimizer.step`); `()` and `[]` stand for the rest."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{dotted(node.func)}()"
    if isinstance(node, ast.Subscript):
        return f"{dotted(node.value)}[]"
    return ""


@dataclass(slots=True, eq=False, repr=False)
class Event:
    """One thing that happens; `index` is its turn in the trace, `context` the frames around it."""

    file: SourceFile
    node: ast.AST
    context: Context
    index: int

    def __repr__(self) -> str:
        """Short enough to read while looking for a mistake."""
        return f"<{type(self).__name__} {self.line}: {self.text[:60]}>"

    @property
    def place(self) -> Place:
        """Where it stands in the text."""
        return self.file.place(self.node)

    @property
    def line(self) -> int:
        """Its first line, counting from 1."""
        return getattr(self.node, "lineno", 1)

    @property
    def text(self) -> str:
        """Its source text, with runs of white space as one blank."""
        return self.file.text_of(self.node)


@dataclass(slots=True, eq=False, repr=False)
class Call(Event):
    """A call, after its arguments were evaluated."""

    #: The last part of the callee's name: `step`.
    method: str
    #: The callee's full name, resolved through imports (`torch.nn.functional.mse_loss`), or "".
    qualified: str
    callee: Value
    #: What stands before the last dot, or None for a plain name.
    receiver: Value | None
    args: tuple[Value, ...]
    keywords: dict[str, Value]
    #: Whether there is a `*args` or a `**kwargs`, so that there may be more arguments.
    starred: bool = False
    #: Whether the function's body was read, so that its events are in the trace.
    followed: bool = False
    #: Whether the result is thrown away: the call is a statement of its own.
    discarded: bool = False

    @property
    def name(self) -> str:
        """The callee as written: `self.optimizer.step`; `()` and `[]` stand for the rest."""
        return dotted(self.node.func) if isinstance(self.node, ast.Call) else ""

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The receiver, then all arguments."""
        given = (*self.args, *self.keywords.values())
        return given if self.receiver is None else (self.receiver, *given)

    def argument(self, position: int | None, keyword: str = "") -> Value | None:
        """The argument by position (from 0) or by keyword; None if it is not given."""
        if keyword in self.keywords:
            return self.keywords[keyword]
        if position is not None and position < len(self.args):
            return self.args[position]
        return None

    def argument_node(self, position: int | None, keyword: str = "") -> ast.expr | None:
        """The expression of an argument, chosen as in `argument`."""
        if not isinstance(self.node, ast.Call):
            return None
        for given in self.node.keywords:
            if keyword and given.arg == keyword:
                return given.value
        if position is not None and position < len(self.node.args):
            return self.node.args[position]
        return None

    def argument_text(self, position: int | None, keyword: str = "") -> str:
        """The source text of an argument; empty if it is not given."""
        node = self.argument_node(position, keyword)
        return self.file.text_of(node) if node is not None else ""

    def argument_place(self, position: int | None, keyword: str = "") -> Place:
        """Where an argument stands; the call's own place if it is not given."""
        node = self.argument_node(position, keyword)
        return self.file.place(node if node is not None else self.node)

    @property
    def receiver_text(self) -> str:
        """The receiver as written: `self.optimizer` of `self.optimizer.step()`; empty without."""
        func = self.node.func if isinstance(self.node, ast.Call) else None
        return self.file.text_of(func.value) if isinstance(func, ast.Attribute) else ""


@dataclass(slots=True, eq=False, repr=False)
class Store(Event):
    """A value is bound: to a name, an attribute (`owner.name`) or an item (`owner[...]`)."""

    #: `name`, `attribute` or `item`.
    kind: str
    target_node: ast.expr
    value: Value
    owner: Value | None = None
    #: The operator of an augmented assignment (`+`), or "".
    augmented: str = ""
    #: Where the target was last bound outright before this, if that is in sight.
    bound_in: Context | None = None
    #: For an augmented assignment: what the target stands for afterwards.
    total: Value | None = None

    @property
    def target(self) -> str:
        """The target as written."""
        return self.file.text_of(self.target_node)

    @property
    def value_node(self) -> ast.AST:
        """The expression on the right, where there is one."""
        return getattr(self.node, "value", None) or self.node

    @property
    def value_place(self) -> Place:
        """Where the expression on the right stands."""
        return self.file.place(self.value_node)

    @property
    def value_text(self) -> str:
        """The expression on the right, as written."""
        return self.file.text_of(self.value_node)


@dataclass(slots=True, eq=False, repr=False)
class Return(Event):
    """A function returns (or yields) a value; `kind` is `return` or `yield`."""

    value: Value
    kind: str = "return"


@dataclass(slots=True, eq=False, repr=False)
class Bare(Event):
    """An expression other than a call stands as a statement of its own: nothing happens."""

    value: Value


@dataclass(slots=True, eq=False, repr=False)
class Delete(Event):
    """`del target`."""

    target: str
    owner: Value | None


@dataclass(slots=True, eq=False, repr=False)
class Leave(Event):
    """`continue`, `break` or `raise`."""

    kind: str


@dataclass(eq=False, repr=False)
class Trace:
    """All events from one entry: a module's body, or a function nobody in sight calls."""

    file: SourceFile
    entry: FunctionFacts | None
    events: list[Event] = field(default_factory=list)
    #: Whether the budget ran out, so that the end is missing.
    cut: bool = False

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        """The calls, in order."""
        return tuple(event for event in self.events if isinstance(event, Call))

    @cached_property
    def stores(self) -> tuple[Store, ...]:
        """The bindings, in order."""
        return tuple(event for event in self.events if isinstance(event, Store))

    @cached_property
    def returns(self) -> tuple[Return, ...]:
        """The returned and yielded values, in order."""
        return tuple(event for event in self.events if isinstance(event, Return))

    def inside(self, context: Context) -> list[Event]:
        """The events that happen inside a context, in order."""
        depth = len(context)
        last = context[-1] if context else None
        return [
            event
            for event in self.events
            if not depth or (len(event.context) >= depth and event.context[depth - 1] is last)
        ]
