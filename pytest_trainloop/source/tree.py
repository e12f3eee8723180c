"""The linted files as one project: which file an import means."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from hashlib import blake2b

from pytest_trainloop.source.modules import Modules


def digest(data: bytes) -> str:
    """A short fingerprint of a file's content."""
    return blake2b(data, digest_size=16).hexdigest()


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


class SourceTree:
    """The linted files, found by the module names they are imported under.

    Imports are resolved beside the importing file first (as a script sees them), then in
    its folder's parents (as a package sees them). Files that are not linted are not read.
    """

    def __init__(self, files: Iterable[str], read: Callable[[str], bytes] = _read) -> None:
        self._files = {os.path.abspath(path): path for path in files}
        self._read = read
        #: Every name by which an absolute import of a linted file may begin.
        self._tops = {
            part for path in self._files for part in path.removesuffix(".py").split(os.sep)
        }
        self._folders: dict[str, str] = {}
        #: Which files reading has looked at since the last `forget`, with their digests.
        self.consulted: dict[str, str | None] = {}
        self.modules = Modules(lambda: self.consulted)

    def forget(self) -> bool:
        """Begin a new account of what is looked at; True if that dropped modules that were kept."""
        self.consulted = {}
        return self.modules.drop()

    def source(self, path: str) -> str:
        """The text of a linted file; its digest is noted in `consulted`.

        Raises:
            OSError: it cannot be read any more.
            UnicodeDecodeError: it is not UTF-8.
        """
        data = self._read(path)
        self.consulted[path] = digest(data)
        return data.decode("utf-8-sig")

    def find(self, module: str, importer: str) -> str | None:
        """The linted file that `import module` in `importer` means; leading dots as in Python."""
        name = module.lstrip(".")
        if name is module and module.partition(".")[0] not in self._tops:
            return None
        folder = self._folder(importer)
        level = len(module) - len(name)
        parts = name.split(".") if name else []
        if level:
            for _ in range(level - 1):
                folder = os.path.dirname(folder)
            return self._file(folder, parts)
        while True:
            found = self._file(folder, parts)
            if found is not None:
                return found
            parent = os.path.dirname(folder)
            if parent == folder:
                return None
            folder = parent

    def _folder(self, importer: str) -> str:
        if importer not in self._folders:
            self._folders[importer] = os.path.dirname(os.path.abspath(importer))
        return self._folders[importer]

    def _file(self, folder: str, parts: list[str]) -> str | None:
        base = os.sep.join((folder, *parts))
        for candidate in (f"{base}.py", f"{base}{os.sep}__init__.py"):
            found = self._files.get(candidate)
            if found is not None:
                return found
        return None
