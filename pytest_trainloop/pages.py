"""Writes the pages of all rules and checks: `python -m pytest_trainloop.pages [docs]`."""

from __future__ import annotations

import sys
from pathlib import Path


def write_all(docs: Path) -> list[Path]:
    """Write `rules/` and `checks/` below a folder.

    Returns:
        The files that were not as they should be.
    """
    from pytest_trainloop.checks._pages import check_pages
    from pytest_trainloop.lint.pages import rule_pages
    from pytest_trainloop.markdown import write_pages

    return [
        *write_pages(docs / "rules", rule_pages()),
        *write_pages(docs / "checks", check_pages()),
    ]


if __name__ == "__main__":
    for path in write_all(Path(*sys.argv[1:2] or ["docs"])):
        sys.stdout.write(f"{path}\n")
