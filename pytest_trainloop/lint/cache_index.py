"""The file that results are kept in: JSON, in which each path stands once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_trainloop.atomic import write_atomically
from pytest_trainloop.lint.content import Signature

_MOST_INDEXES = 8
_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n# Results of trainloop-lint; may be deleted.\n"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one file gave, and what that rests on."""

    digest: str
    #: Of the paths of all files of the run.
    tree: str
    #: The other files that were looked into, and the digest of their digests.
    consulted: tuple[str, ...]
    consulted_digest: str
    #: Findings and suppressions, as in `result.to_row`; None if there are none.
    row: list[Any] | None

    def in_tree(self, tree: str) -> Entry:
        """The entry, found to hold among other files too."""
        return replace(self, tree=tree)


@dataclass
class Index:
    """All that is kept."""

    rules: list[str] | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)
    #: For each importing file, the linted file that each module it imports means.
    imports: dict[str, dict[str, str | None]] = field(default_factory=dict)


def read_index(path: str) -> Index:
    """The index kept at a path; an empty one if there is none that can be read."""
    try:
        with open(path, "rb") as file:
            return _parsed(json.loads(file.read()))
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return Index()


def write_index(path: str, index: Index) -> None:
    """Write an index, and drop the oldest ones beside it.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        os.makedirs(folder)
    for name, content in ((".gitignore", b"*\n"), ("CACHEDIR.TAG", _TAG)):
        beside = os.path.join(folder, name)
        if not os.path.exists(beside):
            write_atomically(beside, content)
    write_atomically(path, json.dumps(_plain(index), separators=(",", ":")).encode())
    with suppress(OSError):  # another run may be dropping the same ones
        for old in sorted(_indexes(folder), reverse=True)[_MOST_INDEXES:]:
            os.unlink(old[1])


def _indexes(folder: str) -> Iterator[tuple[int, str]]:
    for entry in os.scandir(folder):
        if entry.name.endswith(".json"):
            yield entry.stat().st_mtime_ns, entry.path


def _plain(index: Index) -> dict[str, Any]:
    numbers: dict[str, int] = {}

    def number(text: str) -> int:
        return numbers.setdefault(text, len(numbers))

    entries = [
        [
            number(path),
            entry.digest,
            number(entry.tree),
            [number(other) for other in entry.consulted],
            entry.consulted_digest if entry.consulted else "",
            entry.row,
        ]
        for path, entry in index.entries.items()
    ]
    imports = [
        [
            number(path),
            [[module, None if f is None else number(f)] for module, f in found.items()],
        ]
        for path, found in index.imports.items()
        if path in index.entries or path in numbers
    ]
    signatures = [
        [number(path), *signature]
        for path, signature in index.signatures.items()
        if path in numbers
    ]
    return {
        "rules": index.rules,
        "strings": list(numbers),
        "entries": entries,
        "imports": imports,
        "signatures": signatures,
    }


def _parsed(content: dict[str, Any]) -> Index:
    strings: list[str] = content["strings"]
    rules = content["rules"]
    if not isinstance(rules, list):
        raise TypeError("no list of rules")
    return Index(
        rules,
        {
            strings[path]: Entry(
                content_digest,
                strings[tree],
                tuple([strings[other] for other in consulted]),
                consulted_digest,
                row,
            )
            for path, content_digest, tree, consulted, consulted_digest, row in content["entries"]
        },
        {strings[path]: Signature(*signature) for path, *signature in content["signatures"]},
        {
            strings[path]: {
                module: None if found is None else strings[found] for module, found in modules
            }
            for path, modules in content["imports"]
        },
    )
