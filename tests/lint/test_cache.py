"""The cache: a second run says the same, sooner, and never what is no longer true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_trainloop.lint import lint_file
from pytest_trainloop.source.facts import FileFacts
from pytest_trainloop.source.read import read_source
from tests.lint.project import BUGGY, RIGHT, MakeProject, Project

FOLDER = ".trainloop-lint-cache"
#: Clears the gradients in another file, or not.
CALLER = """\
import torch
from steps import update

def train(model, loader, optimizer):
    for x, y in loader:
        loss = model(x, y)
        loss.backward()
        update(optimizer)
"""
CLEARS = "import torch\n\ndef update(optimizer):\n    optimizer.step()\n    optimizer.zero_grad()\n"
LEAVES = "import torch\n\ndef update(optimizer):\n    optimizer.step()\n"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were really read into facts, since it was last cleared."""
    paths: list[str] = []

    def noting(text: str, path: str, *rest: Any) -> FileFacts:
        paths.append(path)
        return read_source(text, path, *rest)

    monkeypatch.setattr(lint_file, "read_source", noting)
    return paths


def age(made: Project) -> None:
    """Let the files be older than the clock's ticks: an hour."""
    for path in made.root.rglob("*.py"):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 3_600_000_000_000))


def rules(made: Project, *arguments: str) -> list[str]:
    return [rule for _, _, rule in made.json(*arguments).places]


def test_a_second_run_says_the_same_and_reads_nothing(
    project: MakeProject, read: list[str]
) -> None:
    comment = "x = 1  # trainloop: ignore[kept-loss-graph]\n"
    made = project({"a.py": BUGGY, "b.py": RIGHT + comment, "c.py": "def", "d.py": "x = 1"})
    first = made.lint(".")
    assert sorted(read) == ["a.py", "b.py"]
    read.clear()
    assert made.lint(".") == first
    assert read == []
    assert first.exit_code == 2


def test_what_is_fixed_is_no_longer_reported(project: MakeProject, read: list[str]) -> None:
    made = project({"a.py": BUGGY, "b.py": BUGGY})
    assert len(rules(made, ".")) == 2
    made.write({"a.py": RIGHT})
    read.clear()
    assert made.json(".").places == [("b.py", 6, "missing-zero-grad")]
    assert read == ["a.py"]


