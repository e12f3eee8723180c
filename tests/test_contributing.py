"""Who follows CONTRIBUTING.md ends up with a rule that works."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from pytest_trainloop.rules import Rule
from pytest_trainloop.source.read import read_source

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
RULE = re.compile(r"```python\n# (pytest_trainloop/rules/\S+)\.py\n(.*?)```", re.DOTALL)


def rule_as_written() -> Rule:
    """The rule of CONTRIBUTING.md, as if it stood in its file."""
    found = RULE.search(CONTRIBUTING.read_text(encoding="utf-8"))
    assert found
    module = ModuleType(found[1].replace("/", "."))
    exec(compile(found[2], f"{found[1]}.py", "exec"), module.__dict__)  # noqa: S102 -- our own
    (rule,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    )
    assert issubclass(rule, Rule)
    return rule()


def test_the_rule_is_complete_and_its_examples_say_where_it_speaks() -> None:
    rule = rule_as_written()
    assert rule.name == "forward-called-directly"
    for example in rule.examples:
        found = rule.lint(read_source(example.program, "example.py"))
        assert [finding.place.line for finding in found] == example.marked_lines


def test_adding_a_rule_takes_one_screen() -> None:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    section = text.partition("## Add a rule\n")[2].partition("\n## ")[0]
    assert len(section.splitlines()) <= 60
