"""Results of earlier runs, kept in one file beside the project.

An entry holds for a file whose content is the same, as long as everything that its
findings rest on is: the other linted files that were looked into, and which file each
import means. The index is JSON, never code, and one that cannot be read is as none.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from pytest_trainloop.lint.atomic import write_atomically
from pytest_trainloop.lint.result import Consulted, FileResult, from_row, to_row
from pytest_trainloop.source.tree import SourceTree, digest

FOLDER = ".trainloop-lint-cache"
# A file changed this shortly before it was read may change again within one tick of the
# file system's clock: its times prove nothing.
_SETTLED_NS = 2_000_000_000
_MOST_INDEXES = 8
_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n# Results of trainloop-lint; may be deleted.\n"
)


class Cache:
    """The index of one selection of rules, for the files of one run."""

    def __init__(self, folder: str, key: str, files: Sequence[str]) -> None:
        """Read the index, if there is one.

        Args:
            folder: where indexes are kept; made when there is something to keep.
            key: says which rules, of which version, the results come from.
            files: the files of this run, as the user gave them.
        """
        self._folder = folder
        # Paths are kept as they were given, so they mean something in one folder only.
        self._path = os.path.join(folder, f"{digest(f'{key} {os.getcwd()}'.encode())}.json")
        self._files = files
        self._tree = digest("\n".join(files).encode())
        #: The rules that the results come from; None if nothing is known yet.
        self.rules: list[str] | None = None
        self._entries: dict[str, list[Any]] = {}
        self._signatures: dict[str, list[int]] = {}
        self._digests: dict[str, str | None] = {}
        self._changed = False
        with suppress(OSError, ValueError, KeyError, TypeError):
            self._load()

    def get(self, path: str) -> FileResult | None:
        """What an earlier run found in a file, if it still holds."""
        content = self._digest_now(path)
        entry = self._entries.get(path)
        if entry is None or content is None or entry[3] != content:
            return None
        if len(entry) == 4:  # noqa: PLR2004 -- no more than signature and digest: nothing in it
            return FileResult(path, digest=content)
        try:
            result = from_row(path, content, entry[5])
        except (TypeError, ValueError, KeyError, IndexError):
            return None
        if not self._holds(result.consulted, entry[4]):
            return None
        if entry[4] != self._tree:
            entry[4] = self._tree
            self._changed = True
        return result

    def put(self, result: FileResult) -> None:
        """Keep what this run found in a file."""
        signature = self._signatures.get(result.path)
        if signature is None or not result.is_lasting:
            self._changed |= self._entries.pop(result.path, None) is not None
            return
        row = to_row(result)
        self._entries[result.path] = [*_settled(signature), result.digest]
        if any(row):
            self._entries[result.path] += [self._tree, row]
        self._changed = True

    def save(self, rules: Iterable[str]) -> None:
        """Write the index if anything in it is new; a folder that cannot be written has none."""
        names = list(rules)
        if not self._changed and names == self.rules:
            return
        seen = set(self._files)
        kept = {
            path: entry
            for path, entry in self._entries.items()
            if path in seen or os.path.exists(path)
        }
        with suppress(OSError):
            self._prepare_folder()
            text = json.dumps({"rules": names, "files": kept}, separators=(",", ":"))
            write_atomically(self._path, text.encode())

    def _load(self) -> None:
        with open(self._path, "rb") as file:
            content = json.loads(file.read())
        rules, entries = content["rules"], content["files"]
        if not isinstance(rules, list) or not isinstance(entries, dict):
            return
        self._entries = {
            path: entry
            for path, entry in entries.items()
            if isinstance(entry, list) and len(entry) in (4, 6)
        }
        self.rules = rules

    def _digest_now(self, path: str) -> str | None:
        """The digest of a file's content, read only if the file was touched; None if it is gone."""
        if path not in self._digests:
            self._digests[path] = self._fresh_digest(path)
        return self._digests[path]

    def _fresh_digest(self, path: str) -> str | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        signature = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        self._signatures[path] = signature
        entry = self._entries.get(path)
        if entry is None:
            return ""
        if entry[:3] == signature:
            known: str = entry[3]
            return known
        try:
            with open(path, "rb") as file:
                content = digest(file.read())
        except OSError:
            return None
        if content == entry[3]:
            entry[:3] = _settled(signature)
            self._changed = True
        return content

    def _holds(self, consulted: Consulted, tree: str) -> bool:
        if any(self._digest_now(path) != content for path, content in consulted.digests):
            return False
        if tree == self._tree:
            return True
        files = SourceTree(self._files)
        return all(
            files.find(module, importer) == found for module, importer, found in consulted.imports
        )

    def _prepare_folder(self) -> None:
        if not os.path.isdir(self._folder):
            os.makedirs(self._folder)
        for name, content in ((".gitignore", b"*\n"), ("CACHEDIR.TAG", _TAG)):
            path = os.path.join(self._folder, name)
            if not os.path.exists(path):
                write_atomically(path, content)
        indexes = [entry for entry in os.scandir(self._folder) if entry.name.endswith(".json")]
        indexes.sort(key=lambda entry: entry.stat().st_mtime_ns, reverse=True)
        for entry in indexes[_MOST_INDEXES:]:
            os.unlink(entry.path)


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


def _settled(signature: list[int]) -> list[int]:
    size, modified, changed = signature
    if time.time_ns() - max(modified, changed) < _SETTLED_NS:
        return [size, 0, 0]
    return signature
