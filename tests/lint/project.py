"""A user's project on disk, and the command as its user calls it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from click.testing import CliRunner

from pytest_trainloop.lint.cli import main

#: A loop with one problem, on line 6, columns 9 to 24.
BUGGY = """\
import torch

def train(model, loader, optimizer):
    for x, y in loader:
        loss = model(x, y)
        loss.backward()
        optimizer.step()
"""
#: The same loop as it should be.
RIGHT = BUGGY.replace(
    "        optimizer.step()\n", "        optimizer.step()\n        optimizer.zero_grad()\n"
)


@dataclass(frozen=True)
class Said:
    """What the command said, and how it ended."""

    exit_code: int
    out: str
    err: str

    @property
    def problems(self) -> list[dict[str, Any]]:
        """The problems of a run with `--output-format json`."""
        found: list[dict[str, Any]] = json.loads(self.out)
        return found

    @property
    def places(self) -> list[tuple[str, int, str]]:
        """Path, line and rule of each problem of a run with `--output-format json`."""
        return [(problem["path"], problem["line"], problem["rule"]) for problem in self.problems]


@dataclass(frozen=True)
class Project:
    """A folder with files, and the command called in it."""

    root: Path

    def write(self, files: dict[str, str | bytes]) -> None:
        """Write files, their folders too."""
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    def lint(self, *arguments: str, stdin: str | bytes | None = None) -> Said:
        """Call `trainloop-lint`."""
        result = CliRunner().invoke(main, arguments, input=stdin, catch_exceptions=False)
        return Said(result.exit_code, result.stdout, result.stderr)

    def json(self, *arguments: str) -> Said:
        """Call `trainloop-lint --output-format json`."""
        return self.lint(*arguments, "--output-format", "json")


class MakeProject(Protocol):
    """Makes a project in the current folder: `project({"train.py": code})`."""

    def __call__(self, files: dict[str, str | bytes] | None = None) -> Project:
        """Make it."""
