"""A file and what it imports from other linted files: definitions by name, modules by path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trainloop.source import follow
from pytest_trainloop.source.frames import Inside
from pytest_trainloop.source.imported_module import read_module
from pytest_trainloop.source.reader import Reader
from pytest_trainloop.source.scopes import Binding, Scope
from pytest_trainloop.source.values import (
    Class,
    Constant,
    Function,
    Imported,
    Instance,
    Parameter,
    Value,
    either,
)

if TYPE_CHECKING:
    from pytest_trainloop.source.definitions import ClassFacts, FunctionFacts, SourceFile
    from pytest_trainloop.source.modules import Loaded
    from pytest_trainloop.source.tree import SourceTree

#: How many other modules are asked for names on behalf of one.
MOST_MODULES = 16
#: The longest other file, in characters, whose base classes are read for what they assign:
#: a library's base class is inherited by hundreds, and would be read for each.
LARGEST_BASE = 60_000
#: How much is read of a method only to learn what it assigns.
MOST_EVENTS_ASIDE = 600

_LINKABLE = (Function, Class, Instance, Constant, Imported)


class Program:
    """One linted file with the definitions it can reach in the other linted files."""

    def __init__(
        self, tree: SourceTree | None = None, rests_on: dict[str, str | None] | None = None
    ) -> None:
        self.tree = tree
        #: Where the files are noted that an imported module's names rest on.
        self._rests_on = rests_on
        #: Functions whose bodies have been read in some context.
        self.read: set[FunctionFacts] = set()
        #: The linted modules that were asked for names.
        self._asked: set[str] = set()
        #: Long functions that were followed once, and in which nothing that trains was met.
        self.dull: set[FunctionFacts] = set()
        #: What imported names stand for, once that is found.
        self._links: dict[tuple[str | None, str], Value] = {}
        self._instances: dict[ClassFacts, Instance] = {}
        #: The attributes of an object after one of its methods was read on its own.
        self._fields: dict[tuple[int, FunctionFacts], dict[str, Value]] = {}
        self._alive: list[Instance] = []

    # -- other files ------------------------------------------------------------------

    def locate(self, file: SourceFile, module: str) -> str | None:
        """The linted file that a module name means in `file`."""
        return self.tree.find(module, file.path) if self.tree is not None else None

    def imported(self, file: SourceFile, module: str, name: str) -> Imported:
        """What `from module import name` binds."""
        qualified = _joined(module, name)
        path = self.locate(file, qualified)
        if path is not None:
            return Imported(qualified, path)
        return Imported(qualified, self.locate(file, module), name)

    def bind_star(self, reader: Reader, module: str) -> None:
        """`from module import *`: the names of a linted module."""
        path = self.locate(reader.file, module)
        loaded = self._module(path) if path is not None else None
        if loaded is None:
            return
        for name, binding in loaded.scope.names.items():
            if not name.startswith("_"):
                reader.scope.bind(name, binding.value, reader.context)
        for name in sorted(loaded.names):
            if not name.startswith("_"):
                value = Imported(_joined(module, name), path, name)
                reader.scope.bind(name, value, reader.context)

    def linked(self, value: Value) -> Value:
        """What an imported name stands for, where the linted files define it.

        Packages re-export names of their own modules, in circles too: each is asked once.
        """
        known = self._links.get((value.path, value.member)) if isinstance(value, Imported) else None
        if known is not None:
            return known
        found = value
        asked: set[tuple[str, str]] = set()
        while isinstance(found, Imported) and found.path is not None and found.member:
            if (found.path, found.member) in asked:
                return value
            asked.add((found.path, found.member))
            loaded = self._module(found.path)
            binding = loaded.scope.own(found.member) if loaded is not None else None
            if binding is None:
                return found
            found = binding.value
        if not isinstance(found, _LINKABLE):
            return value
        if isinstance(value, Imported) and not isinstance(found, Imported):
            self._links[value.path, value.member] = found
        return found

    def member_of(self, base: Imported, name: str) -> Imported:
        """`module.name`, where the module may be a linted file."""
        qualified = f"{base.qualified}.{name}"
        if base.path is None or base.member or self.tree is None:
            return Imported(qualified)
        path = self.tree.find(qualified, base.path) if base.path.endswith("__init__.py") else None
        return Imported(qualified, path) if path else Imported(qualified, base.path, name)

    def _module(self, path: str) -> Loaded | None:
        """A linted module; None if it cannot be read, or is one too many."""
        if self.tree is None:
            return None
        if path not in self._asked:
            if len(self._asked) >= MOST_MODULES:
                return None
            self._asked.add(path)
        loaded = self.tree.modules.get(path, self._load)
        if loaded is not None and self._rests_on is not None:
            self._rests_on.update(loaded.consulted)
        return loaded

    def is_settled(self) -> bool:
        """Whether what imported names stand for will not change any more."""
        return self.tree is None or not self.tree.modules.is_reading

    def _load(self, path: str) -> Loaded | None:
        """Read a module, as an import runs it, for the names that it binds."""
        tree = self.tree
        if tree is None:
            return None
        rests_on: dict[str, str | None] = {}
        try:
            text = tree.source(path)
            return read_module(path, text, lambda: Program(tree, rests_on), tree.modules, rests_on)
        except (OSError, SyntaxError, ValueError, RecursionError):
            return None

    # -- objects ----------------------------------------------------------------------

    def call(self, reader: Reader, function: Function) -> Value | None:
        """Follow a call without arguments, for a property."""
        return follow.function(reader, function, (), {}, None)

    def instance_of(self, definition: ClassFacts) -> Instance:
        """The one object that stands for `self` where nobody in sight makes one."""
        if definition not in self._instances:
            self._instances[definition] = Instance(definition, None)
        return self._instances[definition]

    def assigned_attribute(self, reader: Reader, instance: Instance, name: str) -> Value | None:
        """An attribute that some method of the object's class assigns, read on its own."""
        found: list[Value] = []
        home = instance.definition.file
        for method in instance.definition.methods_assigning(name):
            if method.file is not home and len(method.file.text) > LARGEST_BASE:
                continue
            if method not in reader.stack:
                value = self._fields_after(reader, instance, method).get(name)
                if value is not None:
                    found.append(value)
        return either(*found) if found else instance.definition.class_value(name)

    def _fields_after(
        self, reader: Reader, instance: Instance, method: FunctionFacts
    ) -> dict[str, Value]:
        """The attributes of an object after one of its methods ran with unknown arguments."""
        key = (id(instance), method)
        if key not in self._fields:
            self._fields[key] = {}
            self._alive.append(instance)
            parent = method.owner.scope if method.owner is not None else None
            if parent is None or not method.parameters:
                return {}
            aside = Reader(self, method.file, method)
            aside.most_events = MOST_EVENTS_ASIDE
            aside.stack = list(reader.stack)
            read = set(self.read)
            scope = entry_scope(method, parent, instance)
            follow.body(aside, method, scope, Inside(method.file, method.node, method))
            self.read = read
            self._fields[key] = {
                name: binding.value
                for (owner, name), binding in aside.fields.items()
                if owner == id(instance) and not name.startswith("[")
            }
        return self._fields[key]


def entry_scope(function: FunctionFacts, parent: Scope, receiver: Instance | None) -> Scope:
    """The scope of a function that is read without a caller."""
    scope = Scope(function.file, parent)
    node = function.node.args
    for position, arg in enumerate((*node.posonlyargs, *node.args, *node.kwonlyargs)):
        value: Value = Parameter(arg.arg, follow.annotation(scope, arg.annotation))
        if position == 0 and receiver is not None:
            value = receiver
        scope.names[arg.arg] = Binding(value, ())
    return scope


def _joined(module: str, name: str) -> str:
    return f"{module}{name}" if module.endswith(".") else f"{module}.{name}"
