"""Where in the user's code something was called, and what they call an object."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from dis import get_instructions
from inspect import CO_OPTIMIZED
from types import CodeType, FrameType, ModuleType, TracebackType

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = sysconfig.get_path("stdlib") + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_TORCH = tuple(f"{folder}torch{os.sep}" for folder in _INSTALLED)
#: How close code is to the user: their own, an installed library's, or none of their business.
_USER, _LIBRARY, _MACHINERY = 2, 1, 0

#: What a function calls without arguments to have the dict of its own variables.
_ITS_VARIABLES = frozenset(("locals", "vars"))

#: By file name: code objects that torch.compile makes cannot always be hashed.
_closeness: dict[str, int] = {}


def _classify(path: str) -> int:
    if path.startswith((_OURS, "<frozen")) or any(part in path for part in _TORCH):
        return _MACHINERY
    if any(part in path for part in _INSTALLED):
        return _MACHINERY if "_pytest" in path or "pluggy" in path else _LIBRARY
    return _MACHINERY if path.startswith(_STDLIB) else _USER


def is_ours(path: str) -> bool:
    """Whether the code in a file is this package's own."""
    return path.startswith(_OURS)


def closeness(path: str) -> int:
    """How close the code in a file is to the user; remembered: it is asked in every step."""
    known = _closeness.get(path)
    if known is None:
        known = _closeness[path] = _classify(path)
    return known


def belongs_to_user(path: str) -> bool:
    """Whether a file is the user's own: no library's that is installed, not Python's, not ours."""
    return closeness(path) == _USER


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def frame_beyond(thing: object, frame: FrameType | None) -> FrameType | None:
    """The frame that called into the methods of `thing` that `frame` and its callers may be."""
    while frame is not None and self_of(frame) is thing:
        frame = frame.f_back
    return frame


def self_of(frame: FrameType) -> object:
    """What the variable `self` of a frame holds; None where there is none."""
    return _variables(frame).get("self")


def user_frames() -> list[FrameType]:
    """The frames of the user's own code on the stack, innermost first."""
    frames = _outwards(sys._getframe(1))
    return [frame for frame in frames if closeness(frame.f_code.co_filename) == _USER]


def functions_on_stack() -> tuple[str, ...]:
    """The names of the functions that are running, innermost first."""
    return tuple(frame.f_code.co_name for frame in _outwards(sys._getframe(1)))


def user_place() -> tuple[str, int]:
    """File and 1-based line of the innermost frame of the user's code.

    Where there is none, that of the innermost library that is not torch.
    """
    return place_of(sys._getframe(1))


def place_of(frame: FrameType | None) -> tuple[str, int]:
    """As `user_place`, for the stack that ends in `frame`."""
    fallback: FrameType | None = None
    while frame is not None:
        # Asked several times in every step: look it up before calling anything.
        path = frame.f_code.co_filename
        close = _closeness.get(path)
        if close is None:
            close = closeness(path)
        if close == _USER:
            return path, frame.f_lineno
        if close == _LIBRARY and fallback is None:
            fallback = frame
        frame = frame.f_back
    return (fallback.f_code.co_filename, fallback.f_lineno) if fallback else ("", 0)


class CallSite:
    """From where in the user's code a function is called, as `path:line`, for one called often.

    It looks first at where on the stack the user's code was found before: where that is at a call
    that is known, there is nothing to search.
    """

    def __init__(self) -> None:
        # Never that of `now` itself: a frame that refers to itself keeps its callers' variables.
        self._depth = 1
        #: By the position of the call in its code; what holds the code keeps it from being taken
        #: for another.
        self._known: dict[int, tuple[CodeType, str]] = {}

    def now(self) -> str:
        """The place of the innermost frame of the user's code, as `user_place` finds it."""
        try:
            frame = sys._getframe(self._depth)
        except ValueError:
            # It was called from deeper below before.
            return self._search()
        known = self._known.get(frame.f_lasti)
        if known is not None and known[0] is frame.f_code:
            return known[1]
        return self._search()

    def _search(self) -> str:
        frame = sys._getframe(1)
        text = readable(place_of(frame))
        for depth, one in enumerate(_outwards(frame)):
            if closeness(one.f_code.co_filename) == _USER:
                self._depth = depth
                self._known[one.f_lasti] = one.f_code, text
                break
        return text


def innermost_user_line(trace: TracebackType | None, script: str) -> tuple[str, int] | None:
    """File and line where the user's code was left last; in `script`, which counts as theirs."""
    found: tuple[str, int] | None = None
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if path == script or belongs_to_user(path):
            found = path, trace.tb_lineno
        trace = trace.tb_next
    return found


def readable(place: tuple[str, int]) -> str:
    """`path:line`, the path relative to the working folder where it lies below it."""
    path, line = place
    if not path:
        return ""
    folder = os.getcwd() + os.sep
    return f"{path.removeprefix(folder)}:{line}"


def name_of(thing: object) -> str | None:
    """What the user's code calls `thing`: a variable, or an attribute of one.

    Looks through the user's frames, innermost first: local variables, then attributes of
    `self` (as `self.opt`), then of other local objects. None where nothing is found.
    """
    for frame in user_frames():
        variables = _variables(frame)
        for name, value in variables.items():
            if value is thing:
                return name
        for name, value in variables.items():
            for attribute, held in _attributes(value):
                if held is thing:
                    return f"{name}.{attribute}"
    return None


def global_name_of(thing: object) -> str | None:
    """The global variable of the user's running code that holds `thing`."""
    for frame in user_frames():
        for name, value in frame.f_globals.items():
            if value is thing:
                return name
    return None


def _variables(frame: FrameType) -> dict[str, object]:
    if sys.version_info >= (3, 13) or not frame.f_code.co_flags & CO_OPTIMIZED:
        return dict(frame.f_locals)
    if _may_keep_variables(frame.f_code):
        # What its `locals()` gave is the very dict that would be filled and emptied here.
        return {}
    variables = dict(frame.f_locals)
    # A function's frame keeps what it was asked for, and would keep a loss alive by it.
    frame.f_locals.clear()
    return variables


def _may_keep_variables(code: CodeType) -> bool:
    """Whether a function calls `locals()` itself; pytest's asserts do it by an attribute."""
    if _ITS_VARIABLES.isdisjoint(code.co_names):
        return False
    own = False
    for instruction in get_instructions(code):
        if instruction.opname.startswith(("CALL", "PRECALL")) and own and not instruction.arg:
            return True
        own = instruction.opname == "LOAD_GLOBAL" and instruction.argval in _ITS_VARIABLES
    return False


def _attributes(thing: object) -> list[tuple[str, object]]:
    if isinstance(thing, (ModuleType, type)):
        return []
    try:
        held = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return []
    # A torch module keeps its submodules one level down, under their names.
    inner = held.get("_modules")
    return [*held.items(), *(inner.items() if isinstance(inner, dict) else ())]
