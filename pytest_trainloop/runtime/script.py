"""Run a training script in this process as `python train.py --epochs 1` runs it in its own.

The script is not changed and does not know: it is `__main__`, finds its arguments in
`sys.argv` and its neighbours on `sys.path`. What it leaves behind is put back, so that a second
run begins as a new process would.
"""

from __future__ import annotations

import builtins
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import decode_source, find_spec
from types import CodeType, ModuleType, TracebackType
from typing import Any

from pytest_trainloop.runtime.afresh import as_a_new_process
from pytest_trainloop.runtime.broken_off import BrokenOffError
from pytest_trainloop.runtime.place import innermost_user_line, is_ours, readable

#: What the topmost folder of a project holds: scripts are not looked for above it.
_PROJECT_ROOTS = ("pyproject.toml", "setup.py", "setup.cfg", "pytest.ini", "tox.ini", ".git")
#: Characters shown of what an exception says.
_SHOWN = 200


class ScriptError(BrokenOffError):
    """A script could not be run, or did not come to a good end.

    The message is one line with the script's name and line; `trace` is the traceback through
    the script, without the frames that called it.
    """


@dataclass(frozen=True, slots=True)
class _Program:
    """What is to be run, and what it finds when it begins."""

    #: What messages call it.
    title: str
    code: CodeType
    file: str
    argv: list[str]
    #: What comes first on `sys.path`.
    folder: str
    #: None for a script.
    spec: ModuleSpec | None = None


