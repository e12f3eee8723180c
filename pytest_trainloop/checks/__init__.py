"""The checks: one promise that a loop keeps, one marker, one file each.

A check is the class in `checks/<check>.py` that is named after its file, and the marker of the
same name beside it. It is found by walking this folder; nothing is registered.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_trainloop.checks._check import Check


@cache
def check_names() -> tuple[str, ...]:
    """The names of all checks, in alphabetical order; imports none of them."""
    files = (entry.name for entry in os.scandir(os.path.dirname(__file__)))
    return tuple(sorted(f[:-3] for f in files if f.endswith(".py") and not f.startswith("_")))


def check_class(name: str) -> type[Check]:
    """The check of that name.

    Raises:
        KeyError: there is none.
    """
    from importlib import import_module

    if name not in check_names():
        raise KeyError(name)
    home = import_module(f"{__name__}.{name}")
    found: type[Check] = getattr(home, "".join(word.title() for word in name.split("_")))
    return found
