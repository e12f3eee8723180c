"""The gate asks for words in an order that saves searches, and its answer does not depend on it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.lint.gate import Gate
from pytest_trainloop.rules import all_rules

RULES = {name: rule for name, rule in all_rules().items() if rule.sees_source()}
WORDS = sorted({w for rule in RULES.values() for each in rule.triggers for w in each.split("|")})
GATE = Gate(RULES)


@given(words=st.lists(st.sampled_from(WORDS), max_size=60), between=st.sampled_from(["", " ", "a"]))
def test_it_opens_to_the_rules_whose_words_stand_in_a_file(words: list[str], between: str) -> None:
    text = f"import torch {between.join(words)}"
    opened = {rule.name for rule in GATE.open_to(text.encode())}
    expected = {
        name
        for name, rule in RULES.items()
        if all(any(word in text for word in each.split("|")) for each in rule.triggers)
    }
    assert opened == expected


def test_it_is_shut_to_what_names_no_framework() -> None:
    assert GATE.open_to(" ".join(WORDS).replace("torch", "").encode()) != []
    assert GATE.open_to(b"loss.backward(); optimizer.step()") == []
