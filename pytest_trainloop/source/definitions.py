"""A source file, and the functions and classes that it defines."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from pytest_trainloop.source.extents import Extent, Extents, extents_of, known_as
from pytest_trainloop.source.place import Place
from pytest_trainloop.source.values import Class, Imported, Unknown, Value, options
from pytest_trainloop.source.vocabulary import INTERESTING

if TYPE_CHECKING:
    from pytest_trainloop.source.scopes import Scope

_LINE_END = re.compile("\r\n|\r|\n")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")

#: `self.name =`, also as one of several targets.
_ASSIGNED = re.compile(r"\bself\.(\w+)\s*(?:=[^=]|:[^=\n]*=|,)")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


#: Libraries whose classes bring no method that trains, and call none of a subclass's own.
_PLAIN_LIBRARIES = frozenset({"builtins", "collections", "abc", "typing", "enum", "argparse"})

#: Classes of modules, whichever library they are from, and the layers that others build on.
_MODULES = frozenset(
    {"Module", "LightningModule", "PreTrainedModel", "ModelMixin", "FairseqModel", "MessagePassing"}
)
_LAYER = re.compile(r"^torch\.nn\.(?:modules\.\w+\.)?_?[A-Z]\w*(?<!Parameter)(?<!ParameterList)$")


@dataclass(eq=False, repr=False)
class SourceFile:
    """One parsed file: its text, its definitions, and where its interesting words stand."""

    path: str
    text: str
    tree: ast.Module
    functions: list[FunctionFacts] = field(default_factory=list)
    classes: list[ClassFacts] = field(default_factory=list)
    #: The functions and classes by the identity of their nodes.
    definitions: dict[int, FunctionFacts | ClassFacts] = field(default_factory=dict)
    #: Whether `tree` holds but a part of the text, and more definitions may follow.
    is_partial: bool = False

    @classmethod
    def parse(cls, path: str, text: str, part: str | None = None) -> SourceFile:
        """Parse a file, or the part of it that `part` holds, and outline its definitions.

        Raises:
            SyntaxError: the text is not Python.
            RecursionError: the text is nested too deeply for this interpreter.
        """
        tree = ast.parse(text if part is None else part)
        file = cls(path, text, tree, is_partial=part is not None)
        file.outline(file.tree.body)
        return file

    def outline(self, body: Sequence[ast.stmt]) -> None:
        """Note the definitions of statements at the top of the file."""
        _outline(self, body, None, None)

    def take_apart(self) -> None:
        """Free the memory now; nothing else can be asked.

        Definitions, their file and their scopes hold each other, and through them the syntax
        tree: without this all of it would wait for Python's search for cycles, which would
        have to look at every node.
        """
        for definition in self.classes:
            if definition.scope is not None:
                definition.scope.names.clear()
        for each in (*self.functions, *self.classes, self):
            vars(each).clear()

    def function_at(self, node: ast.AST) -> FunctionFacts | None:
        """The function that a `def` defines."""
        found = self.definitions.get(id(node))
        return found if isinstance(found, FunctionFacts) else None

    def class_at(self, node: ast.AST) -> ClassFacts | None:
        """The class that a `class` statement defines."""
        found = self.definitions.get(id(node))
        return found if isinstance(found, ClassFacts) else None

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the text, as Python's parser counts them: a form feed ends none."""
        if "\r" not in self.text:  # it takes a tenth of the time
            return self.text.split("\n")
        return _LINE_END.split(self.text)

    def place(self, node: ast.AST) -> Place:
        """Where a node stands, in characters."""
        line = getattr(node, "lineno", 1)
        end_line = getattr(node, "end_lineno", None) or line
        return Place(
            self.path,
            line,
            self._column(line, getattr(node, "col_offset", 0)),
            end_line,
            self._column(end_line, getattr(node, "end_col_offset", None) or 0),
        )

    def _column(self, line: int, offset: int) -> int:
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        if text.isascii():
            return offset + 1
        return len(text.encode("utf-8")[:offset].decode("utf-8", "ignore")) + 1

    def text_of(self, node: ast.AST) -> str:
        """The source of a node, with runs of white space as one blank."""
        place = self.place(node)
        if place.line == place.end_line:
            return self.lines[place.line - 1][place.column - 1 : place.end_column - 1]
        rows = self.lines[place.line - 1 : place.end_line]
        rows[-1] = rows[-1][: place.end_column - 1]
        rows[0] = rows[0][place.column - 1 :]
        return " ".join(" ".join(rows).split())

    @cached_property
    def _starts(self) -> list[int]:
        if "\r" not in self.text:
            return list(accumulate((len(line) + 1 for line in self.lines[:-1]), initial=0))
        return [0, *(match.end() for match in _LINE_END.finditer(self.text))]

    def start_of(self, line: int) -> int:
        """The offset at which a line begins, counting lines from 1."""
        return self._starts[line - 1]

    @cached_property
    def extents(self) -> Extents:
        """Where the functions stand in the text; of a part, as far as the text alone tells."""
        if self.is_partial:
            return Extents(self.text, extents_of(self.text))
        return Extents(
            self.text,
            sorted(
                (function.extent for function in self.functions), key=lambda extent: extent.first
            ),
        )

    def leads_on(self, function: FunctionFacts) -> bool:
        """Whether a reader of training loops must follow a function."""
        extent = function.extent
        if self.is_partial:
            found = self.extents.beginning_at(extent.start)
            return found is None or self.extents.leads_to(found, INTERESTING)
        return self.extents.leads_to(extent, INTERESTING)

    def reaching(self, offsets: Iterable[int]) -> list[FunctionFacts]:
        """The functions that hold an offset, or mention one that does, at any depth."""
        reached = self.extents.reaching(offsets)
        return [function for function in self.functions if function.extent in reached]


