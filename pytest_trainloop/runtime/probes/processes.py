"""See other processes started that may train: what they compute cannot be watched.

Children of `multiprocessing` (also `torch.multiprocessing.spawn`, and what launches with it), and
commands that run Python. The workers of data loaders only bring data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from pytest_trainloop.runtime.sightings import ChildProcess

if TYPE_CHECKING:
    from pytest_trainloop.runtime.observe import Observer

#: Commands that run training scripts, besides Python itself.
_LAUNCHERS = ("python", "torchrun", "accelerate", "deepspeed", "horovodrun", "mpirun")


def install(observer: Observer) -> None:
    """Replace `Process.start`, which every start method shares, and `Popen.__init__`."""
    import subprocess
    from multiprocessing.process import BaseProcess

    def note(title: str) -> None:
        if observer.patches.active:
            observer.run.processes.append(ChildProcess(title, observer.place()))

    def replace_start(original: Callable[..., Any]) -> FunctionType:
        def start(process: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if not _brings_data(process):
                note("a child process")
            return original(process, *args, **kwargs)

        return cast("FunctionType", start)

    def replace_popen(original: Callable[..., Any]) -> FunctionType:
        def __init__(popen: Any, args: Any, *rest: Any, **kwargs: Any) -> None:  # noqa: N807
            __tracebackhide__ = True
            command = _launcher(args)
            if command:
                note(f"`{command}`")
            original(popen, args, *rest, **kwargs)

        return cast("FunctionType", __init__)

    observer.patches.replace(BaseProcess, "start", replace_start)
    observer.patches.replace(subprocess.Popen, "__init__", replace_popen)


def _brings_data(process: Any) -> bool:
    target = getattr(process, "_target", None)
    return str(getattr(target, "__module__", "")).startswith("torch.utils.data")


def _launcher(args: Any) -> str:
    """The command that runs Python, as the user wrote it; empty if it is another one."""
    if isinstance(args, (str, bytes)):
        words: Sequence[Any] = os.fsdecode(args).split()
    else:
        words = args if isinstance(args, Sequence) else [args]
    first = os.fspath(words[0]) if words and isinstance(words[0], (str, os.PathLike)) else ""
    name = os.path.basename(first)
    return name if first == sys.executable or name.startswith(_LAUNCHERS) else ""
