"""Each rule's examples, linted: they are its page and its test at once.

A bad example is flagged by its own rule on the marked lines and nowhere else, and comes to
its `fixed` code. A good example is silent under every rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_trainloop.lint.config import Settings
from pytest_trainloop.lint.document import Document, read_document, split_lines
from pytest_trainloop.lint.engine import Run, lint
from pytest_trainloop.lint.fix import FixResult, fix_document
from pytest_trainloop.lint.outcome import Problem
from pytest_trainloop.lint.selection import Selection
from pytest_trainloop.rules import Bad, Example, Good, Rule, all_rules

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

EVERY_RULE = "ALL"
MAIN = "train.py"
_MARK = re.compile(r"#\s*error\b")


def examples(kind: type[Example]) -> list[ParameterSet]:
    """Each example of a kind, of the rules that the linter can see broken."""
    return [
        pytest.param(rule, example, id=f"{name}: {example.title}")
        for name, rule in all_rules().items()
        for example in rule.examples
        if rule.sees_source() and isinstance(example, kind)
    ]


def fixed_examples() -> list[ParameterSet]:
    """Each bad example that says what its fix makes of it."""
    return [
        pytest.param(rule, example, id=f"{name}: {example.title}")
        for name, rule in all_rules().items()
        for example in rule.examples
        if isinstance(example, Bad) and example.fixed is not None
    ]


class Project:
    """An example as files on disk."""

    def __init__(self, folder: Path, example: Example, program: bytes | None = None) -> None:
        self.folder = folder
        self.main = folder / MAIN
        for path, code in example.beside:
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code, encoding="utf-8")
        self.main.write_bytes(example.program.encode() if program is None else program)

    def problems(self, *rules: str) -> tuple[Problem, ...]:
        """What these rules find in all files."""
        folder = str(self.folder)
        settings = Settings(folder, selection=Selection(select=rules))
        report = lint(Run([folder], settings, root=folder, jobs=1)).report
        assert report.errors == ()
        return report.problems

    def fixed(self, rule: Rule) -> FixResult:
        """The main file after all fixes of a rule."""

        def lint_changed(document: Document) -> Sequence[Problem]:
            document.write(document.text)
            return [p for p in self.problems(rule.name) if p.path == str(self.main)]

        return fix_document(read_document(str(self.main)), lint_changed, unsafe=True)


def marked_places(folder: Path) -> set[tuple[str, int]]:
    """The lines that carry a `# error` mark, in all files."""
    return {
        (str(file), number)
        for file in folder.rglob("*.py")
        for number, line in enumerate(split_lines(file.read_text(encoding="utf-8")), 1)
        if _MARK.search(line)
    }


@pytest.mark.parametrize(("rule", "example"), examples(Bad))
def test_a_bad_example_is_flagged_on_its_marked_lines(
    rule: Rule, example: Bad, tmp_path: Path
) -> None:
    """By its own rule, on each of them, and nowhere else."""
    project = Project(tmp_path, example)
    marked = marked_places(tmp_path)
    assert marked, "mark each offending line with `# error`"
    assert {(p.path, p.line) for p in project.problems(rule.name)} == marked


@pytest.mark.parametrize(("rule", "example"), examples(Good))
def test_a_good_example_is_silent_under_every_rule(
    rule: Rule, example: Good, tmp_path: Path
) -> None:
    """What one rule shows as right, no other rule may call wrong."""
    found = Project(tmp_path, example).problems(EVERY_RULE)
    assert [f"{p.line}: {p.rule}: {p.message}" for p in found] == [], f"in a Good of {rule.name}"


@pytest.mark.parametrize(("rule", "example"), examples(Bad))
def test_each_fix_that_a_rule_offers_can_be_made(rule: Rule, example: Bad, tmp_path: Path) -> None:
    """Afterwards nothing with a fix is left, and a second run changes nothing."""
    project = Project(tmp_path, example)
    first = project.fixed(rule)
    assert first.given_up == ()
    assert not any(problem.fixable for problem in project.problems(rule.name))
    assert project.fixed(rule).text == first.text


@pytest.mark.parametrize(("rule", "example"), fixed_examples())
def test_a_fix_comes_to_the_code_on_the_page(rule: Rule, example: Bad, tmp_path: Path) -> None:
    """And the rule has nothing more to say."""
    project = Project(tmp_path, example)
    assert project.fixed(rule).text == example.fixed_program
    assert project.problems(rule.name) == ()


def with_tabs(code: str) -> str:
    """The code with a tab for each level of indentation."""
    return re.sub(r"^(?: {4})+", lambda m: "\t" * (len(m.group()) // 4), code, flags=re.MULTILINE)


DRESSES: dict[str, Callable[[str], str]] = {
    "with CRLF": lambda code: code.replace("\n", "\r\n"),
    "with tabs": with_tabs,
    "with a byte order mark": lambda code: f"\ufeff{code}",
    "with a form feed": lambda code: f"\f\n{code}",
    "without a last line end": lambda code: code.rstrip("\n"),
}


@pytest.mark.parametrize("dress", list(DRESSES))
@pytest.mark.parametrize(("rule", "example"), fixed_examples())
def test_a_fix_keeps_how_the_file_is_written(
    rule: Rule, example: Bad, dress: str, tmp_path: Path
) -> None:
    """Line ends, tabs and what editors put at the edges of a file."""
    dressed = DRESSES[dress]
    project = Project(tmp_path, example, dressed(example.program).encode())
    project.fixed(rule)
    assert project.main.read_bytes().decode() == dressed(example.fixed_program or "")


@pytest.mark.parametrize(
    "rule",
    [rule for rule in all_rules().values() if rule.sees_source()],
    ids=lambda rule: rule.name,
)
def test_the_page_of_a_rule_begins_with_a_bad_example_and_its_cure(rule: Rule) -> None:
    """First what goes wrong, then what to write; titles tell the examples apart."""
    assert [type(example) for example in rule.examples[:2]] == [Bad, Good]
    titles = [(type(example), example.title) for example in rule.examples]
    assert len(set(titles)) == len(titles)
