"""What all tests share: `pytester`, which runs a user's project as pytest would."""

from __future__ import annotations

pytest_plugins = ["pytester"]
