"""What git leaves out, and paths matched by the same kind of patterns."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec


@dataclass(frozen=True)
class Patterns:
    """Patterns as in a `.gitignore`, relative to the folder that they are written in."""

    folder: str
    spec: GitIgnoreSpec

    @classmethod
    def of(cls, folder: str, lines: Iterable[str]) -> Patterns:
        """Read patterns; a line that is no pattern matches nothing.

        Raises:
            ValueError: a pattern cannot be understood.
        """
        # Late: half of all projects have no pattern to match, and pathspec takes 15 ms.
        from pathspec import GitIgnoreSpec

        return cls(folder, GitIgnoreSpec.from_lines(lines))

    def match(self, path: str, *, is_folder: bool = False) -> bool | None:
        """Whether an absolute path is meant; None if no pattern speaks of it."""
        if not path.startswith(self.folder.rstrip(os.sep) + os.sep):
            return None
        relative = path[len(self.folder.rstrip(os.sep)) + 1 :].replace(os.sep, "/")
        return self.spec.check_file(f"{relative}/" if is_folder else relative).include


@dataclass(frozen=True)
class IgnoreStack:
    """The `.gitignore` files that speak for a folder, outermost first; the innermost decides."""

    layers: tuple[Patterns, ...] = ()

    @classmethod
    def above(cls, folder: str) -> IgnoreStack:
        """The files of the folders above, up to the root of the repository.

        A folder that they leave out was asked for by name, so they are not heeded.
        """
        above = list(_folders_up_to_repository(folder))
        stack = cls()
        for parent in reversed(above[1:]):
            stack = stack.with_file(parent)
        if above:
            stack = stack.with_file(above[-1], os.path.join(".git", "info", "exclude"))
        return cls() if stack.ignores(folder, is_folder=True) else stack

    def with_file(self, folder: str, name: str = ".gitignore") -> IgnoreStack:
        """The stack with the file of one more folder, if there is one that can be read."""
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                lines = [line for line in file.read().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError):
            return self
        if all(line.startswith("#") for line in lines):
            return self
        try:
            return IgnoreStack((*self.layers, Patterns.of(folder, lines)))
        except ValueError:
            return self

    def ignores(self, path: str, *, is_folder: bool) -> bool:
        """Whether an absolute path is left out."""
        for layer in reversed(self.layers):
            matched = layer.match(path, is_folder=is_folder)
            if matched is not None:
                return matched
        return False


def _folders_up_to_repository(folder: str) -> Iterable[str]:
    """The folder and those above it, up to the one that holds `.git`; none without it."""
    passed = [folder]
    while not os.path.exists(os.path.join(passed[-1], ".git")):
        parent = os.path.dirname(passed[-1])
        if parent == passed[-1]:
            return []
        passed.append(parent)
    return passed
