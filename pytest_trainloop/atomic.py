"""Writing a file so that a reader sees the old bytes or the new ones, never half of them."""

from __future__ import annotations

import os
import stat


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at `path`, keeping its permissions, and a symbolic link a link.

    Raises:
        OSError: the folder cannot be written; the file is then as it was.
    """
    import tempfile

    target = os.path.realpath(path)
    mode = _mode(target)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".trainloop-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _mode(path: str) -> int:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
