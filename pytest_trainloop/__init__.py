"""Tests and a linter for PyTorch training loops.

The package is imported in every pytest session that has it installed, so this
module imports nothing: public names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_trainloop.checks.accumulates import accumulates as accumulates
    from pytest_trainloop.checks.evaluates import evaluates as evaluates
    from pytest_trainloop.checks.frees import frees as frees
    from pytest_trainloop.checks.overfits import overfits as overfits
    from pytest_trainloop.checks.repeats import repeats as repeats
    from pytest_trainloop.checks.resumes import resumes as resumes
    from pytest_trainloop.checks.trains import trains as trains
    from pytest_trainloop.runtime.record import Run as Run
    from pytest_trainloop.runtime.script import ScriptError as ScriptError
    from pytest_trainloop.runtime.script import run_module as run_module
    from pytest_trainloop.runtime.script import run_script as run_script
    from pytest_trainloop.runtime.watch import watch as watch

__version__ = "0.1.0"

_HOME = {
    "Run": "pytest_trainloop.runtime.record",
    "ScriptError": "pytest_trainloop.runtime.script",
    "run_module": "pytest_trainloop.runtime.script",
    "run_script": "pytest_trainloop.runtime.script",
    "watch": "pytest_trainloop.runtime.watch",
}


def __getattr__(name: str) -> Any:
    """Load a public name: `watch`, `run_script`, or a marker named after its check.

    Raises:
        AttributeError: there is no such name.
    """
    from importlib import import_module
    from importlib.util import find_spec

    home = _HOME.get(name, f"pytest_trainloop.checks.{name}")
    if name.startswith("_") or find_spec(home) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
