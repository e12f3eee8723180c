"""One file for each output format of the linter: `write(report) -> str`."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import Report


def formats() -> list[str]:
    """The names of the formats, in alphabetical order: those of the modules beside this one."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def write_report(report: Report, name: str) -> str:
    """The report in the format `name`, with a line end at its end.

    Raises:
        ValueError: there is no such format.
    """
    if name not in formats():
        raise ValueError(f"no format is called {name!r}; there are {', '.join(formats())}")
    text: str = import_module(f"{__name__}.{name}").write(report)
    return text