def run_script(
    path: str | os.PathLike[str], *args: object, cwd: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Run a script to its end, as `python path args...` would, but in this process.

        @overfits
        def test_learns():
            run_script("train.py", "--epochs", "50")

    `sys.argv`, `__main__` and `sys.path` are what the script expects, and modules that lie
    beside or below it are imported anew. Afterwards all that is put back, and with it the
    working folder, the environment, logging, warning filters, signal handlers and the modes of
    torch that the script changed. An exit with code 0 (argparse's `--help`) is a normal end.

    Args:
        path: the script. A relative path that is not found from the working folder is looked
            for from the folder of the calling file, and from those above it, up to the
            project's.
        args: the command line; what is no string is made one.
        cwd: the folder to run it in. By default the working folder; or, where that lies inside
            of the project (`tests/`), the folder from which `path` was found.

    Returns:
        The script's global variables at its end.

    Raises:
        ScriptError: there is no such script, or it cannot be read; it raised an exception, or
            exited with another code than 0.
    """
    __tracebackhide__ = True
    given = os.fspath(path)
    file, base = _find(given, sys._getframe(1).f_code.co_filename)
    source = _read(given, file)
    # Python itself leaves links out of `sys.path[0]`, and keeps them in `__file__`.
    folder = os.path.dirname(os.path.realpath(file))
    inside = base if _lies_in(os.getcwd(), base) else None
    where = _existing(cwd) if cwd is not None else inside
    name = given if cwd is None and (inside or base == os.getcwd()) else file
    with as_a_new_process(folder, where):
        code = _compiled(given, file, source)
        return _run(_Program(given, code, file, [name, *map(str, args)], folder))


def run_module(
    name: str, *args: object, cwd: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """Run a module to its end, as `python -m name args...` would, but in this process.

    As `run_script`, except that the module is looked for on `sys.path`, with the working folder
    first, and that of a package `__main__` is run.

    Raises:
        ScriptError: as `run_script`.
    """
    __tracebackhide__ = True
    where = _existing(cwd) if cwd is not None else os.getcwd()
    with as_a_new_process(_package_folder(name, where), where):
        sys.path.insert(0, where)
        spec, code = _found(name)
        sys.path.pop(0)
        file = str(spec.origin)
        return _run(_Program(name, code, file, [file, *map(str, args)], where, spec))


def _find(given: str, caller: str) -> tuple[str, str]:
    """The script's absolute path, and the folder from which `given` leads to it."""
    for base in (os.getcwd(), *_project_folders(os.path.dirname(os.path.abspath(caller)))):
        file = os.path.join(base, given)
        if os.path.isfile(file):
            return os.path.abspath(file), base
        if os.path.isdir(file):
            raise ScriptError(
                f"`{given}` is a folder, not a script", advice="name the script in it"
            )
    raise ScriptError(
        f"there is no script `{given}` in {os.getcwd()}",
        advice="give the path from the working folder, from the test's, or from one above it",
    )


def _project_folders(folder: str) -> Iterator[str]:
    """`folder` and those above it, up to the topmost of its project."""
    while True:
        yield folder
        above = os.path.dirname(folder)
        if above == folder or any(os.path.exists(os.path.join(folder, n)) for n in _PROJECT_ROOTS):
            return
        folder = above


def _existing(cwd: str | os.PathLike[str]) -> str:
    folder = os.path.abspath(cwd)
    if not os.path.isdir(folder):
        raise ScriptError(
            f"there is no folder `{os.fspath(cwd)}` to run the script in", advice="make it first"
        )
    return folder


def _lies_in(folder: str, outer: str) -> bool:
    return os.path.join(folder, "").startswith(os.path.join(outer, "")) and folder != outer


def _read(title: str, file: str) -> bytes:
    try:
        with open(file, "rb") as script:
            return script.read()
    except OSError as wrong:
        problem = wrong.strerror
    raise ScriptError(f"`{title}` cannot be read: {problem}", advice="look at its permissions")


def _compiled(title: str, file: str, source: bytes) -> CodeType:
    problem = ""
    try:
        return compile(decode_source(source), file, "exec", dont_inherit=True)
    except SyntaxError as wrong:
        problem = _syntax_problem(wrong)
    except ValueError as wrong:
        # A nul byte, or bytes that are not of the encoding.
        problem = str(wrong)
    raise ScriptError(f"`{title}` is not Python: {problem}", advice="correct the script")


def _syntax_problem(wrong: SyntaxError) -> str:
    where = (
        f" at {readable((wrong.filename, wrong.lineno))}" if wrong.filename and wrong.lineno else ""
    )
    return f"{wrong.msg}{where}"


def _package_folder(name: str, where: str) -> str:
    """Where the modules lie that belong to the module's own package."""
    sys.path.insert(0, where)
    try:
        spec = find_spec(name.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    finally:
        sys.path.remove(where)
    if spec is None:
        return where
    if spec.submodule_search_locations:
        return os.path.abspath(next(iter(spec.submodule_search_locations)))
    return os.path.dirname(os.path.abspath(spec.origin or where))


def _found(name: str) -> tuple[ModuleSpec, CodeType]:
    """The module that `python -m name` runs, and its code. Imports the packages around it."""
    problem = f"there is no module `{name}`"
    try:
        spec = find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            problem = f"`{name}` is a package without `__main__`"
            spec = find_spec(f"{name}.__main__")
        loader: Any = spec and spec.loader
        code = loader.get_code(spec.name) if spec and hasattr(loader, "get_code") else None
        if spec is not None and code is not None:
            return spec, code
    except SyntaxError as wrong:
        problem = f"`{name}` is not Python: {_syntax_problem(wrong)}"
    except (ImportError, ValueError) as wrong:
        problem = f"{problem}: {wrong}"
    raise ScriptError(problem, advice="run it as `python -m` finds it from the working folder")


def _run(program: _Program) -> dict[str, Any]:
    __tracebackhide__ = True
    main = _main_module(program)
    sys.modules["__main__"] = main
    sys.argv[:] = program.argv
    sys.path.insert(0, program.folder)
    with _told(program):
        exec(program.code, vars(main))  # noqa: S102  # running a script is what it is for
    return dict(vars(main))


def _main_module(program: _Program) -> ModuleType:
    main = ModuleType("__main__")
    spec = program.spec
    loader = spec.loader if spec else SourceFileLoader("__main__", program.file)
    vars(main).update(
        __file__=program.file,
        __spec__=spec,
        __loader__=loader,
        __package__=spec.parent if spec else None,
        __builtins__=builtins,
    )
    return main


@contextmanager
def _told(program: _Program) -> Iterator[None]:
    """Raise what a script's end means; what is no `Exception` (a stop, Ctrl-C) comes out as is."""
    __tracebackhide__ = True
    try:
        yield
    except SystemExit as left:
        if left.code in (None, 0):
            return
        place = _place(left.__traceback__, program)
        said = f"with code {left.code}" if isinstance(left.code, int) else f"saying: {left.code}"
        raise ScriptError(
            f"`{program.title}` exited {_first_line(said)}{_at(place)}",
            advice="give it arguments and data with which it comes to its end; what it printed"
            " says more",
            where=place,
        ) from None
    except Exception as wrong:
        place = _place(wrong.__traceback__, program)
        raise ScriptError(
            f"`{program.title}` raised {_first_line(_worded(wrong))}{_at(place)}",
            advice="run it by itself, with the same arguments",
            trace=_trace(wrong, program),
            where=place,
        ) from wrong


def _worded(wrong: Exception) -> str:
    return traceback.format_exception_only(type(wrong), wrong)[-1].strip()


def _first_line(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "..."


def _place(trace: TracebackType | None, program: _Program) -> str:
    line = innermost_user_line(_from_script(trace, program), program.file)
    return readable(line) if line else ""


def _at(place: str) -> str:
    return f" at {place}" if place else ""


def _from_script(trace: TracebackType | None, program: _Program) -> TracebackType | None:
    """The part of a traceback that begins in the program."""
    while trace is not None and trace.tb_frame.f_code.co_filename != program.file:
        trace = trace.tb_next
    return trace


def _trace(wrong: Exception, program: _Program) -> str:
    inner = _from_script(wrong.__traceback__, program)
    told = traceback.TracebackException(type(wrong), wrong, inner)
    causes: list[traceback.TracebackException | None] = [told]
    for one in causes:
        if one is not None:
            # What watches is no part of the script.
            own = [frame for frame in one.stack if not is_ours(frame.filename)]
            one.stack = traceback.StackSummary.from_list(own)
            causes += [one.__cause__, one.__context__]
    return "".join(told.format()).rstrip()
