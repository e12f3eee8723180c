"""The page of each check, in `docs/checks/`: what the check's file says.

`python -m pytest_trainloop.pages` writes all pages.
"""

from __future__ import annotations

from pytest_trainloop.checks import check_class, check_names
from pytest_trainloop.checks._check import Check, Example, Fails, Passes, Unjudged
from pytest_trainloop.markdown import (
    bullets,
    code_block,
    heading,
    options,
    page,
    sections,
    table,
)

_KINDS = {Passes: "Passes", Fails: "Fails", Unjudged: "Cannot be judged"}
_INTRODUCTION = """\
A check is a promise that a training loop keeps: a marker of pytest. The body of the test calls the
loop as it is.
"""


def check_pages() -> dict[str, str]:
    """The pages of `docs/checks/` by file name: one for each check, and the index."""
    checks = {name: check_class(name) for name in check_names()}
    pages = {f"{name}.md": check_page(check) for name, check in checks.items()}
    return {"index.md": _index(checks), **pages}


def check_page(check: type[Check]) -> str:
    """The page of a check, in Markdown."""
    told = sections(check.__doc__)
    description = told.pop("", "")
    listed = f"{told.pop('Options', '')}\n{sections(Check.__doc__)['Options']}"
    first = [
        next(one for one in check.examples if isinstance(one, kind)) for kind in (Passes, Fails)
    ]
    others = [example for example in check.examples if example not in first]
    return page(
        heading(1, check.name),
        check.summary(),
        description,
        code_block(f"@pytest.mark.{check.signature()}"),
        f"{heading(2, 'Options')}\n\n{options(listed)}",
        heading(2, "Fixtures that the test uses") if check.needs else "",
        bullets(f"`{fixture}`: {reason}" for fixture, reason in check.needs.items()),
        *(_shown(2, example) for example in first),
        *(f"{heading(2, name)}\n\n{text}" for name, text in told.items()),
        heading(2, "Edge cases") if others else "",
        *(_shown(3, example) for example in others),
        f"Since {check.since}.",
    )


def _shown(level: int, example: Example) -> str:
    """An example with the first line of its failure, if it fails."""
    parts = [
        heading(level, f"{_KINDS[type(example)]}: {example.title}"),
        code_block(example.program),
    ]
    if isinstance(example, Fails | Unjudged):
        parts += ["The failure begins with:", code_block(example.cause, "text")]
    return "\n\n".join(parts)


def _index(checks: dict[str, type[Check]]) -> str:
    rows = [(f"[{name}]({name}.md)", check.summary()) for name, check in checks.items()]
    return page(heading(1, "Checks"), _INTRODUCTION, table(("check", "what it promises"), rows))
