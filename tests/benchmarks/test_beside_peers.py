"""What the plugin costs beside pytest-torch and torch-audit: one machine, one run, same loop.

Wants `pip install --no-deps pytest-torch torch-audit click rich` in an environment that has
torch. Times are CPU times, medians of rounds that take turns, so that a busy machine disturbs all
alike. The numbers go to the junit report and, with `-s`, to the terminal; what must hold on any
machine is asserted.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_trainloop import watch

pytest_torch = pytest.importorskip("pytest_torch", reason="pytest-torch is not installed")
torch_audit = pytest.importorskip("torch_audit", reason="torch-audit is not installed")

Record = Callable[[str, object], None]
STEPS, ROUNDS, TESTS = 264, 11, 1000
#: Steps that are left out of the time of a step: those of which most is looked at.
FIRST = 64
IMPORT = """
import pytest, sys, time
begin = time.process_time()
import {}
print(time.process_time() - begin, 'torch' in sys.modules)
"""


def tell(record_property: Record, name: str, number: float, unit: str) -> None:
    record_property(name.replace(" ", "_"), round(number, 3))
    sys.stdout.write(f"\n{name}: {number:,.3g} {unit}")


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }


def test_start_up_after_pytest(record_property: Record) -> None:
    """Ours and pytest-torch load no torch; torch-audit is imported by the test that uses it."""
    tools = {
        "trainloop": "pytest_trainloop.plugin",
        "pytest-torch": "pytest_torch.plugin",
        "torch-audit": "torch_audit",
    }
    times: dict[str, list[float]] = {tool: [] for tool in tools}
    loads: dict[str, str] = {}
    for _ in range(5):
        for tool, module in tools.items():
            command = [sys.executable, "-c", IMPORT.format(module)]
            told = subprocess.run(
                command, env=environment(), capture_output=True, text=True, check=True
            )
            seconds, loads[tool] = told.stdout.split()
            times[tool].append(float(seconds))
    median = {tool: statistics.median(seconds) * 1e3 for tool, seconds in times.items()}
    for tool, ms in median.items():
        tell(record_property, f"start-up {tool}", ms, "ms")
    assert loads == {"trainloop": "False", "pytest-torch": "False", "torch-audit": "True"}


def test_a_test_that_uses_none_of_it(tmp_path: Path, record_property: Record) -> None:
    """Over a thousand empty tests; torch-audit is no plugin."""
    (tmp_path / "test_empty.py").write_text(
        f"import pytest\n@pytest.mark.parametrize('i', range({TESTS}))\ndef test_it(i): pass\n"
    )
    plugins = {"bare": [], "trainloop": ["-p", "trainloop"], "pytest-torch": ["-p", "pytest_torch"]}
    times: dict[str, list[float]] = {name: [] for name in plugins}
    for _ in range(5):
        for name, options in plugins.items():
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            told = subprocess.run(
                command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
            )
            assert f"{TESTS} passed" in told.stdout
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            times[name].append(used)
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name in ("trainloop", "pytest-torch"):
        each = (median[name] - median["bare"]) / TESTS * 1e6
        tell(record_property, f"unused in a test {name}", each, "µs")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 32, generator=generator)
    return x, torch.randint(10, (32,), generator=generator)


def made() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small network: 5,800 weights."""
    torch.manual_seed(0)
    layers = [nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10)]
    model = nn.Sequential(*layers)
    return model, torch.optim.AdamW(model.parameters())


#: When each step of the latest run began, in seconds of CPU time.
clock: list[float] = []


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    clock.append(time.process_time())
    optimizer.zero_grad()
    loss = F.cross_entropy(model(data[0]), data[1])
    loss.backward()
    optimizer.step()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    data = batch()
    for _ in range(STEPS):
        step(model, optimizer, data)


def bare() -> nn.Module:
    model, optimizer = made()
    train(model, optimizer)
    return model


def by_trainloop() -> nn.Module:
    with watch():
        return bare()


def by_pytest_torch() -> nn.Module:
    """Its own loop: it cannot run another one."""

    def step_of(_: object, data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return step(model, optimizer, data)

    model, optimizer = made()

    def make() -> object:
        return pytest_torch.TrainingSetup(model, optimizer)

    pytest_torch.run_training(make, [batch()] * STEPS, step_of, steps=STEPS)
    return model


def by_torch_audit() -> nn.Module:
    """Each step looked at, as the other two do; by default it looks at every thousandth."""
    model, optimizer = made()
    auditor = torch_audit.autopatch(model, optimizer=optimizer, every_n_steps=1, reporters=[])
    train(model, optimizer)
    auditor.finish(report=False)
    auditor.unpatch()
    return model


def test_a_watched_step(record_property: Record) -> None:
    ways = {
        "bare": bare,
        "trainloop": by_trainloop,
        "pytest-torch": by_pytest_torch,
        "torch-audit": by_torch_audit,
    }
    runs: dict[str, list[float]] = {name: [] for name in ways}
    steps: dict[str, list[float]] = {name: [] for name in ways}
    models: dict[str, nn.Module] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(ROUNDS + 1):
            for name, way in ways.items():
                clock.clear()
                begin = time.process_time()
                with redirect_stdout(StringIO()):
                    models[name] = way()
                end = time.process_time()
                if number:  # the first round loads what is loaded late
                    steps[name].append((clock[-1] - clock[FIRST]) / (STEPS - 1 - FIRST))
                    runs[name].append(end - begin)
    finally:
        torch.set_num_threads(threads)
    tell(record_property, "bare step", statistics.median(steps["bare"]) * 1e6, "µs")
    for name in ("trainloop", "pytest-torch", "torch-audit"):
        pairs = zip(steps[name], steps["bare"], strict=True)
        ratio = statistics.median(one / bare_one for one, bare_one in pairs)
        tell(record_property, f"step {name}", ratio, "times the bare one")
        rest = statistics.median(runs[name]) - statistics.median(runs["bare"])
        tell(record_property, f"run of {STEPS} steps {name}", rest * 1e3, "ms more than bare")
    for model in models.values():
        for ours, theirs in zip(model.parameters(), models["bare"].parameters(), strict=True):
            assert torch.equal(ours, theirs)
