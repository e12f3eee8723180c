"""A module that others import from: only the names that somebody asks for are read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pytest_trainloop.source.definitions import SourceFile
from pytest_trainloop.source.modules import Loaded
from pytest_trainloop.source.reader import Reader
from pytest_trainloop.source.scopes import Binding, Scope
from pytest_trainloop.source.sections import Section, cut

if TYPE_CHECKING:
    import ast
    from collections.abc import Callable

    from pytest_trainloop.source.modules import Modules
    from pytest_trainloop.source.program import Program

_BARE_RETURN = re.compile(r"\r(?!\n)")


def read_module(
    path: str,
    text: str,
    program: Callable[[], Program],
    modules: Modules,
    consulted: dict[str, str | None],
) -> Loaded:
    """Read what a module's body does as it is imported, and let its definitions wait.

    Args:
        path: the module's file.
        text: its content.
        program: makes a new program for each part that is read, so that what one part asks
            other modules for does not depend on which others were read before.
        modules: keeps what is read.
        consulted: where the program notes the files that it looks at.

    Raises:
        SyntaxError: it is not Python.
    """
    sections = None if _BARE_RETURN.search(text) else cut(text)
    if sections is not None and sections.named:
        try:
            rest = SourceFile.parse(path, text, sections.rest)
        except SyntaxError:
            pass  # cut in a wrong place, unless the whole is wrong
        else:
            module = ImportedModule(rest, sections.named, program, modules, consulted)
            if module.run_rest():
                return module.loaded
    file = SourceFile.parse(path, text)
    scope = Scope(file)
    _run(program(), scope, file.tree.body)
    return Loaded(path, scope, len(text), consulted)


class ImportedModule:
    """The names that a module binds, each read when it is first asked for."""

    def __init__(
        self,
        file: SourceFile,
        named: dict[str, list[Section]],
        program: Callable[[], Program],
        modules: Modules,
        consulted: dict[str, str | None],
    ) -> None:
        self._file = file
        self._named = named
        self._program = program
        self._modules = modules
        self._found: dict[str, Binding | None] = {}
        self._reading: set[str] = set()
        scope = Scope(file, unread=self.find)
        size = len(file.text) - sum(len(s.text) for parts in named.values() for s in parts)
        self.loaded = Loaded(file.path, scope, size, consulted, frozenset(named))

    def run_rest(self) -> bool:
        """Run what is not a definition; False if that binds a name that a definition binds too."""
        scope = self.loaded.scope
        _run(self._program(), scope, self._file.tree.body)
        # It is not read again, and the module is kept for many.
        self._file.tree.body.clear()
        return self._named.keys().isdisjoint(scope.names)

    def find(self, name: str) -> Binding | None:
        """What a name is bound to by its own statements; None if there are none."""
        if name in self._found:
            self._modules.note(self.loaded)
            return self._found[name]
        sections = self._named.get(name)
        if sections is None or name in self._reading:
            return None
        self._reading.add(name)
        try:
            binding, is_whole = self._modules.read_part(
                self.loaded, name, lambda: self._read(name, sections)
            )
        finally:
            self._reading.discard(name)
        if is_whole:
            self._found[name] = binding
        return binding

    def _read(self, name: str, sections: list[Section]) -> Binding | None:
        scope = self.loaded.scope
        try:
            for section in sections:
                statements = section.parsed()
                self._file.outline(statements)
                _run(self._program(), scope, statements)
        except (SyntaxError, RecursionError, ValueError):
            pass  # the text was cut in a wrong place, or is not Python: nothing is known
        self.loaded.characters += sum(len(section.text) for section in sections)
        return scope.names.pop(name, None)


def _run(program: Program, scope: Scope, statements: list[ast.stmt]) -> None:
    reader = Reader(program, scope.file, None)
    reader.scope = scope
    reader.is_import = True
    reader.run(statements)
