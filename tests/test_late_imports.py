"""Nobody pays for what they do not use: what is heavy is imported late, or never.

A trap is a module that stands before the real one and raises when it is imported. So a test
that fails shows who imported it, and passes as it is where the real one is not installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "numpy", "libcst", "click")
LOOP = """
import torch

def train(model, optimizer, loader):
    for x, y in loader:
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
"""
UNMARKED = "def test_unmarked(): assert True\n"
MARKED = """
import pytest

@pytest.mark.overfits
def test_marked(): pass
"""


def run_with_traps(
    folder: Path, trapped: tuple[str, ...], *command: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of this environment in `folder`, where importing a trapped module fails."""
    traps = folder / "traps"
    traps.mkdir()
    for name in trapped:
        (traps / f"{name}.py").write_text(f"raise AssertionError('{name} was imported')\n")
    script, *arguments = command
    return subprocess.run(
        [Path(sys.executable).with_name(script), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(traps), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", HEAVY)
def test_a_trap_springs_when_its_module_is_imported(tmp_path: Path, name: str) -> None:
    done = run_with_traps(tmp_path, (name,), "python", "-c", f"import {name}")
    assert f"AssertionError: {name} was imported" in done.stderr


def test_the_linter_finds_a_bug_without_torch_numpy_and_pytest(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(LOOP)
    absent = ("torch", "numpy", "pytest", "_pytest")
    done = run_with_traps(tmp_path, absent, "trainloop-lint", "train.py")
    assert "missing-zero-grad" in done.stdout
    assert (done.returncode, done.stderr) == (1, "")


def test_a_session_without_markers_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(UNMARKED)
    done = run_with_traps(tmp_path, HEAVY, "pytest", "-p", "trainloop", "test_it.py")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_collecting_a_marked_test_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(MARKED)
    done = run_with_traps(
        tmp_path, HEAVY, "pytest", "-p", "trainloop", "--collect-only", "--strict-markers", "-q"
    )
    assert "test_it.py::test_marked" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def test_the_help_and_the_markers_import_nothing_heavy(tmp_path: Path) -> None:
    done = run_with_traps(tmp_path, HEAVY, "pytest", "-p", "trainloop", "--markers")
    assert "@pytest.mark.overfits" in done.stdout, done.stdout + done.stderr
    assert "@pytest.mark.resumes" in done.stdout


def test_running_a_marked_test_springs_the_trap(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(MARKED)
    done = run_with_traps(tmp_path, ("torch",), "pytest", "-p", "trainloop", "test_it.py")
    assert "torch was imported" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["pytest_trainloop", "pytest_trainloop.plugin"])
def test_what_pytest_loads_at_its_start_brings_nothing_heavy(module: str) -> None:
    code = f"import {module}, sys; print(*sorted({set(HEAVY)!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "\n"
