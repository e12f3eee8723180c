"""Names and what they are bound to."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_trainloop.source.values import Imported, Unknown, Value, either

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_trainloop.source.definitions import SourceFile
    from pytest_trainloop.source.frames import Context

_BUILTINS = frozenset(dir(builtins))


@dataclass(slots=True)
class Binding:
    """A value and the context in which the name was bound to it outright."""

    value: Value
    context: Context


@dataclass(slots=True, eq=False, repr=False)
class Scope:
    """The names of one function, or of a module; `parent` is the scope it is defined in."""

    file: SourceFile
    parent: Scope | None = None
    names: dict[str, Binding] = field(default_factory=dict)
    #: Names declared `global` or `nonlocal` here, with the scope they live in.
    elsewhere: dict[str, Scope] = field(default_factory=dict)
    #: For an imported module: finds what its text binds and nobody has asked for yet.
    unread: Callable[[str], Binding | None] | None = None

    @property
    def module(self) -> Scope:
        """The outermost scope: the module's."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def find(self, name: str) -> Binding | None:
        """The binding of a name, looked up from here outwards."""
        scope: Scope | None = self.elsewhere.get(name, self)
        while scope is not None:
            binding = scope.names.get(name)
            if binding is None and scope.unread is not None:
                binding = scope.unread(name)
            if binding is not None:
                return binding
            scope = scope.parent
        return None

    def own(self, name: str) -> Binding | None:
        """The binding of a name in this scope itself."""
        binding = self.names.get(name)
        return self.unread(name) if binding is None and self.unread is not None else binding

    def look_up(self, name: str) -> Value:
        """The value of a name; an unbound name stays the same unknown for the whole module."""
        binding = self.find(name)
        if binding is not None:
            return binding.value
        if name in _BUILTINS:
            return Imported(f"builtins.{name}")
        unknown = Unknown(name)
        self.module.names[name] = Binding(unknown, ())
        return unknown

    def bind(self, name: str, value: Value, context: Context) -> None:
        """Bind a name outright."""
        self.elsewhere.get(name, self).names[name] = Binding(value, context)


def merge(first: dict[str, Binding], second: dict[str, Binding]) -> dict[str, Binding]:
    """The names after two ways through the code have met again."""
    merged = dict(first)
    for name, binding in second.items():
        other = merged.get(name)
        if other is binding:
            continue
        if other is None:
            merged[name] = binding
        elif other.value is not binding.value:
            merged[name] = Binding(either(other.value, binding.value), binding.context)
    return merged
