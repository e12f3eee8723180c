"""One file for each output format of the linter: `write(report) -> str`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import Report


#: The formats that show what a fix would change.
SHOW_FIXES = frozenset({"sarif"})


def formats() -> list[str]:
    """The names of the formats, in alphabetical order: those of the modules beside this one."""
    # Late: a run needs one format, and knows its name.
    import pkgutil

    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_"))


def write_report(report: Report, name: str) -> str:
    """The report in the format `name`, with a line end at its end.

    Raises:
        ValueError: there is no such format.
    """
    from importlib import import_module

    if name not in formats():
        raise ValueError(f"no format is called {name!r}; there are {', '.join(formats())}")
    text: str = import_module(f"{__name__}.{name}").write(report)
    return text
