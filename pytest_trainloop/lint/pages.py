"""The page of each rule, in `docs/rules/` and under `--explain`: what the rule's file says.

`python -m pytest_trainloop.pages` writes all pages.
"""

from __future__ import annotations

import re
from textwrap import dedent
from typing import TYPE_CHECKING

from pytest_trainloop.markdown import bullets, code_block, heading, page, sections, table
from pytest_trainloop.rules import Bad, Example, all_rules

if TYPE_CHECKING:
    from pytest_trainloop.rules import Finding, Rule

_OPTIONS = {True: "`--fix`", False: "`--unsafe-fixes`"}
# What was wrong is no longer.
_MARK = re.compile(r" *# error\b.*")
_INTRODUCTION = """\
A rule is a way a training loop goes wrong. `trainloop-lint` sees it in source,
`pytest -p trainloop` in a watched run; the rule's page says which. In the bad examples a comment
`# error` marks the lines that are reported.
"""


def rule_pages() -> dict[str, str]:
    """The pages of `docs/rules/` by file name: one for each rule, and the index."""
    pages = {f"{name}.md": rule_page(rule) for name, rule in all_rules().items()}
    return {"index.md": _index(), **pages}


def rule_page(rule: Rule) -> str:
    """The page of a rule, in Markdown."""
    told = sections(rule.__doc__)
    description = told.pop("", "")
    limits = told.pop("Limits", "")
    silence = told.pop("What torch does", "")
    found = {example: _findings(rule, example) for example in rule.examples}
    first = list(rule.examples[:2])
    others = rule.examples[2:]
    return page(
        heading(1, rule.name),
        rule.summary(),
        _facts(rule, [finding for findings in found.values() for finding in findings]),
        description,
        *(f"{heading(2, name)}\n\n{text}" for name, text in told.items()),
        *(_shown(2, example, found[example]) for example in first),
        silence and f"{heading(2, 'What torch does')}\n\n{silence}",
        limits and f"{heading(2, 'Limits')}\n\n{limits}",
        heading(2, "Edge cases") if others else "",
        *(_shown(3, example, found[example]) for example in others),
        heading(2, "Sources") if rule.sources else "",
        bullets(_link(source) for source in rule.sources),
    )


def _facts(rule: Rule, findings: list[Finding]) -> str:
    doors = [
        door
        for seen, door in (
            (rule.sees_source(), "in source (`trainloop-lint`)"),
            (rule.sees_runs(), "in a watched run (`pytest -p trainloop`)"),
        )
        if seen
    ]
    default = "on" if rule.default else f"off; `--extend-select {rule.name}` turns it on"
    return bullets(
        (
            f"Family: {rule.family}",
            f"Seen: {' and '.join(doors)}",
            *([f"By default: {default}"] if rule.sees_source() else []),
            f"Fix: {_fixes(findings)}",
            f"Since: {rule.since}",
        )
    )


def _fixes(findings: list[Finding]) -> str:
    """By which option the rule's findings are fixed, as far as its examples show."""
    kinds = sorted({finding.fix.safe for finding in findings if finding.fix}, reverse=True)
    if not kinds:
        return "none; the message says what to write"
    always = "" if all(finding.fix for finding in findings) else ", where it is certain"
    return " or ".join(_OPTIONS[safe] for safe in kinds) + always


def _shown(level: int, example: Example, findings: list[Finding]) -> str:
    """An example with what the linter says of it, and what its fix comes to."""
    kind = "Wrong" if isinstance(example, Bad) else "Right"
    parts = [heading(level, f"{kind}: {example.title}"), code_block(example.text)]
    for path, code in example.beside:
        parts += [f"With `{path}`:", code_block(code)]
    if findings:
        said = "\n".join(f"{f.rule}: {f.message}\n  help: {f.advice}" for f in findings)
        parts += ["The linter says:", code_block(said, "text")]
    fixes = [finding.fix for finding in findings if finding.fix]
    if isinstance(example, Bad) and example.fixed is not None and fixes:
        fixed = _MARK.sub("", dedent(example.fixed).strip("\n"))
        parts += [f"After {_OPTIONS[fixes[0].safe]}:", code_block(fixed)]
    return "\n\n".join(parts)


def _findings(rule: Rule, example: Example) -> list[Finding]:
    """What the linter says of an example that stands by itself."""
    from pytest_trainloop.source.read import read_source

    if not isinstance(example, Bad) or not rule.sees_source() or example.beside:
        return []
    findings = rule.lint(read_source(example.program, "train.py"))
    return sorted(findings, key=lambda finding: finding.place)


def _link(source: str) -> str:
    return f"<{source}>" if source.startswith("https://") else source


def _index() -> str:
    """All rules by family."""
    rules = all_rules().values()
    families = sorted({rule.family for rule in rules})
    parts: list[str] = []
    for family in families:
        rows = [_row(rule) for rule in rules if rule.family == family]
        parts += [heading(2, family.capitalize()), table(("rule", "what goes wrong", "seen"), rows)]
    return page(heading(1, "Rules"), _INTRODUCTION, *parts)


def _row(rule: Rule) -> tuple[str, ...]:
    doors = ["source"] * rule.sees_source() + ["run"] * rule.sees_runs()
    off = "" if rule.default else " (off by default)"
    return (f"[{rule.name}]({rule.name}.md)", rule.summary(), f"{', '.join(doors)}{off}")
