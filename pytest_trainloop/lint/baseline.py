"""A baseline: the problems that a project has today, so that only new ones are reported.

A problem is known by its rule, its file, the code on its line and how many like it stand
above it in the file, so moved lines make no difference.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_trainloop.lint.outcome import Problem

_VERSION = 1


class BaselineError(ValueError):
    """The baseline cannot be read; the message is one line."""


def read_baseline(path: str) -> dict[str, str]:
    """The fingerprints of the problems that a baseline knows, each with the path of its file.

    Raises:
        BaselineError: it is not there, or is no baseline.
    """
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
        if content["version"] != _VERSION:
            raise BaselineError(f"{path}: written by another version; write it anew")
        problems = content["problems"]
        return {str(entry["fingerprint"]): str(entry["path"]) for entry in problems}
    except OSError as error:
        raise BaselineError(f"{path}: cannot be read: {(error.strerror or '').lower()}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, BaselineError):
            raise
        raise BaselineError(f"{path}: it is not a baseline") from None


def count_gone(known: Mapping[str, str], problems: Iterable[Problem], linted: list[str]) -> int:
    """How many known problems of the files that were linted did not occur."""
    files = set(map(os.path.abspath, linted))
    found = {problem.fingerprint for problem in problems}
    return sum(
        fingerprint not in found and os.path.abspath(path) in files
        for fingerprint, path in known.items()
    )


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
