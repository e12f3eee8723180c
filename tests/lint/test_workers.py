"""Many files at once: the same report in any order and with any number of workers."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable
from functools import partial

import pytest

from pytest_trainloop.lint import engine, workers
from pytest_trainloop.lint.files import FoundFiles, find_files
from pytest_trainloop.lint.lint_file import FileLinter
from pytest_trainloop.lint.selection import Selection
from pytest_trainloop.rules import all_rules
from tests.lint.project import BUGGY, RIGHT, MakeProject, Project

CALLER = """\
import torch
from .steps import update

def train(model, loader, optimizer):
    for x, y in loader:
        loss = model(x, y)
        loss.backward()
        update(optimizer)
"""


@pytest.fixture
def many(project: MakeProject) -> Project:
    """A tree with problems, errors, suppressions, and calls across files."""
    files: dict[str, str | bytes] = {
        "pkg/__init__.py": "",
        "pkg/steps.py": "import torch\n\ndef update(optimizer):\n    optimizer.step()\n",
        "broken.py": "import torch\ndef",
        "bytes.py": b"\xff",
        "unused.py": "import torch  # trainloop: ignore\n",
    }
    for number in range(30):
        files[f"a{number}.py"] = BUGGY if number % 3 else RIGHT
        files[f"pkg/b{number}.py"] = CALLER
    return project(files)


def test_the_number_of_workers_makes_no_difference(many: Project) -> None:
    alone = many.json(".", "--no-cache", "--jobs", "1")
    assert len(alone.problems) == 20 + 30 + 1
    assert alone.err.count("\n") == 2
    for jobs in ("2", "5"):
        assert many.json(".", "--no-cache", "--jobs", jobs) == alone


def test_the_order_of_files_makes_no_difference(
    many: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = many.json(".", "--no-cache", "--jobs", "1")

    def shuffled(*args: object, seed: int, **options: object) -> FoundFiles:
        found = find_files(*args, **options)  # type: ignore[arg-type]  # passed through
        random.Random(seed).shuffle(found.paths)  # noqa: S311  # no secret
        return found

    for seed in range(3):
        monkeypatch.setattr(engine, "find_files", partial(shuffled, seed=seed))
        assert many.json(".", "--no-cache", "--jobs", "1") == expected


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_can_be_started_in_every_way(
    project: MakeProject, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    project({"a.py": BUGGY, "b.py": BUGGY})
    monkeypatch.setattr(workers, "_context", lambda: multiprocessing.get_context(method))
    make: Callable[[], FileLinter] = partial(
        FileLinter, Selection().rules(all_rules()), ["a.py", "b.py"]
    )
    results = workers.lint_in_workers(make, ["a.py", "b.py"], 2, 30.0)
    found = {result.path: [finding.rule for finding in result.findings] for result in results}
    assert found == {"a.py": ["missing-zero-grad"], "b.py": ["missing-zero-grad"]}


def test_a_few_files_are_not_worth_a_worker() -> None:
    assert engine.workers_worth(10_000) == 1
    assert 1 <= engine.workers_worth(10**12) <= engine.MOST_WORKERS


def test_no_worker_outlives_a_run_that_is_given_up(project: MakeProject) -> None:
    project({f"m{n}.py": BUGGY for n in range(40)})
    paths = [f"m{n}.py" for n in range(40)]
    make: Callable[[], FileLinter] = partial(FileLinter, Selection().rules(all_rules()), paths)
    results = workers.lint_in_workers(make, paths, 2, 30.0)
    next(results)
    results.close()  # type: ignore[attr-defined]  # a generator has it
    assert multiprocessing.active_children() == []
