"""The linted files as one project, with an account of what was looked at."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_trainloop.lint.document import UnreadableError, document_from_bytes
from pytest_trainloop.lint.result import Consulted
from pytest_trainloop.source.tree import SourceTree


class TrackedTree(SourceTree):
    """Notes each import that is looked up, as `SourceTree` notes each file that is read."""

    def __init__(self, files: Iterable[str]) -> None:
        super().__init__(files, _utf8)
        self._imports: dict[tuple[str, str], str | None] = {}

    def forget(self) -> None:
        """Begin a new account."""
        super().forget()
        self._imports = {}

    def find(self, module: str, importer: str) -> str | None:
        """As `SourceTree.find`."""
        found = super().find(module, importer)
        self._imports[module, importer] = found
        return found

    def account(self, without: str) -> Consulted:
        """What was looked at since `forget`, but for one file: the one being linted."""
        return Consulted(
            tuple(pair for pair in self.consulted.items() if pair[0] != without),
            tuple((module, importer, found) for (module, importer), found in self._imports.items()),
        )


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
