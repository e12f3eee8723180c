"""Where in the flow of a program an event happens: the frames around it, outermost first."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pytest_trainloop.source.conditions import claims

if TYPE_CHECKING:
    import ast

    from pytest_trainloop.source.definitions import FunctionFacts, SourceFile
    from pytest_trainloop.source.events import Call
    from pytest_trainloop.source.place import Place
    from pytest_trainloop.source.values import Value


@dataclass(slots=True, eq=False, repr=False)
class Frame:
    """One enclosing construct. Frames compare by identity: one object per time it is entered."""

    file: SourceFile
    node: ast.AST

    def __repr__(self) -> str:
        """Short enough to read while looking for a mistake."""
        return f"<{type(self).__name__} {self.line}>"

    @property
    def place(self) -> Place:
        """Where the construct stands."""
        return self.file.place(self.node)

    @property
    def line(self) -> int:
        """The first line of the construct, counting from 1."""
        return getattr(self.node, "lineno", 1)


@dataclass(slots=True, eq=False, repr=False)
class Loop(Frame):
    """A `for`, a `while`, a comprehension, or an engine that calls a function again and again."""

    kind: Literal["for", "while", "comprehension", "engine"]
    #: What a `for` iterates over, what a `while` tests, what drives the engine.
    source: Value
    #: Names bound anew by each iteration.
    targets: tuple[str, ...] = ()

    @property
    def header(self) -> str:
        """The loop's first line, as written, without a comment at its end."""
        return self.file.lines[self.line - 1].partition("  #")[0].strip()


@dataclass(slots=True, eq=False, repr=False)
class Branch(Frame):
    """One arm of an `if`, a `match` or a conditional expression.

    What follows an `if` whose body always leaves (`continue`, `return`, ...) stands in
    that `if`'s other arm.
    """

    test: Value
    arm: Literal["body", "orelse", "case"]
    #: The arm itself, and what it says of the condition: two places exclude each other if
    #: theirs do not agree.
    claims: dict[Hashable, object] = field(init=False)

    def __post_init__(self) -> None:
        """Work out what the arm says, once."""
        self.claims = {self.node: self.arm}
        if self.arm != "case":
            self.claims.update(claims(self.test, holds=self.arm == "body"))

    def forget_condition(self) -> None:
        """Say no more than which arm it is: what stands in it is also done on other ways."""
        self.claims = {self.node: self.arm}

    @property
    def test_text(self) -> str:
        """The condition, as written."""
        test = getattr(self.node, "test", None) or getattr(self.node, "subject", None)
        return self.file.text_of(test) if test is not None else ""


@dataclass(slots=True, eq=False, repr=False)
class With(Frame):
    """The body of a `with` statement, with the values of its context managers."""

    managers: tuple[Value, ...]


@dataclass(slots=True, eq=False, repr=False)
class Try(Frame):
    """One part of a `try` statement."""

    arm: Literal["body", "handler", "orelse", "finally"]


@dataclass(slots=True, eq=False, repr=False)
class Inside(Frame):
    """The body of a function that was followed from a call.

    `handed` is true where the function was not called in sight but handed to `call`,
    which may call it any number of times, or not at all.
    """

    function: FunctionFacts
    call: Call | None = None
    handed: bool = False


Context = tuple[Frame, ...]


def loops_of(context: Context) -> tuple[Loop, ...]:
    """The loops of a context, outermost first."""
    return tuple(frame for frame in context if isinstance(frame, Loop))


def common(first: Context, second: Context) -> Context:
    """The frames that two contexts share: their longest common beginning."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one is not other:
            break
        count += 1
    return first[:count]


def exclusive(first: Context, second: Context) -> bool:
    """Whether two places exclude each other: different arms of one branch, or of one condition."""
    known = _claimed(first)
    if not known:
        return False
    other = _claimed(second)
    return any(
        known.get(key, claim) != claim and known[key] is not _BOTH and claim is not _BOTH
        for key, claim in other.items()
    )


#: What a place in dead code claims: that a condition holds, and that it does not.
_BOTH = object()


def _claimed(context: Context) -> dict[Hashable, object]:
    found: dict[Hashable, object] = {}
    for frame in context:
        if isinstance(frame, Branch):
            for key, claim in frame.claims.items():
                found[key] = claim if found.get(key, claim) == claim else _BOTH
    return found
