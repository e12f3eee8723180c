"""Reading a program in the order in which it runs, without running it.

A `Reader` walks one entry (a module's body, or a function that nobody in sight calls),
follows the calls it can, and writes down what happens as a `Trace`. Loops are read once,
both arms of a branch are read, values are kept as where they came from.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from pytest_trainloop.source.events import Event, Trace
from pytest_trainloop.source.expressions import EXPRESSIONS
from pytest_trainloop.source.frames import Branch, Context, Frame
from pytest_trainloop.source.scopes import Binding, Scope
from pytest_trainloop.source.statements import STATEMENTS
from pytest_trainloop.source.values import Imported, Unknown, Value, either

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_trainloop.source.definitions import FunctionFacts, SourceFile
    from pytest_trainloop.source.program import Program

#: How much of a program is read from one entry; what lies beyond is not followed.
MOST_EVENTS = 12_000
DEEPEST_CALL = 9


class Reader:
    """The state of one reading: where it stands, and what it has seen."""

    def __init__(self, program: Program, file: SourceFile, entry: FunctionFacts | None) -> None:
        self.program = program
        self.file = file
        self.trace = Trace(file, entry)
        self.context: Context = ()
        self.scope = Scope(file)
        #: Values bound to attributes and items, by the owner's identity and the name.
        self.fields: dict[tuple[int, str], Binding] = {}
        #: Keeps the owners of `fields` alive, so that their identities stay theirs.
        self.owners: list[Value] = []
        self.stack: list[FunctionFacts] = []
        #: What the functions on the stack have returned so far, innermost last.
        self.returned: list[list[Value]] = []
        #: What to do at a `yield` of the context manager being read, innermost last.
        self.at_yield: list[Callable[[Value], None] | None] = []
        #: The same for the function that is about to be entered.
        self.at_yield_pending: Callable[[Value], None] | None = None
        self.most_events = MOST_EVENTS
        #: The expression of the statement being read: a call there throws its result away.
        self.standalone: ast.expr | None = None
        #: Whether the module is read because another one imports it.
        self.is_import = False

    # -- events and frames ------------------------------------------------------------

    def record(self, event: Event) -> None:
        """Write down an event; its index becomes its turn."""
        event.index = len(self.trace.events)
        self.trace.events.append(event)

    @property
    def is_spent(self) -> bool:
        """Whether nothing more should be followed."""
        return len(self.trace.events) > self.most_events or len(self.stack) >= DEEPEST_CALL

    def within(self, *frames: Frame) -> _Within:
        """Read on inside these frames, as a context manager."""
        return _Within(self, frames)

    # -- values -----------------------------------------------------------------------

    def evaluate(self, node: ast.expr) -> Value:
        """Read an expression."""
        reading = EXPRESSIONS.get(type(node))
        return reading(self, node) if reading is not None else Unknown("")

    def linked(self, value: Imported) -> Value:
        """What an imported name stands for in the other linted files.

        A module that is read for its names alone asks no further: each name is looked up
        when somebody needs it, or reading one model would read the whole library.
        """
        if self.is_import or value.path is None:
            return value
        return self.program.linked(value)

    def set_field(self, owner: Value, name: str, value: Value) -> None:
        """Bind an attribute (`name`) or an item (`[key]`) of a value."""
        key = (id(owner), name)
        before = self.fields.get(key)
        conditional = any(isinstance(frame, Branch) for frame in self.context)
        if before is None:
            self.owners.append(owner)
        elif conditional and before.context != self.context:
            value = either(before.value, value)
        self.fields[key] = Binding(value, self.context)

    # -- statements -------------------------------------------------------------------

    def run(self, body: Sequence[ast.stmt]) -> bool:
        """Read statements in order; True if the way through them always leaves the block.

        What follows a branch that always leaves is read inside the branch's other arm.
        """
        before = self.context
        try:
            for statement in body:
                reading = STATEMENTS.get(type(statement))
                if reading is not None and reading(self, statement):
                    return True
        finally:
            self.context = before
        return False


class _Within:
    """Frames entered for a while; a class, because a generator costs five times as much."""

    __slots__ = ("_before", "_frames", "_reader")

    def __init__(self, reader: Reader, frames: tuple[Frame, ...]) -> None:
        self._reader = reader
        self._frames = frames
        self._before: Context = ()

    def __enter__(self) -> None:
        self._before = self._reader.context
        self._reader.context = (*self._before, *self._frames)

    def __exit__(self, *_: object) -> None:
        self._reader.context = self._before
