"""Which rules a run applies, by the names that its user chose."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_trainloop.rules import Rule

#: What a run reports about suppressions that suppress nothing; selected like a rule.
UNUSED_SUPPRESSION = "unused-suppression"
EVERYTHING = "ALL"


class UnknownNameError(ValueError):
    """A name that is neither a rule nor a family."""


@dataclass(frozen=True)
class Selection:
    """Names of rules and families, as chosen in the configuration and on the command line.

    The more specific name decides: a rule over its family, a family over `ALL`; at the
    same level `ignore` does.
    """

    #: None: the rules that are on by default.
    select: tuple[str, ...] | None = None
    extend_select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """All the names that were chosen."""
        return (*(self.select or ()), *self.extend_select, *self.ignore)

    def rules(self, known: Mapping[str, Rule]) -> dict[str, Rule]:
        """The chosen ones among the rules that can be seen in source.

        Raises:
            UnknownNameError: a rule was chosen by name that only a watched run can show.
        """
        for name in (*(self.select or ()), *self.extend_select):
            if name in known and not known[name].sees_source():
                raise UnknownNameError(
                    f"`{name}` cannot be seen in source; a run shows it: pytest -p trainloop"
                )
        return {
            name: rule
            for name, rule in known.items()
            if rule.sees_source() and self._takes(name, rule.family, default=rule.default)
        }

    def reports_unused(self) -> bool:
        """Whether suppressions that suppress nothing are reported."""
        return self._takes(UNUSED_SUPPRESSION, "", default=True)

    def covers_defaults(self) -> bool:
        """Whether every rule that is on by default is applied."""
        return not self.ignore and (self.select is None or EVERYTHING in self.select)

    def _takes(self, name: str, family: str, *, default: bool) -> bool:
        added = _levels(self.extend_select, name, family)
        if self.select is not None:
            added += _levels(self.select, name, family)
        elif default:
            added.append(0)
        removed = _levels(self.ignore, name, family)
        return bool(added) and max(added) > max(removed, default=-1)


def _levels(names: Iterable[str], name: str, family: str) -> list[int]:
    levels = {EVERYTHING: 0, family: 1, name: 2}
    return [levels[chosen] for chosen in names if chosen in levels]


@cache
def rule_families() -> dict[str, str]:
    """The family of each rule by its name, read off the file names.

    A rule is named after its file, so nothing has to be imported to know the names: a
    run that finds all it needs in the cache loads no rule.
    """
    import pytest_trainloop

    found: dict[str, str] = {}
    for family in os.scandir(os.path.join(os.path.dirname(pytest_trainloop.__file__), "rules")):
        if not family.name.startswith("_") and family.is_dir():
            for name in os.listdir(family.path):
                if name.endswith(".py") and not name.startswith("_"):
                    found[name.removesuffix(".py").replace("_", "-")] = family.name
    return dict(sorted(found.items()))


def check_names(names: Iterable[str], where: str) -> None:
    """Refuse names that are neither rules nor families.

    Raises:
        UnknownNameError: its message says `where` the name stands, and what may be meant.
    """
    families = rule_families()
    known = {*families, *families.values(), EVERYTHING, UNUSED_SUPPRESSION}
    for name in names:
        if name not in known:
            raise UnknownNameError(f"{where}: {describe_unknown(name, sorted(known))}")


def describe_unknown(name: str, known: Iterable[str], kind: str = "rule or family") -> str:
    """A clause such as: there is no rule or family `x`; did you mean `y`?"""
    return f"there is no {kind} `{name}`{suggest(name, known)}"


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean `y`?`, or nothing if no known name is close."""
    from difflib import get_close_matches

    by_spelling = {other.lower(): other for other in known}
    close = get_close_matches(name.lower().replace("_", "-"), by_spelling, n=1)
    return f"; did you mean `{by_spelling[close[0]]}`?" if close else ""
