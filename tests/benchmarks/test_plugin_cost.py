"""What the plugin costs who uses it and who does not. Measured, recorded, not judged by a clock.

Times are CPU times of this process or of a child, medians of blocks that take turns, so that a
busy machine disturbs both sides alike. The numbers go to the junit report and, with `-s`, to
the terminal; what must hold on any machine (which modules are loaded) is asserted.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_trainloop import watch

START_UP = """
import sys, time
import pytest
begin = time.process_time()
{load}
print(time.process_time() - begin)
print(*(name for name in ("torch", "numpy", "libcst", "click") if name in sys.modules))
print(*(name for name in sys.modules if name.startswith("pytest_trainloop")))
"""


def start_up(load: str) -> tuple[float, str, str]:
    """Seconds that a statement takes in a fresh process, and what it loaded."""
    code = START_UP.format(load=load)
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, heavy, ours = result.stdout.split("\n")[:3]
    return float(seconds), heavy, ours


def test_start_up_over_bare_pytest(record_property: Callable[[str, object], None]) -> None:
    """Importing the plugin after pytest: at most 2 ms is wanted."""
    rounds = [start_up("import pytest_trainloop.plugin") for _ in range(7)]
    seconds = statistics.median(round_[0] for round_ in rounds)
    record_property("plugin_import_ms", round(seconds * 1e3, 2))
    sys.stdout.write(f"\nimport of the plugin: {seconds * 1e3:.2f} ms\n")
    assert {heavy for _, heavy, _ in rounds} == {""}
    assert rounds[0][2].split() == [
        "pytest_trainloop",
        "pytest_trainloop.checks",
        "pytest_trainloop.plugin",
    ]


@pytest.mark.parametrize("arguments", [["--collect-only"], []])
def test_unmarked_tests_load_nothing_of_ours(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "test_plain.py").write_text(
        "import sys\n"
        "def test_it(tmp_path):\n"
        "    for name in ('torch', 'numpy', 'libcst', 'click', 'pytest_trainloop.runtime'):\n"
        "        assert name not in sys.modules\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "trainloop", *arguments]
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": ""}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def train(steps: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 32, generator=generator)
    y = torch.randint(10, (32,), generator=generator)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_watched_step_over_an_unwatched_one(
    record_property: Callable[[str, object], None],
) -> None:
    """A small network, 5,800 weights: at most 1.05 is wanted, over its first 1,000 steps."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters())
    train(50, model, optimizer)
    steps, ratios, bare = 64, [], []
    with watch() as first:
        train(200, model, optimizer)
    for _ in range(15):
        times = []
        for watched in (False, True, False):
            if watched:
                with watch():
                    # Into the part of a run in which one step in 32 is looked at closely.
                    train(70, model, optimizer)
                    times.append(seconds_of(lambda: train(steps, model, optimizer)))
            else:
                times.append(seconds_of(lambda: train(steps, model, optimizer)))
        bare.append((times[0] + times[2]) / 2 / steps)
        ratios.append(times[1] / (times[0] + times[2]) * 2)
    ratio, step = statistics.median(ratios), statistics.median(bare)
    record_property("watched_step_ratio", round(ratio, 3))
    record_property("unwatched_step_us", round(step * 1e6))
    sys.stdout.write(f"\nwatched over unwatched step: {ratio:.3f} of {step * 1e6:.0f} µs\n")
    assert first.training_steps == 200


def seconds_of(work: Callable[[], None]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin
