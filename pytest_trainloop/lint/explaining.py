"""What `--list-rules` and `--explain` show."""

from __future__ import annotations

from inspect import cleandoc

from pytest_trainloop.lint import suppress
from pytest_trainloop.lint.pages import rule_page
from pytest_trainloop.lint.selection import (
    UNUSED_SUPPRESSION,
    UnknownNameError,
    describe_unknown,
)
from pytest_trainloop.rules import all_rules


def rule_list() -> str:
    """The rules by family, each with the first line of its page."""
    lines: list[str] = []
    rules = all_rules()
    width = max(map(len, rules), default=0)
    for family in sorted({rule.family for rule in rules.values()}):
        lines.append(f"{family}:")
        for name, rule in rules.items():
            if rule.family == family:
                lines.append(
                    f"  {name:<{width}}  {rule.summary()}{_where(rule.sees_source(), rule.default)}"
                )
    lines += ["suppressions:", f"  {UNUSED_SUPPRESSION:<{width}}  A comment suppresses nothing."]
    return "".join(f"{line}\n" for line in lines)


def page_of(name: str) -> str:
    """The page of a rule, the same that stands in the documentation.

    Raises:
        UnknownNameError: there is no such rule.
    """
    rules = all_rules()
    if name not in {*rules, UNUSED_SUPPRESSION}:
        raise UnknownNameError(describe_unknown(name, rules, "rule"))
    if name == UNUSED_SUPPRESSION:
        return f"# {name}\n\n{cleandoc(suppress.__doc__ or '')}\n"
    return rule_page(rules[name])


def _where(sees_source: bool, default: bool) -> str:
    if not sees_source:
        return " (seen in a run only)"
    return "" if default else " (off by default)"
