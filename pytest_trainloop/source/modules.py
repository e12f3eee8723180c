"""The modules of a project that other files import from, each read once for many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pytest_trainloop.source.scopes import Scope

_T = TypeVar("_T")

#: How much source text is kept parsed at most; a syntax tree takes some 30 times as much.
MOST_CHARACTERS = 3_000_000
#: How long a chain of modules and definitions that need each other is followed.
DEEPEST_CHAIN = 8


@dataclass(slots=True, eq=False)
class Loaded:
    """A module's names, how much text is parsed, and the files that reading it has looked at."""

    path: str
    scope: Scope
    characters: int
    consulted: dict[str, str | None] = field(default_factory=dict)
    #: The names that are bound in it, but for those that the scope holds already.
    names: frozenset[str] = frozenset()

    def take_apart(self) -> None:
        """Free the memory now; nothing else can be asked (see `SourceFile.take_apart`)."""
        self.scope.file.take_apart()
        self.scope.names.clear()
        self.scope.unread = None


class Modules:
    """Loaded modules, dropped when they have become too many.

    What a module binds must not depend on who asked first. So a part that was read while
    one that it needs was still being read (they import each other), or too deep in a chain,
    serves that one request and is not kept.
    """

    def __init__(self, account: Callable[[], dict[str, str | None]]) -> None:
        #: Gives the dict in which looked-at files are noted at the moment.
        self._account = account
        self._kept: dict[str, Loaded] = {}
        #: What is being read, outermost first: a module's path and a name in it, or "".
        self._reading: list[tuple[str, str]] = []
        self._partial: set[tuple[str, str]] = set()

    @property
    def is_reading(self) -> bool:
        """Whether some part is being read, so that what is seen now may not be all."""
        return bool(self._reading)

    def get(self, path: str, load: Callable[[str], Loaded | None]) -> Loaded | None:
        """A module, by `load` if it is not known."""
        known = self._kept.get(path)
        if known is None:
            known, consulted, is_whole = self._read((path, ""), lambda: load(path))
            if known is None:
                return None
            known.consulted.update(consulted)
            if is_whole:
                self._kept[path] = known
        self.note(known)
        return known

    def read_part(
        self, module: Loaded, name: str, read: Callable[[], _T]
    ) -> tuple[_T | None, bool]:
        """What `read` gives for a name of a module, and whether it may be kept."""
        found, consulted, is_whole = self._read((module.path, name), read)
        module.consulted.update(consulted)
        self.note(module)
        return found, is_whole

    def note(self, module: Loaded) -> None:
        """Note that a module was looked at, and what it rests on."""
        self._account().update(module.consulted)

    def drop(self) -> bool:
        """Forget the modules if they have become too many; nobody may hold one.

        All at once: they hold what they took from each other, so that one that is dropped
        alone stays in memory.
        """
        is_full = sum(loaded.characters for loaded in self._kept.values()) > MOST_CHARACTERS
        if is_full:
            for loaded in self._kept.values():
                loaded.take_apart()
            self._kept.clear()
        return is_full

    def _read(
        self, what: tuple[str, str], read: Callable[[], _T]
    ) -> tuple[_T | None, dict[str, str | None], bool]:
        if what in self._reading:
            self._partial.update(self._reading[self._reading.index(what) + 1 :])
            return None, {}, False
        if len(self._reading) >= DEEPEST_CHAIN:
            self._partial.update(self._reading)
            return None, {}, False
        account = self._account()
        before = dict(account)
        account.clear()
        self._reading.append(what)
        try:
            found = read()
        finally:
            self._reading.pop()
            consulted = dict(account)
            account.update(before)
        is_whole = what not in self._partial
        self._partial.discard(what)
        return found, consulted, is_whole
