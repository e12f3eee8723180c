"""A baseline: the problems that a project has today, so that only new ones are reported.

A problem is known by its rule, its file, the code on its line and how many like it stand
above it in the file, so moved lines make no difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import Problem

_VERSION = 1


class BaselineError(ValueError):
    """The baseline cannot be read; the message is one line."""


@dataclass(frozen=True)
class Baseline:
    """The fingerprints of known problems."""

    known: frozenset[str]

    def split(self, problems: Iterable[Problem]) -> tuple[tuple[Problem, ...], int]:
        """The problems that are new, and how many of the known ones are gone."""
        every = list(problems)
        gone = self.known - {problem.fingerprint for problem in every}
        return tuple(p for p in every if p.fingerprint not in self.known), len(gone)


def read_baseline(path: str) -> Baseline:
    """Read a baseline.

    Raises:
        BaselineError: it is not there, or is no baseline.
    """
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
        if content["version"] != _VERSION:
            raise BaselineError(f"{path}: written by another version; write it anew")
        return Baseline(frozenset(str(entry["fingerprint"]) for entry in content["problems"]))
    except OSError as error:
        raise BaselineError(f"{path}: cannot be read: {(error.strerror or '').lower()}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, BaselineError):
            raise
        raise BaselineError(f"{path}: it is not a baseline") from None


def baseline_text(problems: Iterable[Problem]) -> str:
    """The content of a baseline that knows all problems of a run."""
    entries = [
        {
            "rule": problem.rule,
            "path": problem.path,
            "code": problem.source_line.strip(),
            "fingerprint": problem.fingerprint,
        }
        for problem in problems
    ]
    return json.dumps({"version": _VERSION, "problems": entries}, indent=2) + "\n"
