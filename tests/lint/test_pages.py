"""The page of a rule, as it stands in the documentation and as `--explain` shows it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from pytest_trainloop.lint.cli import main
from pytest_trainloop.lint.pages import rule_page
from pytest_trainloop.rules import Bad, Edit, Finding, Fix, Good, Rule, all_rules
from pytest_trainloop.source.facts import FileFacts, Place


def toy_rule() -> type[Rule]:
    """A rule with one of everything that a page shows."""

    class SpelledOut(Rule):
        """A number is spelled out.

        Symptom: readers stumble.

        Why: nobody reads
        words as numbers.

        What torch does: nothing.

        Limits: only `one`.
        """

        __module__ = "rules.wording.spelled_out"
        since = "0.1"
        default = False
        triggers = ("one",)
        sources = ("https://example.org/one", "Strunk, The Elements of Style")
        examples = (
            Bad("in words", "import a\nprint(one)  # error", fixed="import a\nprint(1)  # error"),
            Good("in digits", "print(1)"),
            Bad("in another file", "print(b.one)  # error", beside=(("b.py", "one = 1\n"),)),
        )

        def lint(self, file: FileFacts) -> Iterator[Finding]:
            """Find it where the example has it."""
            place = Place(file.path, 2, 7, 2, 10)
            fix = Fix((Edit("replace", place, "1"),), safe=True)
            yield self.finding(place, "`one` is a word", "write `1`", fix)

    return SpelledOut


PAGE = """\
# spelled-out

A number is spelled out.

- Family: wording
- Seen: in source (`trainloop-lint`)
- By default: off; `--extend-select spelled-out` turns it on
- Fix: `--fix`
- Since: 0.1

## Symptom

Readers stumble.

## Why

Nobody reads
words as numbers.

## Wrong: in words

```python
import a
print(one)  # error
```

The linter says:

```text
spelled-out: `one` is a word
  help: write `1`
```

After `--fix`:

```python
import a
print(1)
```

## Right: in digits

```python
print(1)
```

## What torch does

Nothing.

## Limits

Only `one`.

## Edge cases

### Wrong: in another file

```python
print(b.one)  # error
```

With `b.py`:

```python
one = 1
```

## Sources

- <https://example.org/one>
- Strunk, The Elements of Style
"""


def test_a_page_says_all_that_the_file_of_the_rule_says() -> None:
    """First what goes wrong and what to write, then the edge cases."""
    assert rule_page(toy_rule()()) == PAGE


@pytest.mark.parametrize("name", list(all_rules()))
def test_explain_shows_the_page_of_the_documentation(name: str) -> None:
    """There is one text, wherever it is read."""
    result = CliRunner().invoke(main, ["--explain", name])
    assert result.exit_code == 0
    assert result.output == rule_page(all_rules()[name])
