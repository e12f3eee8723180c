"""What holds for every fix, in programs laid out in every way that Python takes."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_trainloop.lint.fix import CannotFixError, Parsed, splices_of
from pytest_trainloop.lint.fix.splices import Splice, overlap, smallest, spliced
from pytest_trainloop.rules import Edit, Fix
from pytest_trainloop.source.facts import Place

# Statements, each a list of lines to be indented; `>` stands for a level of indentation.
PLAIN = [
    ["step()"],
    ["loss.backward()  # now"],
    ["total += loss + é"],
    ["save(", ">a,", ">b=1,  # one", ")"],
    ["x = (a +", "> b)  # two"],
]
# Statements whose lines do not all begin or end with them.
AWKWARD = [
    ["text = '''", "  # not a comment", "'''"],
    ["text = f'''", "{loss}'''"],
    ["a(); b(); c()  # all"],
    ["a();"],
    ["if a: b()"],
    ["for x in y: b(); c()  # inline"],
    ["x = a + \\", "> b"],
    ["class A: x = 1"],
]
HEADERS = [
    [["for x, y in loader:"]],
    [["if a:"], ["elif b:"], ["else:"]],
    [["with a as b, c:"]],
    [["try:"], ["except E:"], ["finally:"]],
    [["@a", "# between", "@b", "def f(self):"]],
    [["async def f(", ">x,", "):  # f"]],
]
SPACES = st.sampled_from([[], [""], ["# note"], ["", "# note", "# more"], ["   "]])


def blocks(statements: list[list[str]]) -> st.SearchStrategy[list[str]]:
    """The lines of a block, with comments and blank lines between its statements."""
    simple = st.sampled_from(statements)
    statement = st.recursive(simple, _compound, max_leaves=8)
    return _joined(st.lists(statement, min_size=1, max_size=4))


def _joined(statements: st.SearchStrategy[list[list[str]]]) -> st.SearchStrategy[list[str]]:
    def with_spaces(parts: list[list[str]]) -> st.SearchStrategy[list[str]]:
        spaces = st.lists(SPACES, min_size=len(parts), max_size=len(parts))
        return spaces.map(
            lambda gaps: [s for gap, part in zip(gaps, parts, strict=True) for s in [*gap, *part]]
        )

    return statements.flatmap(with_spaces)


def _compound(inner: st.SearchStrategy[list[str]]) -> st.SearchStrategy[list[str]]:
    body = _joined(st.lists(inner, min_size=1, max_size=3))

    def filled(headers: list[list[str]]) -> st.SearchStrategy[list[str]]:
        bodies = st.tuples(*(body for _ in headers))
        return bodies.map(
            lambda filling: [
                line
                for header, lines in zip(headers, filling, strict=True)
                for line in [*header, *(_deeper(line) for line in lines)]
            ]
        )

    return st.sampled_from(HEADERS).flatmap(filled)


def _deeper(line: str) -> str:
    """One level more, but for what stands inside a string."""
    return line if line.startswith(("  #", "'''", "{loss}")) or not line.strip() else f">{line}"


def programs(statements: list[list[str]]) -> st.SearchStrategy[str]:
    """Whole programs: indented with blanks or tabs, with any line end, with or without a last."""

    def written(lines: list[str], unit: str, newline: str, has_end: bool, feed: bool) -> str:
        text = newline.join(re.sub("^>+", lambda m: unit * len(m.group()), s) for s in lines)
        return ("\f" + newline if feed else "") + text + (newline if has_end else "")

    return st.builds(
        written,
        blocks(statements),
        st.sampled_from(["    ", "  ", "\t"]),
        st.sampled_from(["\n", "\r\n", "\r"]),
        st.booleans(),
        st.booleans(),
    )


def place(text: str, node: ast.stmt | ast.expr) -> Place:
    """The place of a node as rules give it: columns count characters."""
    lines = re.split(r"\r\n|\r|\n", text)

    def column(line: int, offset: int) -> int:
        return len(lines[line - 1].encode()[:offset].decode()) + 1

    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return Place(
        "train.py",
        node.lineno,
        column(node.lineno, node.col_offset),
        node.end_lineno,
        column(node.end_lineno, node.end_col_offset),
    )


def statements_of(text: str) -> list[ast.stmt]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]


def expressions_of(text: str) -> list[ast.expr]:
    """The expressions that are read, not those inside an f-string."""
    tree = ast.parse(text)
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
    }
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.expr)
        and id(node) not in inside
        and isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
    ]


def comments(text: str) -> Counter[str]:
    tokens = tokenize.generate_tokens(
        io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n")).readline
    )
    return Counter(token.string for token in tokens if token.type == tokenize.COMMENT)


def is_elif(text: str, node: ast.stmt) -> bool:
    begin = place(text, node)
    return re.split(r"\r\n|\r|\n", text)[begin.line - 1][begin.column - 1 :].startswith("elif")


@given(programs(PLAIN), st.sampled_from(["insert-before", "insert-after"]), st.data())
def test_a_statement_can_be_inserted_beside_every_statement_with_lines_of_its_own(
    text: str, kind: Any, data: st.DataObject
) -> None:
    """Exactly one statement comes, nothing of the text goes."""
    node = data.draw(st.sampled_from(statements_of(text)))
    fix = Fix((Edit(kind, place(text, node), "new()"),), safe=True)
    if is_elif(text, node):
        with pytest.raises(CannotFixError):
            splices_of(Parsed(text), fix)
        return
    (splice,) = splices_of(Parsed(text), fix)
    after = spliced(text, [splice])
    assert splice.start == splice.end
    assert splice.text.strip() == "new()"
    assert len(statements_of(after)) == len(statements_of(text)) + 1
    assert comments(after) == comments(text)
    assert after.endswith(("\n", "\r")) == text.endswith(("\n", "\r"))


@given(programs(PLAIN), st.data())
def test_every_statement_with_lines_of_its_own_can_be_deleted(
    text: str, data: st.DataObject
) -> None:
    """All others stay; a block that would be empty gets `pass`."""
    node = data.draw(st.sampled_from([n for n in statements_of(text) if not is_elif(text, n)]))
    splices = splices_of(Parsed(text), Fix((Edit("delete", place(text, node)),), safe=True))
    after = spliced(text, splices)
    gone = Counter(type(part).__name__ for part in ast.walk(node) if isinstance(part, ast.stmt))
    before = Counter(type(part).__name__ for part in statements_of(text))
    left = Counter(type(part).__name__ for part in statements_of(after))
    assert left - Counter(["Pass"]) == before - gone
    assert comments(after) <= comments(text)


@given(programs(PLAIN), st.data())
def test_code_can_be_appended_to_every_expression(text: str, data: st.DataObject) -> None:
    """With at most one pair of parentheses more, and without a change to anything else."""
    node = data.draw(st.sampled_from(expressions_of(text)))
    splices = splices_of(Parsed(text), Fix((Edit("append", place(text, node), ".new"),), safe=True))
    after = spliced(text, splices)
    assert after.replace(".new", "").count("(") - text.count("(") in (0, 1)
    assert re.sub(r"[()]|\.new", "", after) == re.sub(r"[()]", "", text)
    assert ast.dump(ast.parse(after)).count("attr='new'") == 1


@pytest.mark.parametrize(
    "kind", ["insert-before", "insert-after", "delete", "move-before", "move-after", "wrap"]
)
@settings(max_examples=60)
@given(programs(PLAIN + AWKWARD), st.data())
def test_an_edit_of_statements_is_made_whole_or_not_at_all(
    kind: Any, text: str, data: st.DataObject
) -> None:
    """However the statements lie: no comment but a deleted one's goes, strings stay, it parses."""
    nodes = statements_of(text)
    here, there = data.draw(st.sampled_from(nodes)), data.draw(st.sampled_from(nodes))
    code = "with n:" if kind == "wrap" else "new()"
    edit = Edit(kind, place(text, here), code, place(text, there))
    try:
        splices = splices_of(Parsed(text), Fix((edit,), safe=True))
    except CannotFixError:
        return
    after = spliced(text, splices)
    if kind == "delete":
        assert comments(after) <= comments(text)
        return
    assert comments(after) == comments(text)
    assert strings(after) == strings(text)
    if kind.startswith(("insert", "wrap")):
        assert all(splice.start == splice.end for splice in splices)
    if kind == "wrap":
        assert [part for part in statements_of(after) if isinstance(part, ast.With)]


def strings(text: str) -> Counter[str]:
    return Counter(
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_smallest_change_turns_one_text_into_the_other(before: str, after: str) -> None:
    """And shares nothing with what stands before and behind it."""
    splice = smallest(3, before, after)
    assert spliced(f"___{before}", [splice]) == f"___{after}"
    kept = len(before) - (splice.end - splice.start)
    assert kept + len(splice.text) == len(after)


@given(st.text(min_size=1), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=4))
def test_changes_that_meet_are_refused_or_harmless(text: str, ends: list[tuple[int, int]]) -> None:
    """Changes that do not overlap give the same in whatever order they are given."""
    splices = [
        Splice(min(len(text), a), min(len(text), a + b), f"<{n}>") for n, (a, b) in enumerate(ends)
    ]
    meet = any(overlap([a], [b]) for i, a in enumerate(splices) for b in splices[:i])
    if not meet:
        assert spliced(text, splices) == spliced(text, reversed(splices))
