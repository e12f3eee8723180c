"""Whether Python has compiled a file as it stands: then it is known to be Python."""

from __future__ import annotations

import os
import struct
from importlib.util import MAGIC_NUMBER, cache_from_source

#: How many bytes in front of the code tell what it was made of and by whom (PEP 552).
_HEADER = 16
_LARGEST = 0xFFFFFFFF


def is_compiled(path: str, source: os.stat_result) -> bool:
    """Whether `__pycache__` holds what this version of Python has made of a source file.

    What is asked is what Python itself asks when it imports: that the version, the time of the
    last change and the size agree. Nothing of the code is loaded.

    Args:
        path: the file.
        source: its state as it was read.
    """
    if not path.endswith(".py"):
        return False
    try:
        with open(cache_from_source(path), "rb", buffering=0) as compiled:
            header = compiled.read(_HEADER)
    except (OSError, ValueError, NotImplementedError):
        # There is none, or this Python keeps none.
        return False
    by_time = 0
    told = (by_time, int(source.st_mtime) & _LARGEST, source.st_size & _LARGEST)
    return header == MAGIC_NUMBER + struct.pack("<3I", *told)
