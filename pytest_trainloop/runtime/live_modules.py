"""Find the modules that live in this process: among all objects once, then among the new ones.

Python keeps objects that are new apart from the old, to which a collection of the older
generations moves them. As long as there was none since the last search, a module that is not
known from then is still among the young: a few thousand objects instead of a million or so.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable, Iterator
from itertools import compress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Module

#: The latest versions of Python keep their objects in other generations.
_HAS_YOUNG = sys.version_info < (3, 14)


class _Known:
    """The modules that a search found, held weakly, and when that was."""

    def __init__(self, modules: list[Module], moment: tuple[int, ...] | None) -> None:
        self.refs = [weakref.ref(module) for module in modules]
        self.moment = moment

    def living(self) -> list[Module]:
        return [module for ref in self.refs if (module := ref()) is not None]


_known = _Known([], None)


def live_roots() -> list[Module]:
    """Every module alive that no other module holds."""
    modules = _live_modules()
    held = {id(child) for module in modules for child in children(module)}
    return [module for module in modules if id(module) not in held]


def children(module: Module) -> list[Module]:
    """The modules that a module holds itself."""
    held = module.__dict__.get("_modules")
    return [child for child in (held or {}).values() if child is not None]


def collect_garbage() -> None:
    """Collect garbage, and know what lives without a search of everything afterwards."""
    # They are known, weakly, after this, also if the collection makes them old.
    _live_modules()
    gc.collect()
    _remember(_known.living(), _moment())


def _live_modules() -> list[Module]:
    # Asked before the search: what becomes old in the meantime is searched for again.
    moment = _moment()
    if moment is not None and moment == _known.moment:
        young = [one for age in (0, 1) for one in _modules_among(gc.get_objects(age))]
        found = {id(module): module for module in (*young, *_known.living())}
        if moment == _moment():
            return _remember(list(found.values()), moment)
    return _remember(list(_modules_among(gc.get_objects())), moment)


def _remember(modules: list[Module], moment: tuple[int, ...] | None) -> list[Module]:
    global _known  # noqa: PLW0603  # set at once: what one thread finds is whole for another
    _known = _Known(modules, moment)
    return modules


def _moment() -> tuple[int, ...] | None:
    """What changes when objects become old in any way; None where that cannot be told."""
    if not _HAS_YOUNG:
        return None
    return (*(stat["collections"] for stat in gc.get_stats()[1:]), gc.get_freeze_count())


def _modules_among(objects: list[object]) -> Iterator[Module]:
    # By their types, not by isinstance(): that would wake up lazy proxies among them.
    found: Iterable[Module] = compress(objects, map(_kinds().__contains__, map(type, objects)))  # type: ignore[arg-type]
    return (module for module in found if "_parameters" in module.__dict__)


def _kinds() -> set[type[Module]]:
    """`Module`, and all classes that inherit from it."""
    from torch.nn import Module

    kinds: set[type[Module]] = {Module}
    waiting: list[type[Module]] = [Module]
    while waiting:
        new = [kind for kind in type.__subclasses__(waiting.pop()) if kind not in kinds]
        kinds.update(new)
        waiting += new
    return kinds
