"""Cutting a module's text into its statements gives what parsing the whole of it gives."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path
from textwrap import dedent

import pytest

from pytest_trainloop.source.extents import Extents, extents_of
from pytest_trainloop.source.sections import cut

STDLIB = Path(sysconfig.get_path("stdlib"))
MODULES = sorted(path.name for path in STDLIB.glob("*.py"))


def shape(node: ast.AST) -> str:
    return ast.dump(node, include_attributes=True)


@pytest.mark.parametrize("name", MODULES[::3])
def test_the_sections_of_a_module_parse_to_its_statements_with_their_lines(name: str) -> None:
    """Python's own modules hold strings, decorators and comments of every kind."""
    text = (STDLIB / name).read_text(encoding="utf-8")
    sections = cut(text)
    parts = ast.parse(sections.rest).body
    for named in sections.named.values():
        parts += [statement for section in named for statement in section.parsed()]
    parts.sort(key=lambda statement: (statement.lineno, statement.col_offset))
    assert list(map(shape, parts)) == list(map(shape, ast.parse(text).body))


def test_definitions_in_strings_are_no_sections() -> None:
    text = dedent(
        '''
        """
        def in_docstring():
            pass
        """
        PAGE = """
        class InPage:
        # a quote: "
        """  # another: "
        def real(quote='"""'):
            """It's a docstring.

        def in_it(): ...
            """
        after = 1
        '''
    )
    assert set(cut(text).named) == {"PAGE", "real", "after"}


def test_what_binds_more_than_one_name_or_none_stays_with_the_rest() -> None:
    text = (
        "a = b = 1\nc = 2; d = 3\ne[0] = 4\nf, g = 5, 6\nh == 7\ni += 8\nj: int = 9\nk = l == m\n"
    )
    assert set(cut(text).named) == {"j", "k"}


def test_decorators_and_continuations_belong_to_their_statement() -> None:
    text = dedent(
        """\
        @first
        @second(
        1,
        )
        def f(
        a,
        ):
            pass
        x = [
            1,
        ]
        try:
            y = 1
        except E:
            y = 2
        """
    )
    sections = cut(text)
    assert [section.line for section in sections.named["f"]] == [1]
    assert sections.rest.strip().startswith("try:")


def test_functions_are_found_by_their_indentation() -> None:
    text = dedent(
        """
        class Net(Module):
            def __init__(self):
                self.fc = 1

            async def forward(self, x):
                def inner():
                    return x

                return inner()

        def train(net):
            Net()
        """
    )
    found = extents_of(text)
    assert [(each.name, each.known_as) for each in found] == [
        ("__init__", ("Net", "__init__")),
        ("forward", ("Net", "forward")),
        ("inner", ("inner",)),
        ("train", ("train",)),
    ]
    assert text[found[1].start : found[1].end].rstrip().endswith("return inner()")
    assert text[found[2].start : found[2].end].rstrip().endswith("return inner()")


def test_a_function_reaches_a_place_through_those_it_mentions() -> None:
    text = dedent(
        """
        def leaf():
            loss.backward()

        def caller():
            return leaf()

        def cousin():
            return leaflet()

        def outermost():
            caller()
        """
    )
    found = extents_of(text)
    extents = Extents(text, found)
    leading = {each.name for each in found if extents.leads_to(each, ["backward"])}
    assert leading == {"leaf", "caller", "outermost"}
    assert {each.name for each in extents.reaching([text.index("caller()\n")])} == {"outermost"}
