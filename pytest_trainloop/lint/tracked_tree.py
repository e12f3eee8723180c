"""The linted files as one project, with an account of what was looked at."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_trainloop.lint.document import UnreadableError, document_from_bytes
from pytest_trainloop.lint.result import Consulted, joint_digest
from pytest_trainloop.source.tree import SourceTree


class TrackedTree(SourceTree):
    """Notes each import that is looked up, as `SourceTree` notes each file that is read.

    The files of a run are fixed, so an import is looked up, and told of, once.
    """

    def __init__(self, files: Iterable[str]) -> None:
        super().__init__(files, _utf8)
        self._found: dict[tuple[str, str], str | None] = {}
        self._untold: list[tuple[str, str, str | None]] = []

    def find(self, module: str, importer: str) -> str | None:
        """As `SourceTree.find`."""
        key = (module, importer)
        if key not in self._found:
            self._found[key] = super().find(module, importer)
            self._untold.append((module, importer, self._found[key]))
        return self._found[key]

    def account(self, without: str) -> Consulted:
        """What was looked at since `forget`, but for one file: the one being linted."""
        imports = tuple(self._untold)
        self._untold = []
        paths = tuple(sorted(path for path in self.consulted if path != without))
        return Consulted(paths, joint_digest(map(self.consulted.get, paths)), imports)


def _utf8(path: str) -> bytes:
    """The content of a file as UTF-8, whatever encoding it declares."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        document = document_from_bytes(path, data)
    except UnreadableError as error:
        raise OSError(error.message) from None
    if document.notebook is None and document.encoding == "utf-8":
        return data
    return document.text.encode()
