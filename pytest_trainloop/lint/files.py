"""Which files a run lints: the paths it was given, folders searched."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from pytest_trainloop.lint.ignored import IgnoreStack
from pytest_trainloop.lint.outcome import FileError

#: Folders that hold no code of one's own; a folder given by name is searched all the same.
SKIPPED_FOLDERS = frozenset(
    {
        ".bzr", ".direnv", ".eggs", ".git", ".hg", ".ipynb_checkpoints", ".mypy_cache", ".nox",
        ".pants.d", ".pytest_cache", ".ruff_cache", ".svn", ".tox", ".trainloop-lint-cache",
        ".venv", ".vscode", "__pycache__", "__pypackages__", "_build", "buck-out", "build", "dist",
        "node_modules", "site-packages", "venv",
    }
)  # fmt: skip


class Excludes(Protocol):
    """Whether the configuration excludes an absolute path."""

    def __call__(self, path: str, *, is_folder: bool) -> bool:
        """Whether it does."""


SUFFIXES = (".py", ".ipynb")


@dataclass
class FoundFiles:
    """Files to lint, in the order of their paths, and what could not be searched."""

    paths: list[str] = field(default_factory=list)
    errors: list[FileError] = field(default_factory=list)
    #: What is worth a word but is no fault: a link that leads back into its own folder.
    notes: list[str] = field(default_factory=list)


def find_files(
    paths: Iterable[str],
    *,
    is_excluded: Excludes,
    respect_gitignore: bool = True,
    force_exclude: bool = False,
) -> FoundFiles:
    """Search folders for Python files and notebooks; a file given by name is always taken.

    Args:
        paths: files and folders, as the user gave them.
        is_excluded: whether the configuration excludes an absolute path.
        respect_gitignore: leave out what git leaves out.
        force_exclude: let `is_excluded` also leave out files given by name.
    """
    search = _Search(is_excluded, respect_gitignore)
    for path in paths:
        given = os.path.normpath(path)
        absolute = os.path.abspath(given)
        if os.path.isdir(given):
            search.folder(given, absolute, search.ignores_above(absolute), ())
        elif not os.path.lexists(given):
            search.found.errors.append(FileError(given, _missing(given)))
        elif not (force_exclude and is_excluded(absolute, is_folder=False)):
            search.take(given, absolute)
    search.found.paths.sort()
    return search.found


class _Search:
    """One search: what it has found, and which files it has taken already."""

    def __init__(self, is_excluded: Excludes, respect_gitignore: bool) -> None:
        self.found = FoundFiles()
        self._is_excluded = is_excluded
        self._respect_gitignore = respect_gitignore
        self._taken: set[str] = set()

    def ignores_above(self, folder: str) -> IgnoreStack:
        return IgnoreStack.above(folder) if self._respect_gitignore else IgnoreStack()

    def take(self, path: str, absolute: str) -> None:
        if absolute not in self._taken:
            self._taken.add(absolute)
            self.found.paths.append(path)

    def folder(
        self, path: str, absolute: str, ignores: IgnoreStack, within: tuple[str, ...]
    ) -> None:
        """Take the files below a folder; `within` are the real paths of the folders around it."""
        try:
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            self.found.errors.append(FileError(path, f"cannot be searched: {reason_of(error)}"))
            return
        names = {entry.name for entry in entries}
        if within and "pyvenv.cfg" in names:
            return
        if self._respect_gitignore and ".gitignore" in names:
            ignores = ignores.with_file(absolute)
        around = (*within, os.path.realpath(absolute))
        for entry in entries:
            self._entry(
                entry, _joined(path, entry.name), f"{absolute}{os.sep}{entry.name}", ignores, around
            )

    def _entry(
        self,
        entry: os.DirEntry[str],
        path: str,
        absolute: str,
        ignores: IgnoreStack,
        around: tuple[str, ...],
    ) -> None:
        is_folder = _is_folder(entry)
        if is_folder is None:
            self.found.errors.append(FileError(path, "is a symbolic link that leads to itself"))
        elif is_folder and entry.name not in SKIPPED_FOLDERS:
            if self._is_left_out(absolute, ignores, is_folder=True):
                return
            if not entry.is_symlink():
                self.folder(path, absolute, ignores, around)
            elif os.path.realpath(absolute) in around:
                self.found.notes.append(f"{path} is a link to a folder around it; not followed")
        elif (
            not is_folder
            and entry.name.endswith(SUFFIXES)
            and not self._is_left_out(absolute, ignores, is_folder=False)
        ):
            self.take(path, absolute)

    def _is_left_out(self, absolute: str, ignores: IgnoreStack, *, is_folder: bool) -> bool:
        return self._is_excluded(absolute, is_folder=is_folder) or ignores.ignores(
            absolute, is_folder=is_folder
        )


def reason_of(error: OSError) -> str:
    """Why the system refused, in its own words, without the path."""
    return (error.strerror or str(error) or type(error).__name__).lower()


def _is_folder(entry: os.DirEntry[str]) -> bool | None:
    """Whether an entry is a folder; None for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return None


def _joined(folder: str, name: str) -> str:
    return name if folder == os.curdir else os.path.join(folder, name)


def _missing(path: str) -> str:
    from difflib import get_close_matches

    folder, name = os.path.split(path)
    try:
        beside: Iterator[str] | list[str] = os.listdir(folder or os.curdir)
    except OSError:
        beside = []
    close = get_close_matches(name, beside, n=1, cutoff=0.7)
    hint = f"; did you mean `{os.path.join(folder, close[0])}`?" if close else ""
    return f"there is no such file or folder{hint}"
