"""Which files a run lints: the paths it was given, folders searched."""

from __future__ import annotations

import os
import stat
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
            search.below(given, absolute)
        elif not os.path.lexists(given):
            search.found.errors.append(FileError(given, _missing(given)))
        elif not (force_exclude and is_excluded(absolute, is_folder=False)):
            search.take(given, absolute)
    search.found.paths.sort()
    return search.found


@dataclass(frozen=True)
class _Folder:
    """A folder to search; `around` are the real paths of the folders around it."""

    path: str
    absolute: str
    ignores: IgnoreStack
    around: tuple[str, ...]


class _Search:
    """One search: what it has found, and which files it has taken already."""

    def __init__(self, is_excluded: Excludes, respect_gitignore: bool) -> None:
        self.found = FoundFiles()
        self._is_excluded = is_excluded
        self._respect_gitignore = respect_gitignore
        self._taken: set[str] = set()

    def take(self, path: str, absolute: str) -> None:
        if absolute not in self._taken:
            self._taken.add(absolute)
            self.found.paths.append(path)

    def below(self, path: str, absolute: str) -> None:
        """Take the files below a folder."""
        ignores = IgnoreStack.above(absolute) if self._respect_gitignore else IgnoreStack()
        todo = [_Folder(path, absolute, ignores, ())]
        # Not by recursion: folders can be nested deeper than calls.
        while todo:
            todo += self._in_folder(todo.pop())

    def _in_folder(self, folder: _Folder) -> Iterator[_Folder]:
        """Take the files of one folder; the folders in it."""
        try:
            with os.scandir(folder.path) as listing:
                entries = list(listing)
        except OSError as error:
            reason = f"cannot be searched: {reason_of(error)}"
            self.found.errors.append(FileError(folder.path, reason))
            return
        names = {entry.name for entry in entries}
        if folder.around and "pyvenv.cfg" in names:
            return
        ignores = folder.ignores
        if self._respect_gitignore and ".gitignore" in names:
            ignores = ignores.with_file(folder.absolute)
        around = (*folder.around, os.path.realpath(folder.absolute))
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = _joined(folder.path, entry.name)
            absolute = f"{folder.absolute.rstrip(os.sep)}{os.sep}{entry.name}"
            if _is_folder(entry):
                below = _Folder(path, absolute, ignores, around)
                if self._is_searched(entry, below):
                    yield below
            elif entry.name.endswith(SUFFIXES):
                self._file(entry, path, absolute, ignores)

    def _file(
        self, entry: os.DirEntry[str], path: str, absolute: str, ignores: IgnoreStack
    ) -> None:
        if self._is_left_out(absolute, ignores, is_folder=False):
            return
        if _is_special(entry):
            self.found.errors.append(FileError(path, "is a pipe or a device, not a file"))
        else:
            self.take(path, absolute)

    def _is_searched(self, entry: os.DirEntry[str], folder: _Folder) -> bool:
        if entry.name in SKIPPED_FOLDERS:
            return False
        if self._is_left_out(folder.absolute, folder.ignores, is_folder=True):
            return False
        if entry.is_symlink():
            if os.path.realpath(folder.absolute) in folder.around:
                words = f"{folder.path} is a link to a folder around it; not followed"
                self.found.notes.append(words)
            return False
        return True

    def _is_left_out(self, absolute: str, ignores: IgnoreStack, *, is_folder: bool) -> bool:
        return self._is_excluded(absolute, is_folder=is_folder) or ignores.ignores(
            absolute, is_folder=is_folder
        )


def reason_of(error: OSError) -> str:
    """Why the system refused, in its own words, without the path."""
    return (error.strerror or str(error) or type(error).__name__).lower()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether reading may never end; what cannot be asked is found out by reading."""
    try:
        return not stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False


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
