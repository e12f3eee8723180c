"""Pages in Markdown, made of docstrings and examples: what rules and checks have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from inspect import cleandoc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# A paragraph that begins so opens a section: `Symptom: the loss falls at first, then ...`
_SECTION = re.compile(r"([A-Z][A-Za-z ]{2,30}):[ \n]")
# `steps: training steps after which ...`, with its continuation lines further in.
_OPTION = re.compile(r"^ {4}(\w+): ", re.MULTILINE)


def summary(docstring: str | None) -> str:
    """The first line of a docstring."""
    return cleandoc(docstring or "").partition("\n")[0]


def sections(docstring: str | None) -> dict[str, str]:
    """What follows the first line, by section; the paragraphs before any are under `""`."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for paragraph in re.split(r"\n\s*\n", cleandoc(docstring or ""))[1:]:
        opening = _SECTION.match(paragraph)
        if opening:
            name = opening[1]
        text = paragraph[opening.end() :] if opening else paragraph
        found.setdefault(name, []).append(text[:1].upper() + text[1:])
    return {name: "\n\n".join(texts) for name, texts in found.items() if texts}


def heading(level: int, text: str) -> str:
    """A heading; 1 is the page's own."""
    return f"{'#' * level} {text}"


def code_block(code: str, language: str = "python") -> str:
    """Code in a fence that it does not hold itself."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def options(text: str) -> str:
    """The options of a docstring's section as a list."""
    return _OPTION.sub(r"- `\1`: ", re.sub(r"\n {8}", "\n  ", f"\n{text}")).strip()


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table; a bar in a cell is escaped."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def page(*parts: str) -> str:
    """The parts of a page, those that are there, with a blank line between them."""
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def write_pages(folder: Path, pages: Mapping[str, str]) -> list[Path]:
    """Write the pages of a folder by file name, and take away what else lies there.

    Returns:
        The files that were not as they should be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    changed = [path for path in folder.glob("*.md") if path.name not in pages]
    for path in changed:
        path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8", newline="\n")
            changed.append(path)
    return changed
