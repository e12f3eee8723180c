"""IPython's own syntax in a notebook cell, put into Python that stands on the same lines."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

# Cell magics that run the rest of the cell as Python; after any other it is text.
_RUN_PYTHON = frozenset({"capture", "memit", "mprun", "prun", "python_timeit", "time", "timeit"})
_CELL_MAGIC = re.compile(r"\s*%%(\w+)")
# A statement that begins with `%`, `!` or `?`, or ends with `?` (help).
_STATEMENT = re.compile(r"(?P<indent>\s*)(?:[%!?]|[^#'\"]*[\w)\]*]\?{1,2}\s*$)")
# `files = !ls`, `result = %timeit -o f()`
_ASSIGNED = re.compile(r"(?P<target>\s*[\w.,\s\[\]]+=\s*)(?:!|%[A-Za-z])")
# Line magics that are used without their `%`, as IPython allows where the line is no Python.
_AUTOMATIC = re.compile(
    r"(?P<indent>\s*)(?:c[dp]|cat|conda|env|less|ll|load_ext|ls|mamba|man|matplotlib|micromamba"
    r"|mkdir|more|mv|pip|popd|prun|pushd|pylab|reload_ext|rmdir|rm|run|set_env|timeit|time|uv)"
    r"\s+[^\s=()<>,+*/%^&|!]"
)
# What can carry a statement over the end of a line: brackets and triple quotes.
_TOKEN = re.compile(r"#.*|'''|\"\"\"|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[()\[\]{}]")
_CLOSING = {quote: re.compile(rf"(?:\\.|[^\\])*?{quote}") for quote in ("'''", '"""')}
_CALL = "get_ipython()"


class _Open(NamedTuple):
    """What a line leaves open, so that the next one does not begin a statement."""

    quote: str = ""
    brackets: int = 0
    continued: bool = False

    def __bool__(self) -> bool:
        return bool(self.quote or self.brackets or self.continued)


def neutralised(lines: list[str]) -> list[str]:
    """The lines of a cell with each line of IPython's syntax replaced by a line of Python."""
    for number, line in enumerate(lines):
        magic = _CELL_MAGIC.match(line)
        if magic and not _is_several(line):
            if magic.group(1) not in _RUN_PYTHON:
                return [
                    *lines[:number],
                    _as_call(line),
                    *(f"# {rest}" for rest in lines[number + 1 :]),
                ]
            return [*lines[:number], _as_call(line), *neutralised(lines[number + 1 :])]
        if line.strip():
            break
    return list(_without_magics(lines))


def restored(lines: list[str], original: list[str]) -> list[str]:
    """The lines of a changed cell with IPython's syntax back in the place of its replacement."""
    before = {
        new.strip(): old
        for new, old in zip(neutralised(original), original, strict=True)
        if new != old
    }
    return [_back(line, before) for line in lines]


def _back(line: str, before: dict[str, str]) -> str:
    old = before.get(line.strip())
    if old is None:
        return line
    # A fix may have put the line into a deeper block; text after a cell magic stays as it was.
    if line.startswith("#"):
        return old
    return line[: len(line) - len(line.lstrip())] + old.lstrip()


def _without_magics(lines: list[str]) -> Iterator[str]:
    open_at_end = _Open()
    in_magic = False
    for line in lines:
        replaced = None if open_at_end else _replaced(line)
        if in_magic:
            yield f"# {line}"
        elif replaced is not None:
            yield replaced
        else:
            open_at_end = _open_after(line, open_at_end)
            yield line
            continue
        in_magic = line.rstrip().endswith("\\")


def _replaced(line: str) -> str | None:
    if _is_several(line):
        return None
    if assigned := _ASSIGNED.match(line):
        return _as_call(line, assigned.group("target"))
    if statement := _STATEMENT.match(line):
        return _as_call(line, statement.group("indent"))
    automatic = _AUTOMATIC.match(line)
    if automatic and not _is_python(line):
        return _as_call(line, automatic.group("indent"))
    return None


def _is_several(line: str) -> bool:
    """Whether what is one line for IPython is several for Python."""
    return "\r" in line[:-1]


def _is_python(line: str) -> bool:
    try:
        ast.parse(line.strip())
    except (SyntaxError, ValueError):
        return False
    return True


def _as_call(line: str, before: str = "") -> str:
    end = "\r" if line.endswith("\r") else ""
    return f"{before}{_CALL}  # {line.strip()}{end}"


def _open_after(line: str, before: _Open) -> _Open:
    quote, depth, _ = before
    position = 0
    while token := (_CLOSING[quote] if quote else _TOKEN).search(line, position):
        position = token.end()
        text = token.group()
        if quote:
            quote = ""
        elif text in {"'''", '"""'}:
            quote = text
        elif text in "([{":
            depth += 1
        elif text in ")]}":
            depth = max(0, depth - 1)
    continued = not quote and line.endswith("\\") and "#" not in line[position:]
    return _Open(quote, depth, continued)
