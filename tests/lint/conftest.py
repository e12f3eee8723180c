"""What tests of the linter start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lint.project import MakeProject, Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeProject:
    """Makes a project in the current folder: `project({"train.py": code})`."""

    def make(files: dict[str, str | bytes] | None = None) -> Project:
        monkeypatch.chdir(tmp_path)
        made = Project(tmp_path)
        made.write(files or {})
        return made

    return make
