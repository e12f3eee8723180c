"""The rules: one file each, found by walking this folder."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module

from pytest_trainloop.rules._rule import Bad, Edit, Example, Finding, Fix, Good, Observation, Rule

__all__ = [
    "Bad",
    "Edit",
    "Example",
    "Finding",
    "Fix",
    "Good",
    "Observation",
    "Rule",
    "all_rules",
]


@cache
def all_rules() -> dict[str, Rule]:
    """Every rule by name, in alphabetical order.

    A rule is the class of a module `rules/<family>/<rule>.py` that is named after it.
    """
    rules: dict[str, Rule] = {}
    for family in pkgutil.iter_modules(__path__):
        if family.name.startswith("_") or not family.ispkg:
            continue
        package = import_module(f"{__name__}.{family.name}")
        for module in pkgutil.iter_modules(package.__path__):
            if module.name.startswith("_"):
                continue
            home = import_module(f"{package.__name__}.{module.name}")
            class_name = "".join(word.title() for word in module.name.split("_"))
            rule: type[Rule] = getattr(home, class_name)
            rules[rule.name] = rule()
    return dict(sorted(rules.items()))
