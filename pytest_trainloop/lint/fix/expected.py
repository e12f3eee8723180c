"""What a fix must come to: the same edits, made on a syntax tree instead of on the text.

The text is changed by the splice, so that all but a few characters stay as they are.
Whether that did what was meant, and nothing else, is proven by parsing the new text and
comparing it with the tree that is made here.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from copy import copy
from typing import TYPE_CHECKING

from pytest_trainloop.lint.fix.parsed import Parsed, parse
from pytest_trainloop.lint.fix.splices import CannotFixError

if TYPE_CHECKING:
    from pytest_trainloop.rules import Edit
    from pytest_trainloop.source.facts import Place

_HOLE = "_"


def expected_tree(text: str, edits: Iterable[Edit]) -> ast.Module:
    """The tree of `text` after the edits.

    Raises:
        CannotFixError: an edit names a place that holds nothing of its kind.
    """
    parsed = Parsed(text)
    # Every place is looked up before the first change, which would shift the others.
    changes = [_planned(parsed, edit) for edit in edits]
    for change in changes:
        change()
    return parsed.tree


def same_tree(first: ast.AST, second: ast.AST) -> bool:
    """Whether two trees are the same program: they differ at most in where things stand."""
    pairs: list[tuple[object, object]] = [(first, second)]
    while pairs:
        one, other = pairs.pop()
        if type(one) is not type(other):
            return False
        if isinstance(one, ast.AST):
            pairs += [
                (getattr(one, name, None), getattr(other, name, None)) for name in one._fields
            ]
        elif isinstance(one, list) and isinstance(other, list):
            if len(one) != len(other):
                return False
            pairs += zip(one, other, strict=True)
        elif repr(one) != repr(other):
            return False
    return True


def only_expression(code: str) -> ast.expr:
    """The expression that `code` is.

    Raises:
        CannotFixError: it is something else.
    """
    body = parse(f"(\n{code}\n)").body
    if len(body) == 1 and isinstance(body[0], ast.Expr):
        return body[0].value
    raise CannotFixError("the code of the edit is not an expression")


def _planned(parsed: Parsed, edit: Edit) -> Callable[[], None]:
    """The change of the tree that `edit` asks for, not made yet."""
    if edit.kind in _NEW_EXPRESSION:
        old = parsed.expression_at(edit.place)
        new = _NEW_EXPRESSION[edit.kind](old, edit.code)
        return lambda: _exchange(parsed.tree, old, new)
    if edit.kind == "decorate":
        function = parsed.function_at(edit.place)
        decorator = only_expression(edit.code.strip().removeprefix("@"))
        return lambda: function.decorator_list.append(decorator)
    here = _Anchor(parsed, edit.place)
    there = _Anchor(parsed, edit.to) if edit.to else here
    return lambda: _IN_BLOCKS[edit.kind](here, there, edit.code)


def _exchange(tree: ast.AST, old: ast.expr, new: ast.expr) -> None:
    """Put `new` where `old` hangs."""
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if value is old:
                setattr(node, name, new)
                return
            if isinstance(value, list) and (places := [v is old for v in value]).count(True):
                value[places.index(True)] = new
                return


def _appended(old: ast.expr, code: str) -> ast.expr:
    tail = ast.Expr(only_expression(_HOLE + code))
    for part in ast.walk(tail):
        if isinstance(part, ast.Name) and part.id == _HOLE:
            _exchange(tail, part, old)
            return tail.value
    raise CannotFixError("the code of the edit does not follow an expression")


def _with_argument(old: ast.expr, code: str) -> ast.expr:
    call = only_expression(f"{_HOLE}(\n{code}\n)")
    if not isinstance(old, ast.Call) or not isinstance(call, ast.Call) or len(call.keywords) != 1:
        raise CannotFixError("a keyword argument is added to a call")
    (keyword,) = call.keywords
    names = [present.arg for present in old.keywords]
    new = copy(old)
    new.keywords = [*old.keywords, keyword]
    if keyword.arg in names:
        new.keywords = list(old.keywords)
        new.keywords[names.index(keyword.arg)] = keyword
    return new


_NEW_EXPRESSION: dict[str, Callable[[ast.expr, str], ast.expr]] = {
    "append": _appended,
    "replace": lambda _, code: only_expression(code),
    "add-argument": _with_argument,
}


class _Anchor:
    """A statement that an edit is about, found again after its block has changed."""

    def __init__(self, parsed: Parsed, place: Place) -> None:
        slot = parsed.slot_at(place)
        self.block = slot.block
        self.node = slot.node
        self.in_module = slot.block is parsed.tree.body

    @property
    def index(self) -> int:
        for index, node in enumerate(self.block):
            if node is self.node:
                return index
        raise CannotFixError("another edit has taken the statement away")

    def insert(self, nodes: list[ast.stmt], *, after: bool) -> None:
        index = self.index + after
        self.block[index:index] = nodes

    def remove(self) -> None:
        index = self.index
        lonely = len(self.block) == 1 and not self.in_module
        self.block[index : index + 1] = [ast.Pass()] if lonely else []


def _insert_before(here: _Anchor, _: _Anchor, code: str) -> None:
    here.insert(parse(code).body, after=False)


def _insert_after(here: _Anchor, _: _Anchor, code: str) -> None:
    here.insert(parse(code).body, after=True)


def _delete(here: _Anchor, _: _Anchor, _code: str) -> None:
    here.remove()


def _move_before(here: _Anchor, there: _Anchor, _: str) -> None:
    here.remove()
    there.insert([here.node], after=False)


def _move_after(here: _Anchor, there: _Anchor, _: str) -> None:
    here.remove()
    there.insert([here.node], after=True)


def _wrap(here: _Anchor, there: _Anchor, code: str) -> None:
    (header,) = parse(f"{code}\n pass").body
    first, last = here.index, there.index
    if here.block is not there.block or first > last:
        raise CannotFixError("the statements to wrap do not follow each other")
    wrapped = here.block[first : last + 1]
    here.block[first : last + 1] = [header]
    header.body = wrapped  # type: ignore[attr-defined] # a header has a body, or it did not parse


_IN_BLOCKS: dict[str, Callable[[_Anchor, _Anchor, str], None]] = {
    "insert-before": _insert_before,
    "insert-after": _insert_after,
    "delete": _delete,
    "move-before": _move_before,
    "move-after": _move_after,
    "wrap": _wrap,
}
