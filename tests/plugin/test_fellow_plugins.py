"""Beside pytest-xdist, -randomly, -rerunfailures, -timeout and -cov, all in their own process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

LOOP = """
import torch
from torch import nn


def train(loader, folder, lr=1e-2, epochs=4):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    path = folder / "newest.pt"
    done = 0
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        done = state["epochs"]
    for epoch in range(done, epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**parts, "epochs": epoch + 1, "rng": torch.get_rng_state()}, path)
"""
SCRIPT = """
from pathlib import Path
import sys
from tempfile import TemporaryDirectory
import torch
from torch.utils.data import DataLoader, TensorDataset
from loop import train

x = torch.randn(8, 4)
data = TensorDataset(x, (x.sum(1) > 0).long())
train(DataLoader(data, 4), Path(sys.argv[1]))
"""
TESTS = """
import os, pathlib, random, time
import pytest
from pytest_trainloop import overfits, repeats, resumes, run_script, trains
from loop import train

"""
ALL = """
@overfits
def test_overfits(tiny_loader, checkpoint_dir): train(tiny_loader, checkpoint_dir, epochs=40)

@repeats
def test_repeats(checkpoint_dir): run_script("script.py", checkpoint_dir)

@resumes
def test_resumes(tiny_loader, checkpoint_dir): train(tiny_loader, checkpoint_dir)

@trains(isolate="process")
def test_trains(tiny_loader, checkpoint_dir): train(tiny_loader, checkpoint_dir)

@trains
def test_fails(tiny_loader, checkpoint_dir): train(tiny_loader, checkpoint_dir, lr=0)
"""


def run(pytester: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(loop=LOOP, script=SCRIPT, test_it=TESTS + tests)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)


def said(result: pytest.RunResult) -> list[str]:
    """The lines of the summary, in alphabetical order."""
    begin = next(i for i, line in enumerate(result.outlines) if "= training loops =" in line)
    words = ("passed ", "failed ", "cannot judge ")
    return sorted(
        line for line in result.outlines[begin:] if line.split(" ", 1)[-1].startswith(words)
    )


def test_workers_of_xdist_say_what_one_process_says(pytester: pytest.Pytester) -> None:
    alone = run(pytester, ALL, "-p", "no:randomly", "--trainloop-json", "alone.json")
    alone.assert_outcomes(passed=4, failed=1)
    assert len(said(alone)) == 5
    split = run(pytester, ALL, "-n", "2", "--trainloop-json", "split.json")
    split.assert_outcomes(passed=4, failed=1)
    assert said(split) == said(alone)
    assert facts(pytester.path / "split.json") == facts(pytester.path / "alone.json")


def facts(path: Path) -> dict[str, object]:
    tests = json.loads(path.read_text())["tests"]
    return {test["test"]: [test["outcome"], test["verdicts"]] for test in tests}


def test_randomly_reseeds_and_reorders_and_changes_no_verdict(pytester: pytest.Pytester) -> None:
    tests = ALL.replace('@trains(isolate="process")', "@trains")
    first, second = (run(pytester, tests, f"--randomly-seed={seed}") for seed in (1, 2))
    first.assert_outcomes(passed=4, failed=1)
    assert said(first) == said(second)


def test_rerunfailures_runs_a_check_again_with_all_that_it_needs(
    pytester: pytest.Pytester,
) -> None:
    result = run(
        pytester,
        """
def attempt(name):
    path = pathlib.Path(name)
    with path.open("a") as file:
        file.write("x")
    return len(path.read_text())

@resumes
def test_in_this_process(tiny_loader, checkpoint_dir, tmp_path):
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").touch()
    # The first attempt fails in the second run of its check.
    assert attempt("here") != 2
    train(tiny_loader, checkpoint_dir)

@trains(isolate="process")
def test_in_its_own(tiny_loader, checkpoint_dir):
    if attempt("there") == 1:
        os.kill(os.getpid(), 9)
    train(tiny_loader, checkpoint_dir)

@pytest.mark.flaky(reruns=1)
@trains(isolate="process")
def test_never(tiny_loader, checkpoint_dir):
    assert attempt("never") > 2

@trains(isolate="process", timeout=60)
def test_as_often_as_it_was_run():
    pass
""",
        "--reruns",
        "1",
        "-p",
        "no:randomly",
    )
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["* 4 rerun*"])
    assert len((pytester.path / "here").read_text()) == 2 + 4
    assert len((pytester.path / "there").read_text()) == 2
    assert len((pytester.path / "never").read_text()) == 2
    result.stdout.fnmatch_lines_random(
        [
            "resumes passed  test_it.py::test_in_this_process *",
            "trains passed  test_it.py::test_in_its_own *",
            "trains failed  test_it.py::test_as_often_as_it_was_run  the test body never called *",
        ]
    )


def test_timeout_ends_a_process_of_its_own_too(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.mark.timeout(4)
@trains(isolate="process")
def test_hangs():
    pathlib.Path("pid").write_text(str(os.getpid()))
    time.sleep(60)

@trains
def test_after(tiny_loader, checkpoint_dir): train(tiny_loader, checkpoint_dir)
""",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Failed: Timeout (>4.0s) from pytest-timeout."])
    written = pytester.path / "pid"
    assert not written.exists() or not Path("/proc", written.read_text()).exists()


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_cov_measures_checked_loops_wherever_they_run(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    result = run(
        pytester,
        """
@trains(isolate="process")
def test_trains(tiny_loader, checkpoint_dir): train(tiny_loader, checkpoint_dir)

@resumes
def test_resumes(checkpoint_dir): run_script("script.py", checkpoint_dir)
""",
        "--cov=.",
        "--cov-branch",
        "--cov-report=json",
        *options,
    )
    result.assert_outcomes(passed=2)
    files = json.loads((pytester.path / "coverage.json").read_text())["files"]
    assert files["loop.py"]["missing_lines"] == []
    assert files["script.py"]["missing_lines"] == []
    assert not list(pytester.path.glob(".coverage.*"))


def test_cov_sees_what_only_a_process_of_its_own_runs(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@trains(isolate="process")
def test_trains(tiny_loader, checkpoint_dir): train(tiny_loader, checkpoint_dir)
""",
        "--cov=loop",
        "--cov-report=json",
    )
    result.assert_outcomes(passed=1)
    files = json.loads((pytester.path / "coverage.json").read_text())["files"]
    lines = LOOP.strip().splitlines()
    first = lines.index("        state = torch.load(path)") + 1
    last = lines.index('        done = state["epochs"]') + 1
    assert files["loop.py"]["missing_lines"] == list(range(first, last + 1))
