"""Edits of expressions: libcst builds the new code, in parentheses where it needs them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from pytest_trainloop.lint.fix.splices import CannotFixError, Splice, smallest

if TYPE_CHECKING:
    import libcst as cst

    from pytest_trainloop.lint.fix.parsed import Parsed, Span
    from pytest_trainloop.rules import Edit

_HOLE = "_"
_BLANK = " \t\f\r\n"


def expression_splices(parsed: Parsed, edit: Edit) -> Iterator[tuple[Splice, ...]]:
    """The ways to write the edit, plainest first; which of them mean it is for the tree to say.

    Raises:
        CannotFixError: the expression cannot be read, or `code` does not fit it.
    """
    bare = parsed.span(parsed.expression_at(edit.place))
    outer = _with_parentheses(parsed.text, bare)
    # Which stretch to change, and whether what was there, or all of it, goes in parentheses.
    for span, around_old, around_all in (
        (bare, False, False),
        (outer, False, False),
        (bare, True, False),
        (bare, False, True),
        (bare, True, True),
    ):
        source = parsed.text[slice(*span)]
        new = _rebuilt(source, edit, around_old, around_all)
        yield (smallest(span[0], source, new),)


def _with_parentheses(text: str, span: Span) -> Span:
    """The span with the parentheses around it, if there are any: perhaps those of a call."""
    start, end = span
    before = text[:start].rstrip(_BLANK)
    after = text[end:].lstrip(_BLANK)
    if before.endswith("(") and after.startswith(")"):
        return len(before) - 1, len(text) - len(after) + 1
    return span


def _rebuilt(source: str, edit: Edit, around_old: bool, around_all: bool) -> str:
    """The code of the edited expression."""
    import libcst as cst

    newline = re.search(r"\r\n|\r", source)
    module = cst.Module([], default_newline=newline.group() if newline else "\n")
    old = _read(source)
    if module.code_for_node(old) != source:
        raise CannotFixError("the expression would not be written as it was")
    if around_old:
        old = _parenthesized(old)
    if edit.kind == "append":
        new = _appended(old, edit.code)
    elif edit.kind == "replace":
        new = _read(edit.code)
    else:
        new = _with_argument(old, edit.code)
    return module.code_for_node(_parenthesized(new) if around_all else new)


def _read(source: str) -> cst.BaseExpression:
    """The expression that `source` is, which may run over lines without parentheses of its own."""
    import libcst as cst

    try:
        node = cst.parse_expression(f"({source})")
    except (cst.ParserSyntaxError, RecursionError) as error:
        raise CannotFixError("the expression cannot be read") from error
    return node.with_changes(lpar=node.lpar[1:], rpar=node.rpar[:-1])


def _parenthesized(node: cst.BaseExpression) -> cst.BaseExpression:
    import libcst as cst

    return node.with_changes(
        lpar=[cst.LeftParen(), *node.lpar], rpar=[*node.rpar, cst.RightParen()]
    )


def _appended(old: cst.BaseExpression, code: str) -> cst.BaseExpression:
    import libcst as cst

    tail = _read(_HOLE + code)
    hole: cst.CSTNode = tail
    while not isinstance(hole, cst.Name):
        first = next((part for part in hole.children if isinstance(part, cst.BaseExpression)), None)
        if first is None:
            raise CannotFixError("the code of the edit does not follow an expression")
        hole = first
    return cast("cst.BaseExpression", tail.deep_replace(hole, old))


def _with_argument(old: cst.BaseExpression, code: str) -> cst.BaseExpression:
    import libcst as cst

    call = _read(f"{_HOLE}({code})")
    if not isinstance(old, cst.Call) or not isinstance(call, cst.Call) or len(call.args) != 1:
        raise CannotFixError("a keyword argument is added to a call")
    (new,) = call.args
    for index, arg in enumerate(old.args):
        if arg.keyword and new.keyword and arg.keyword.value == new.keyword.value:
            args = list(old.args)
            args[index] = arg.with_changes(value=new.value)
            return old.with_changes(args=args)
    if not old.args:
        return old.with_changes(args=[new])
    *others, last = old.args
    if isinstance(last.value, cst.GeneratorExp) and not last.value.lpar:
        last = last.with_changes(value=_parenthesized(last.value))
    return old.with_changes(args=[*others, *_joined(old, last, new)])


def _joined(call: cst.Call, last: cst.Arg, new: cst.Arg) -> tuple[cst.Arg, cst.Arg]:
    """The last argument and the new one after it, laid out as the others of the call are."""
    import libcst as cst

    trailing = last.comma if isinstance(last.comma, cst.Comma) else None
    closing = trailing.whitespace_after if trailing else last.whitespace_after_arg
    comma = (trailing or cst.Comma()).with_changes(
        whitespace_after=_kept(closing, _space_before_next(call, closing))
    )
    if trailing:
        own = cst.Comma(whitespace_after=_bare(closing))
        return last.with_changes(comma=comma), new.with_changes(comma=own)
    nothing = cst.SimpleWhitespace("")
    return (
        last.with_changes(comma=comma, whitespace_after_arg=nothing),
        new.with_changes(whitespace_after_arg=_bare(closing)),
    )


def _space_before_next(
    call: cst.Call, closing: cst.BaseParenthesizableWhitespace
) -> cst.BaseParenthesizableWhitespace:
    """What would stand before one more argument: what stands before the last one."""
    import libcst as cst

    space: cst.BaseParenthesizableWhitespace = cst.SimpleWhitespace(" ")
    before = call.args[-2].comma if len(call.args) > 1 else None
    if isinstance(before, cst.Comma):
        space = before.whitespace_after
    on_one_line = isinstance(space, cst.SimpleWhitespace)
    # Behind a comment there is no way but a new line.
    if on_one_line and (before is None or not _is_bare(closing)):
        opening = call.whitespace_before_args
        space = opening if isinstance(opening, cst.ParenthesizedWhitespace) else space
    return space


def _kept(
    closing: cst.BaseParenthesizableWhitespace, space: cst.BaseParenthesizableWhitespace
) -> cst.BaseParenthesizableWhitespace:
    """`space`, with the comments of `closing`, which are about what stands before them."""
    import libcst as cst

    if _is_bare(closing):
        return _bare(space)
    if isinstance(space, cst.ParenthesizedWhitespace):
        return closing.with_changes(indent=space.indent, last_line=space.last_line)
    return closing


def _bare(space: cst.BaseParenthesizableWhitespace) -> cst.BaseParenthesizableWhitespace:
    """The white space without comments and empty lines."""
    import libcst as cst

    if not isinstance(space, cst.ParenthesizedWhitespace):
        return space
    first = space.first_line.with_changes(whitespace=cst.SimpleWhitespace(""), comment=None)
    return space.with_changes(first_line=first, empty_lines=[])


def _is_bare(space: cst.BaseParenthesizableWhitespace) -> bool:
    import libcst as cst

    if not isinstance(space, cst.ParenthesizedWhitespace):
        return True
    return space.first_line.comment is None and not space.empty_lines
