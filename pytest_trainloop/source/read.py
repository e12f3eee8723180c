"""From the text of a file to its facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trainloop.source import follow
from pytest_trainloop.source.definitions import FunctionFacts, SourceFile
from pytest_trainloop.source.facts import FileFacts
from pytest_trainloop.source.frames import Inside
from pytest_trainloop.source.program import Program, entry_scope
from pytest_trainloop.source.reader import Reader
from pytest_trainloop.source.values import Class, Function, options

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_trainloop.source.events import Trace
    from pytest_trainloop.source.scopes import Scope
    from pytest_trainloop.source.tree import SourceTree


def read_source(
    text: str,
    path: str,
    tree: SourceTree | None = None,
    focus: Iterable[int] | None = None,
) -> FileFacts:
    """Read a file into facts.

    Functions that nobody in sight calls are read on their own if they, or what they call,
    hold one of the offsets `focus`; without it, if they hold any word of training.

    Raises:
        SyntaxError: the text is not Python.
        RecursionError: it is nested too deeply.
    """
    program = Program(tree)
    file = SourceFile.parse(path, text)
    module = Reader(program, file, None)
    module.run(file.tree.body)
    traces = [module.trace]
    for function in _callers_first(file, _wanted(file, focus)):
        if function not in program.read:  # the one before may have called it
            traces.append(_read_alone(program, function, module))  # noqa: PERF401 -- as above
    return FileFacts(file, tuple(traces))


def _wanted(file: SourceFile, focus: Iterable[int] | None) -> list[FunctionFacts]:
    if focus is not None:
        return file.reaching(focus)
    return [function for function in file.functions if function.is_interesting]


def _callers_first(file: SourceFile, wanted: list[FunctionFacts]) -> list[FunctionFacts]:
    """The wanted functions, those that no other one mentions before those that are called.

    Functions inside functions are read where the outer one makes and calls them, so they
    come last.
    """
    extents = {function.extent for function in wanted}

    def rank(function: FunctionFacts) -> tuple[bool, bool, int]:
        is_called = not extents.isdisjoint(file.extents.mentioning(function.name))
        return (function.parent is not None, is_called, function.first_line)

    return sorted(wanted, key=rank)


def _read_alone(program: Program, function: FunctionFacts, module: Reader) -> Trace:
    """Read a function as its own entry: its parameters are what nobody has told."""
    reader = Reader(program, function.file, function)
    program.read.add(function)
    parent = _defining_scope(function, module)
    receiver = None
    if function.owner is not None and "staticmethod" not in function.decorator_names:
        receiver = program.instance_of(function.owner)
        parent = function.owner.scope or parent
    scope = entry_scope(function, parent, receiver)
    frame = Inside(function.file, function.node, function)
    follow.body(reader, function, scope, frame)
    return reader.trace


def _defining_scope(function: FunctionFacts, module: Reader) -> Scope:
    for binding in module.scope.names.values():
        for option in options(binding.value):
            if isinstance(option, Function) and option.definition is function:
                return option.scope
            if isinstance(option, Class) and option.definition is function.owner:
                return option.definition.scope or module.scope
    return module.scope
