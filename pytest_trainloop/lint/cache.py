"""Results of earlier runs, kept in one file beside the project.

A result holds for a file whose content is the same, as long as everything that it rests
on is: the other linted files that were looked into, and which file each of their imports
means. The index is JSON, never code, and one that cannot be read is as none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

from pytest_trainloop.lint.cache_index import Entry, Index, read_index, write_index
from pytest_trainloop.lint.content import Contents
from pytest_trainloop.lint.result import FileResult, from_row, joint_digest, to_row
from pytest_trainloop.source.tree import SourceTree, digest

FOLDER = ".trainloop-lint-cache"


class Cache:
    """What is known of the files of one run, under one selection of rules."""

    def __init__(self, folder: str, key: str, files: Sequence[str]) -> None:
        """Read the index, if there is one.

        Args:
            folder: where indexes are kept; made when there is something to keep.
            key: says which rules, of which version, the results come from.
            files: the files of this run, as the user gave them.
        """
        # Paths are kept as they were given, so they mean something in one folder only.
        name = digest(f"{key} {os.getcwd()}".encode())
        self._path = os.path.join(folder, f"{name}.json")
        self._files = files
        self._tree = digest("\n".join(files).encode())
        self._index = read_index(self._path)
        self._contents = Contents(self._index.signatures)
        self._changed = False
        self._source_tree: SourceTree | None = None
        self._same_imports: dict[str, bool] = {}

    @property
    def rules(self) -> list[str] | None:
        """The rules that the results come from; None if nothing is known yet."""
        return self._index.rules

    def get(self, path: str) -> FileResult | None:
        """What an earlier run found in a file, if it still holds."""
        content = self._contents.digest(path)
        entry = self._index.entries.get(path)
        if entry is None or content is None or entry.digest != content:
            return None
        if entry.consulted:
            now = joint_digest(map(self._contents.digest, entry.consulted))
            if now != entry.consulted_digest:
                return None
        if entry.tree != self._tree:
            if not all(self._imports_are_same(file) for file in (path, *entry.consulted)):
                return None
            self._index.entries[path] = entry.in_tree(self._tree)
            self._changed = True
        if entry.row is None:
            return FileResult(path, digest=content)
        try:
            return from_row(path, content, entry.row)
        except (TypeError, ValueError):
            return None

    def put(self, result: FileResult) -> None:
        """Keep what this run found in a file."""
        self._changed = True
        for module, importer, found in result.consulted.imports:
            self._index.imports.setdefault(importer, {})[module] = found
        if not result.is_lasting:
            self._index.entries.pop(result.path, None)
            return
        row = to_row(result)
        self._index.entries[result.path] = Entry(
            result.digest,
            self._tree,
            result.consulted.paths,
            result.consulted.digest,
            row if any(row) else None,
        )

    def save(self, rules: Iterable[str]) -> None:
        """Write the index if anything in it is new; a folder that cannot be written has none."""
        names = list(rules)
        if not (self._changed or self._contents.changed) and names == self.rules:
            return
        seen = set(self._files)
        entries = {
            path: entry
            for path, entry in self._index.entries.items()
            if path in seen or os.path.exists(path)
        }
        index = Index(names, entries, self._contents.signatures(), self._index.imports)
        with suppress(OSError):
            write_index(self._path, index)

    def _imports_are_same(self, importer: str) -> bool:
        """Whether what a file imports is still found where it was."""
        if importer not in self._same_imports:
            if self._source_tree is None:
                self._source_tree = SourceTree(self._files)
            find = self._source_tree.find
            known = self._index.imports.get(importer, {})
            self._same_imports[importer] = all(
                find(module, importer) == found for module, found in known.items()
            )
        return self._same_imports[importer]


def cache_key(chosen: Iterable[str]) -> str:
    """What results depend on besides the files: Python, this package's files, the selection."""
    import pytest_trainloop

    root = os.path.dirname(pytest_trainloop.__file__)
    parts = [sys.version, pytest_trainloop.__version__, *chosen]
    for part in ("lint", "rules", "source"):
        for folder, folders, names in os.walk(os.path.join(root, part)):
            folders.sort()
            for name in sorted(names):
                if name.endswith(".py"):
                    status = os.stat(os.path.join(folder, name))
                    parts.append(f"{name} {status.st_size} {status.st_mtime_ns}")
    return digest("\n".join(parts).encode())
