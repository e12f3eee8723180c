"""The modules of a project that other files import from, each read once for many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_trainloop.source.scopes import Scope

#: How much source text is kept parsed at most; a syntax tree takes some 30 times as much.
MOST_CHARACTERS = 3_000_000
#: How long a chain of modules that need each other's names is followed.
DEEPEST_CHAIN = 5


@dataclass(slots=True, eq=False)
class Loaded:
    """A module's names, the size of its text, and the files that reading it has looked at."""

    scope: Scope
    characters: int
    consulted: dict[str, str | None] = field(default_factory=dict)


class Modules:
    """Loaded modules, dropped when they have become too many.

    What a module binds must not depend on who asked first. So a module that was read while
    one that it needs was still being read (they import each other), or too deep in a chain,
    serves that one request and is not kept.
    """

    def __init__(self, account: Callable[[], dict[str, str | None]]) -> None:
        #: Gives the dict in which looked-at files are noted at the moment.
        self._account = account
        self._kept: dict[str, Loaded] = {}
        self._characters = 0
        self._loading: list[str] = []
        self._partial: set[str] = set()

    def get(self, path: str, load: Callable[[str], Loaded | None]) -> Scope | None:
        """The names of a module, by `load` if it is not known."""
        known = self._kept.get(path)
        if known is None:
            known = self._begin(path, load)
            if known is None:
                return None
        self._account().update(known.consulted)
        return known.scope

    def _begin(self, path: str, load: Callable[[str], Loaded | None]) -> Loaded | None:
        if path in self._loading:
            self._partial.update(self._loading[self._loading.index(path) + 1 :])
            return None
        if len(self._loading) >= DEEPEST_CHAIN:
            self._partial.update(self._loading)
            return None
        account = self._account()
        before = dict(account)
        account.clear()
        self._loading.append(path)
        try:
            loaded = load(path)
        finally:
            self._loading.pop()
            consulted = dict(account)
            account.update(before)
        if loaded is None:
            return None
        loaded.consulted = consulted
        if path in self._partial:
            self._partial.discard(path)
        else:
            self._keep(path, loaded)
        return loaded

    def _keep(self, path: str, loaded: Loaded) -> None:
        if self._characters + loaded.characters > MOST_CHARACTERS:
            # All at once: modules hold what they took from each other, so that one that is
            # dropped alone stays in memory.
            self._kept.clear()
            self._characters = 0
        self._kept[path] = loaded
        self._characters += loaded.characters
