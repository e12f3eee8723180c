"""The lines of a text, found fast where that is possible."""

from __future__ import annotations

import ast
import re

from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.source.definitions import SourceFile


@given(st.text(st.sampled_from("a\n\r\f é\x1c"), max_size=12))
def test_lines_and_their_starts_are_those_that_python_counts(rest: str) -> None:
    text = f"x = 1 # {rest}" if not rest.strip("\n\r\f ") else f"'''{rest}'''"
    file = SourceFile("a.py", text, ast.Module([], []))
    assert file.lines == re.split("\r\n|\r|\n", text)
    starts = [0, *(match.end() for match in re.finditer("\r\n|\r|\n", text))]
    assert [file.start_of(number + 1) for number in range(len(starts))] == starts