@dataclass(eq=False, repr=False)
class FunctionFacts:
    """A function, a method or a lambda."""

    file: SourceFile
    node: FunctionNode
    name: str
    owner: ClassFacts | None = None
    parent: FunctionFacts | None = None

    @property
    def place(self) -> Place:
        """Where its definition stands."""
        return self.file.place(self.node)

    @property
    def first_line(self) -> int:
        """The line of `def`, or of its first decorator."""
        decorators = getattr(self.node, "decorator_list", None)
        return decorators[0].lineno if decorators else self.node.lineno

    @property
    def last_line(self) -> int:
        """The last line of its body."""
        return self.node.end_lineno or self.node.lineno

    @cached_property
    def extent(self) -> Extent:
        """Where it stands in its file's text."""
        starts = self.file.start_of
        after = self.last_line + 1
        return Extent(
            self.name,
            known_as(self.name, self.owner.name if self.owner is not None else None),
            starts(self.first_line),
            starts(self.node.lineno),
            starts(after) if after <= len(self.file.lines) else len(self.file.text),
        )

    @cached_property
    def identifiers(self) -> frozenset[str]:
        """All identifiers in its text."""
        rows = self.file.lines[self.node.lineno - 1 : self.last_line]
        return frozenset(_IDENTIFIER.findall("\n".join(rows))) - {self.name}

    @property
    def is_interesting(self) -> bool:
        """Whether its body can matter to a rule."""
        if isinstance(self.node, ast.Lambda):
            return True
        return self.file.leads_on(self)

    @cached_property
    def is_generator(self) -> bool:
        """Whether it yields."""
        if isinstance(self.node, ast.Lambda) or "yield" not in self.identifiers:
            return False
        return any(isinstance(node, ast.Yield | ast.YieldFrom) for node in _own_nodes(self.node))

    @property
    def decorators(self) -> Sequence[ast.expr]:
        """Its decorators, outermost first."""
        return getattr(self.node, "decorator_list", ())

    @cached_property
    def decorator_names(self) -> tuple[str, ...]:
        """The decorators as written, without arguments: `torch.no_grad`."""
        return tuple(
            self.file.text_of(decorator.func if isinstance(decorator, ast.Call) else decorator)
            for decorator in self.decorators
        )

    @property
    def parameters(self) -> list[str]:
        """The names of its parameters, in order, without `*args` and `**kwargs`."""
        given = self.node.args
        return [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function's body without those of functions and classes inside it."""
    queue: list[ast.AST] = list(getattr(function, "body", ()))
    while queue:
        node = queue.pop()
        yield node
        if not isinstance(node, FunctionNode | ast.ClassDef):
            queue.extend(ast.iter_child_nodes(node))


@dataclass(eq=False, repr=False)
class ClassFacts:
    """A class; `bases` are known once its module has been read."""

    file: SourceFile
    node: ast.ClassDef
    name: str
    methods: dict[str, FunctionFacts] = field(default_factory=dict)
    bases: tuple[Value, ...] = ()
    #: The scope that the class statement stands in.
    scope: Scope | None = None
    #: Finds what an imported base stands for in the other linted files.
    link: Callable[[Value], Value] | None = None
    #: Whether what `link` gives will not change any more.
    is_settled: Callable[[], bool] | None = None
    #: The values assigned in the class body.
    class_values: dict[str, Value] = field(default_factory=dict)
    _lineage: tuple[ClassFacts | str, ...] | None = None

    @property
    def place(self) -> Place:
        """Where its definition stands."""
        return self.file.place(self.node)

    def ancestors(self) -> tuple[ClassFacts | str, ...]:
        """All bases at any depth, nearest first: classes in sight, or full names."""
        if self._lineage is not None:
            return self._lineage
        lineage = tuple(self._find_ancestors())
        if self.is_settled is not None and self.is_settled():
            self._lineage = lineage
        return lineage

    def _find_ancestors(self) -> Iterator[ClassFacts | str]:
        seen: set[int] = {id(self)}
        queue: list[ClassFacts] = [self]
        for current in queue:
            for value in current.bases:
                for base in options(current.link(value) if current.link else value):
                    if isinstance(base, Class) and id(base.definition) not in seen:
                        seen.add(id(base.definition))
                        queue.append(base.definition)
                        yield base.definition
                    elif isinstance(base, Imported):
                        yield base.qualified
                    elif isinstance(base, Unknown):
                        yield base.spelling

    def is_a(self, *names: str) -> bool:
        """Whether some base, at any depth, has one of these full names."""
        return any(base in names for base in self.ancestors() if isinstance(base, str))

    def has_unknown_base(self) -> bool:
        """Whether some base is out of sight, so that there may be more methods."""
        return any(
            isinstance(base, str) and base.partition(".")[0] not in _PLAIN_LIBRARIES
            for base in self.ancestors()
        )

    def method(self, name: str) -> FunctionFacts | None:
        """The method of this name, its own or inherited from a class in sight."""
        if name in self.methods:
            return self.methods[name]
        for base in self.ancestors():
            if isinstance(base, ClassFacts) and name in base.methods:
                return base.methods[name]
        return None

    def class_value(self, name: str) -> Value | None:
        """A value assigned in the class body, its own or that of a class in sight."""
        if name in self.class_values:
            return self.class_values[name]
        for base in self.ancestors():
            if isinstance(base, ClassFacts) and name in base.class_values:
                return base.class_values[name]
        return None

    def methods_assigning(self, name: str) -> list[FunctionFacts]:
        """The methods, its own and inherited, whose text assigns `self.name`."""
        found = list(self.assigned.get(name, ()))
        for base in self.ancestors():
            if isinstance(base, ClassFacts):
                found.extend(base.assigned.get(name, ()))
        return found[:3]

    @cached_property
    def assigned(self) -> dict[str, list[FunctionFacts]]:
        """The attributes of `self` that are assigned, with the methods whose text does it."""
        assigned: dict[str, list[FunctionFacts]] = {}
        for method in self.methods.values():
            rows = "\n".join(self.file.lines[method.node.lineno - 1 : method.last_line])
            for name in set(_ASSIGNED.findall(rows)):
                assigned.setdefault(name, []).append(method)
        return assigned

    @cached_property
    def is_module(self) -> bool:
        """Whether it is a `torch.nn.Module`, or another library's class built on it."""
        return any(
            isinstance(base, str)
            and (base.rpartition(".")[2] in _MODULES or bool(_LAYER.match(base)))
            for base in self.ancestors()
        )


def _outline(
    file: SourceFile,
    body: Sequence[ast.stmt],
    owner: ClassFacts | None,
    parent: FunctionFacts | None,
) -> None:
    """List the definitions of a body, also those inside `if`, `try`, `with` and loops."""
    for statement in body:
        if not isinstance(statement, _HOLDING):
            continue
        if isinstance(statement, _FUNCTIONS):
            function = FunctionFacts(file, statement, statement.name, owner, parent)
            file.functions.append(function)
            file.definitions[id(statement)] = function
            if owner is not None:
                owner.methods[statement.name] = function
            _outline(file, statement.body, None, function)
        elif isinstance(statement, ast.ClassDef):
            definition = ClassFacts(file, statement, statement.name)
            file.classes.append(definition)
            file.definitions[id(statement)] = definition
            _outline(file, statement.body, definition, parent)
        else:
            for block in _blocks(statement):
                _outline(file, block, owner, parent)


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
#: Statements that may hold definitions; a tuple, because a union is made anew at each question.
_HOLDING = (
    *(*_FUNCTIONS, ast.ClassDef, ast.If, ast.For, ast.AsyncFor, ast.While, ast.With),
    *(ast.AsyncWith, ast.Try, ast.Match),
)


def _blocks(statement: ast.stmt) -> Iterator[Sequence[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        yield getattr(statement, name, ())
    for handler in getattr(statement, "handlers", ()):
        yield handler.body
    for case in getattr(statement, "cases", ()):
        yield case.body
