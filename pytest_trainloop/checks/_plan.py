"""What a process that runs one test is told: the session's own set-up, but for that test alone."""

from __future__ import annotations

import os
import pickle
import sys
from typing import TYPE_CHECKING, Any

from pytest_trainloop.checks import check_names
from pytest_trainloop.checks._process import Plan

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

#: Options that choose among tests, run them elsewhere or again, or write files of the session:
#: what they are in a process that runs the one test.
_ALONE: dict[str, Any] = {
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "collectonly": False,
    "lf": False,
    "failedfirst": False,
    "newfirst": False,
    "cacheclear": False,
    "cacheshow": None,
    "stepwise": False,
    "stepwise_skip": False,
    "stepwise_reset": False,
    "maxfail": 0,
    "usepdb": False,
    "trace": False,
    "xmlpath": None,
    "report_log": None,
    "htmlpath": None,
    "trainloop_json": None,
    "trainloop_lint": False,
    "numprocesses": None,
    "maxprocesses": None,
    "dist": "no",
    "tx": [],
    "looponfail": False,
    "cov_source": [],
    "reruns": 0,
}


def plan_for(item: pytest.Function, folder: Path) -> Plan:
    """The plan for a process that runs `item`, with its files in `folder`."""
    config = item.config
    path, _, inner = item.nodeid.partition("::")
    test = f"{config.rootpath / path}::{inner}"
    options = {**vars(config.option), **_ALONE, "basetemp": str(folder / "tmp"), "plugins": []}
    options["file_or_dir"] = [test]
    options["rootdir"] = str(config.rootpath)
    options["inifilename"] = str(config.inipath) if config.inipath else None
    plugins = [part for name in config.option.plugins for part in ("-p", name)]
    return Plan(
        nodeid=item.nodeid,
        arguments=[*plugins, test],
        options={name: value for name, value in options.items() if _can_travel(value)},
        argv=list(sys.argv),
        folder=str(config.invocation_params.dir),
        search_path=list(sys.path),
        coverage=_coverage_of(config),
        events=str(folder / "events"),
        stacks=str(folder / "stacks"),
    )


def _can_travel(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # noqa: BLE001  # whatever an object's own pickling raises
        return False
    return True


def _coverage_of(config: pytest.Config) -> dict[str, Any] | None:
    """How pytest-cov measures this session; None if it does not."""
    plugin: Any = config.pluginmanager.getplugin("_cov")
    measuring = getattr(getattr(plugin, "cov_controller", None), "cov", None)
    if measuring is None:
        return None
    settings = measuring.config
    return {
        "data_file": os.path.abspath(settings.data_file),
        "config_file": settings.config_file or False,
        "source": settings.source,
        "branch": settings.branch,
    }


def seconds_allowed(item: pytest.Function) -> float | None:
    """What the markers of a test allow it in all; None if one of them sets no limit."""
    marks = [item.get_closest_marker(name) for name in (*check_names(), "trainloop")]
    *checks, watching = [mark.kwargs.get("timeout") if mark else None for mark in marks]
    limits = [one or watching for one, mark in zip(checks, marks, strict=False) if mark is not None]
    if not limits:
        return float(watching) if watching else None
    return None if None in limits else float(sum(filter(None, limits)))
