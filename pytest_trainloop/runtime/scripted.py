"""The record of a test, with the means to run a script that is to be recorded."""

from __future__ import annotations

from pytest_trainloop.runtime.record import Run
from pytest_trainloop.runtime.script import run_module, run_script


class ScriptedRun(Run):
    """What the fixture `trainloop` gives: the record of the test, and `trainloop.run_script`."""

    __slots__ = ()

    run_script = staticmethod(run_script)
    run_module = staticmethod(run_module)
