"""What files hold, by digest, without reading those that nobody has touched."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from typing import NamedTuple

from pytest_trainloop.source.tree import digest

# A file changed this shortly before it was read may change again within one tick of the
# file system's clock: its times prove nothing.
_SETTLED_NS = 2_000_000_000


class Signature(NamedTuple):
    """By what the system says of a file one knows that it still holds what it held."""

    size: int
    modified_ns: int
    changed_ns: int
    digest: str


class Contents:
    """Digests of files, each found once in a run."""

    def __init__(self, known: Mapping[str, Signature]) -> None:
        """Begin with the signatures of an earlier run."""
        self._known = known
        self._now: dict[str, Signature | None] = {}
        #: Whether any file is not as it was known.
        self.changed = False

    def digest(self, path: str) -> str | None:
        """The digest of a file's content; None if it cannot be read."""
        if path not in self._now:
            self._now[path] = self._signature(path)
        signature = self._now[path]
        return signature.digest if signature else None

    def signatures(self) -> dict[str, Signature]:
        """What is known of files now; what a later run may trust of them."""
        merged: dict[str, Signature | None] = {**self._known, **self._now}
        return {path: signature for path, signature in merged.items() if signature}

    def _signature(self, path: str) -> Signature | None:
        try:
            status = os.stat(path)
            known = self._known.get(path)
            if not stat.S_ISREG(status.st_mode):
                # A pipe gives its content once, to whoever reads it first.
                return None
            size, modified, changed = status.st_size, status.st_mtime_ns, status.st_ctime_ns
            if known and known[:3] == (size, modified, changed):
                return known
            with open(path, "rb") as file:
                content = digest(file.read())
        except OSError:
            return None
        self.changed = True
        if time.time_ns() - max(modified, changed) < _SETTLED_NS:
            modified = changed = 0
        return Signature(size, modified, changed, content)
