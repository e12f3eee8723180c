"""What a script changes in its process, put back: a second run begins as a new process would."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_trainloop.runtime.place import belongs_to_user

if TYPE_CHECKING:
    import torch

_Undo = Callable[[], object]
#: Signals that training scripts handle: to save before they are preempted, or to stop.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM")


@contextmanager
def as_a_new_process(folder: str, cwd: str | None) -> Iterator[None]:
    """Run the block as if in a process of its own, as far as one process can.

    Args:
        folder: modules below it are imported anew; those that others had imported from there
            are back afterwards.
        cwd: the working folder; None for the one that is.

    Raises:
        OSError: there is no folder `cwd`.
    """
    keepers = (_streams, _import_state, _environment, _folder, _loggers, _signals, _torch_modes)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for keep in keepers:
            stack.callback(keep())
        stack.callback(_own_modules(folder))
        if cwd is not None:
            os.chdir(cwd)
        # Files may have been written a moment ago, which a new process would see.
        importlib.invalidate_caches()
        yield


def _streams() -> _Undo:
    kept = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr", "excepthook")}

    def undo() -> None:
        for name, value in kept.items():
            setattr(sys, name, value)

    return undo


def _import_state() -> _Undo:
    main = sys.modules["__main__"]
    lists: list[tuple[str, list[Any], list[Any]]] = [
        (name, value, list(value))
        for name, value in (("argv", sys.argv), ("path", sys.path), ("meta_path", sys.meta_path))
    ]

    def undo() -> None:
        sys.modules["__main__"] = main
        for name, original, values in lists:
            original[:] = values
            setattr(sys, name, original)

    return undo


def _environment() -> _Undo:
    kept = dict(os.environ)

    def undo() -> None:
        for name in set(os.environ) - set(kept):
            del os.environ[name]
        for name, value in kept.items():
            if os.environ.get(name) != value:
                os.environ[name] = value

    return undo


def _folder() -> _Undo:
    kept = os.getcwd()
    return lambda: os.chdir(kept)


def _loggers() -> _Undo:
    """Handlers would go on to write to streams of a run that is over."""
    known: list[logging.Logger] = [logging.root, *_named_loggers().values()]
    kept = [(one, one.handlers[:], one.level, one.propagate) for one in known]
    disabled = logging.root.manager.disable

    def undo() -> None:
        logging.disable(disabled)
        for logger, handlers, level, propagate in kept:
            logger.handlers[:] = handlers
            logger.propagate = propagate
            if logger.level != level:
                logger.setLevel(level)
        for name, logger in _named_loggers().items():
            if logger not in known and not _is_of_a_library(name):
                logger.handlers.clear()

    return undo


def _named_loggers() -> dict[str, logging.Logger]:
    found = logging.root.manager.loggerDict.items()
    return {name: logger for name, logger in found if isinstance(logger, logging.Logger)}


def _is_of_a_library(logger: str) -> bool:
    """Whether a logger is named after a module that stays loaded: it set itself up but once."""
    module = sys.modules.get(logger.partition(".")[0])
    return module is not None and not belongs_to_user(_file_of(module))


def _signals() -> _Undo:
    if threading.current_thread() is not threading.main_thread():
        # Nobody may set a handler here, the script neither.
        return lambda: None
    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    kept = {number: signal.getsignal(number) for number in numbers}

    def undo() -> None:
        for number, handler in kept.items():
            # None: it was not set from Python, and cannot be.
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return undo


def _torch_modes() -> _Undo:
    """Modes of torch, and how processes start; a process group that the script left open."""
    import torch

    cudnn = torch.backends.cudnn
    modes: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        (
            _deterministic,
            lambda kept: torch.use_deterministic_algorithms(kept[0], warn_only=kept[1]),
        ),
        (torch.get_default_device, _put_default_device),
        (lambda: cudnn.benchmark, lambda value: setattr(cudnn, "benchmark", value)),
        (lambda: cudnn.deterministic, lambda value: setattr(cudnn, "deterministic", value)),
        (_start_method, lambda name: multiprocessing.set_start_method(name, force=True)),
    ]
    kept = [get() for get, _ in modes]
    grouped = _has_process_group()

    def undo() -> None:
        for (get, put), value in zip(modes, kept, strict=True):
            if get() != value:
                put(value)
        if _has_process_group() and not grouped:
            torch.distributed.destroy_process_group()

    return undo


def _deterministic() -> tuple[bool, bool]:
    import torch

    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _put_default_device(device: torch.device) -> None:
    """Set the device of new tensors.

    The CPU is what None stands for. Named, it would be a mode, which each later call of torch
    had to pass through.
    """
    import torch

    torch.set_default_device(None if device.type == "cpu" else device)


def _start_method() -> str | None:
    return multiprocessing.get_start_method(allow_none=True)


def _has_process_group() -> bool:
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _own_modules(folder: str) -> _Undo:
    """Hide the modules that lie below `folder`; afterwards drop what the run has loaded.

    Only the user's own: a library such as torch cannot be loaded twice.
    """
    outer = os.path.join(folder, "")
    hidden = {
        name: module
        for name, module in list(sys.modules.items())
        if name != "__main__" and _is_own(module)
        if os.path.realpath(_file_of(module)).startswith(outer)
    }
    for name in hidden:
        del sys.modules[name]
    before = set(sys.modules)

    def undo() -> None:
        for name, module in list(sys.modules.items()):
            if name not in before and _is_own(module):
                del sys.modules[name]
        sys.modules.update(hidden)

    return undo


def _is_own(module: ModuleType) -> bool:
    file = _file_of(module)
    return bool(file) and belongs_to_user(file)


def _file_of(module: ModuleType) -> str:
    """Where a module lies; a package without a file is a folder. Empty for what is built in."""
    held = getattr(module, "__dict__", {})
    file = held.get("__file__")
    if not isinstance(file, str):
        folders = held.get("__path__")
        file = next((f for f in _listed(folders) if isinstance(f, str)), "")
    return file


def _listed(folders: Any) -> list[Any]:
    try:
        return list(folders or ())
    except TypeError:
        return []
