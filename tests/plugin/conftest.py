"""Everything here runs `pytester` in this process."""

from __future__ import annotations

from tests.loaded_once import loaded_once

__all__ = ["loaded_once"]
