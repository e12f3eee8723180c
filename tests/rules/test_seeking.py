"""Seeking works on any text: it sees files before anybody knows whether they are Python."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.rules import Rule, all_rules

RULES = [rule for rule in all_rules().values() if rule.sees_source()]
PROGRAMS = sorted({example.program for rule in RULES for example in rule.examples})
#: A default that makes a loss, brackets that never close, names of other scripts.
ODD = (
    "def __init__(self, criterion=nn.CrossEntropyLoss(), *args):\n",
    "self.x: list[nn.Module] = (",
    "for é in range(start, n): loss_fct((a - b) ** 2).mean(",
    "forward(\n    def forward(self, x):\n",
)


@st.composite
def torn_texts(draw: st.DrawFn) -> str:
    """Pieces of programs about training, cut anywhere and put together."""
    pieces = draw(st.lists(st.sampled_from([*PROGRAMS, *ODD]), min_size=1, max_size=3))
    text = "".join(pieces)
    start = draw(st.integers(0, len(text)))
    return text[start : draw(st.integers(start, len(text)))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@given(text=torn_texts())
def test_what_is_sought_lies_inside_the_text(rule: Rule, text: str) -> None:
    assert all(0 <= offset <= len(text) for offset in rule.seek(text))