def test_a_change_of_the_same_size_at_the_same_time_is_seen(project: MakeProject) -> None:
    made = project({"a.py": BUGGY})
    status = (made.root / "a.py").stat()
    assert rules(made, ".") == ["missing-zero-grad"]
    made.write({"a.py": BUGGY.replace("backward", "forward_")})
    os.utime(made.root / "a.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert rules(made, ".") == []


def test_a_touched_file_with_the_same_content_is_not_read_again(
    project: MakeProject, read: list[str]
) -> None:
    made = project({"a.py": BUGGY})
    assert rules(made, ".") == ["missing-zero-grad"]
    read.clear()
    age(made)
    assert rules(made, ".") == ["missing-zero-grad"]
    assert read == []


def test_a_change_in_a_file_that_is_called_is_seen(project: MakeProject, read: list[str]) -> None:
    made = project({"train.py": CALLER, "steps.py": CLEARS})
    assert rules(made, ".") == []
    made.write({"steps.py": LEAVES})
    assert rules(made, ".") == ["missing-zero-grad"]
    made.write({"steps.py": CLEARS})
    assert rules(made, ".") == []
    read.clear()
    assert rules(made, ".") == []
    assert read == []


def test_a_file_that_comes_into_being_is_seen(project: MakeProject) -> None:
    made = project({"train.py": CALLER, "notes.py": "import torch\n"})
    assert rules(made, ".") == [], "what cannot be followed may do anything"
    made.write({"steps.py": LEAVES})
    assert rules(made, ".") == ["missing-zero-grad"]
    (made.root / "steps.py").unlink()
    assert rules(made, ".") == []


def test_linting_a_file_by_itself_is_not_linting_it_among_others(project: MakeProject) -> None:
    made = project({"train.py": CALLER, "steps.py": LEAVES})
    for _ in range(2):
        assert rules(made, ".") == ["missing-zero-grad"]
        assert rules(made, "train.py") == []


def test_a_new_file_costs_only_itself(project: MakeProject, read: list[str]) -> None:
    made = project({"train.py": CALLER, "steps.py": LEAVES, "b.py": BUGGY})
    made.json(".")
    read.clear()
    made.write({"other.py": BUGGY})
    assert len(rules(made, ".")) == 3
    assert read == ["other.py"]


def test_each_selection_has_its_own_results(project: MakeProject) -> None:
    made = project({"a.py": BUGGY})
    assert rules(made, "a.py", "--select", "kept-loss-graph") == []
    assert rules(made, "a.py") == ["missing-zero-grad"]
    assert rules(made, "a.py", "--select", "kept-loss-graph") == []


def test_the_cache_stands_beside_the_project_and_hides_from_git(project: MakeProject) -> None:
    made = project({"pyproject.toml": "", "src/a.py": BUGGY})
    made.json("src")
    assert (made.root / FOLDER / ".gitignore").read_text() == "*\n"
    assert (made.root / FOLDER / "CACHEDIR.TAG").exists()
    assert not (made.root / "src" / FOLDER).exists()


def test_no_cache_leaves_nothing_behind(project: MakeProject) -> None:
    made = project({"a.py": BUGGY})
    made.json("a.py", "--no-cache")
    assert os.listdir(made.root) == ["a.py"]


def test_the_cache_can_be_kept_elsewhere(project: MakeProject) -> None:
    made = project({"src/a.py": BUGGY})
    made.json("src", "--cache-dir", "deep/cache")
    assert len(list((made.root / "deep/cache").glob("*.json"))) == 1
    assert not (made.root / FOLDER).exists()


def test_a_folder_that_cannot_be_written_is_no_matter(project: MakeProject) -> None:
    made = project({"a.py": BUGGY, "file": ""})
    assert rules(made, "a.py", "--cache-dir", "file/cache") == ["missing-zero-grad"]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"null",
        b'{"rules": [], "strings": []}',
        b"[" * 200_000,
        b'{"rules":["x"],"strings":["a.py"],"entries":[[0,1]],"imports":[],"signatures":[]}',
        b'{"rules":["x"],"strings":[],"entries":[[7,"d","t",[],"",0]],"imports":[],"signatures":[]}',
    ],
)
def test_a_broken_index_is_as_none(project: MakeProject, broken: bytes) -> None:
    made = project({"a.py": BUGGY})
    made.json("a.py")
    (index,) = (made.root / FOLDER).glob("*.json")
    index.write_bytes(broken)
    assert rules(made, "a.py") == ["missing-zero-grad"]


def test_an_index_with_one_broken_result_loses_only_that(
    project: MakeProject, read: list[str]
) -> None:
    made = project({"a.py": BUGGY, "b.py": BUGGY})
    made.json(".")
    (path,) = (made.root / FOLDER).glob("*.json")
    index = json.loads(path.read_text())
    index["entries"][0][5] = [[["missing-zero-grad"]], []]
    path.write_text(json.dumps(index))
    read.clear()
    assert len(rules(made, ".")) == 2
    assert len(read) == 1


def test_runs_at_the_same_time_leave_a_whole_index(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"m{number}.py").write_text(BUGGY)
    program = str(Path(sys.executable).with_name("trainloop-lint"))
    command = [program, ".", "--output-format", "json"]
    runs = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for run in runs:
        out, err = run.communicate(timeout=60)
        assert (run.returncode, err) == (1, b"")
        assert len(json.loads(out)) == 20
    (index,) = (tmp_path / FOLDER).glob("*.json")
    assert len(json.loads(index.read_text())["entries"]) == 20
    names = sorted(entry.name for entry in (tmp_path / FOLDER).iterdir())
    assert names == sorted([".gitignore", "CACHEDIR.TAG", index.name])


def test_a_run_from_the_cache_loads_no_rule(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(RIGHT)
    program = (
        "import sys\nfrom pytest_trainloop.lint.cli import main\n"
        "try:\n    main(['a.py'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print([name for name in sys.modules if name.startswith('pytest_trainloop.rules.')"
        " or name in ('libcst', 'torch', 'pytest', 'pytest_trainloop.source.read')])\n"
    )

    def loaded() -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()[-1]

    assert "pytest_trainloop.rules.gradients" in loaded()
    assert loaded() == "[]"
