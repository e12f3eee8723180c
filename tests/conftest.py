"""What all tests share: `pytester`, which runs a user's project as pytest would."""

from __future__ import annotations

from hypothesis import settings

pytest_plugins = ["pytester"]

settings.register_profile("busy", deadline=None)  # a busy machine is no bug
settings.load_profile("busy")
