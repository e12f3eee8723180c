"""How fast the linter is, beside `ast.parse` and ruff on the same files in the same run.

Measured on an installed package with training code: that of the environment variable
`TRAINLOOP_BENCHMARK` (a folder), else accelerate. CPU times of child processes, and wall times as
the least of several rounds that take turns. The numbers are recorded, not judged by a clock;
what must hold on any machine is asserted.
"""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

BIN = Path(sys.executable).parent
Record = Callable[[str, object], None]
SMALL = "import torch\n\nloss.backward()\noptimizer.step()\n"


class Cost(NamedTuple):
    """What a command took."""

    cpu_s: float
    wall_s: float
    out: bytes


@pytest.fixture(scope="module")
def tree() -> Path:
    """The package that is linted."""
    if named := os.environ.get("TRAINLOOP_BENCHMARK"):
        return Path(named)
    spec = find_spec("accelerate")
    if spec is None or spec.origin is None:
        pytest.skip("accelerate is not installed, and TRAINLOOP_BENCHMARK names no folder")
    return Path(spec.origin).parent


@pytest.fixture(scope="module", autouse=True)
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let modules be compiled once, as an installation has them, whatever this shell says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("bytecode")))
        folder = tmp_path_factory.mktemp("first")
        (folder / "train.py").write_text(SMALL)
        run(BIN / "trainloop-lint", "train.py", "--no-cache", cwd=folder)
        yield


def run(*command: str | Path, cwd: Path) -> Cost:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, check=False)
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in (0, 1), done.stderr.decode()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu, wall, done.stdout)


def tell(record_property: Record, name: str, number: float, unit: str) -> None:
    record_property(name.replace(" ", "_"), round(number, 3))
    sys.stdout.write(f"\n{name}: {number:,.3g} {unit}")


def test_cold_and_warm_beside_parsing_and_ruff(
    tree: Path, tmp_path: Path, record_property: Record
) -> None:
    """100,000 lines a CPU second cold, and at most 1.5 of ruff's cold time warm, are wanted."""
    texts = [path.read_bytes() for path in sorted(tree.rglob("*.py"))]
    lines = sum(text.count(b"\n") for text in texts)
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in texts:
            ast.parse(text)
    parse_s = time.process_time() - begin
    lint = (BIN / "trainloop-lint", tree, "--output-format", "json")
    cold = run(*lint, "--no-cache", "--jobs", "1", cwd=tmp_path)
    filling = run(*lint, cwd=tmp_path)
    ruff = (BIN / "ruff", "check", "--no-cache", "--quiet", "--isolated", tree)
    has_ruff = ruff[0].exists()  # it comes with the development tools, not with the tests
    rounds = [(has_ruff and run(*ruff, cwd=tmp_path), run(*lint, cwd=tmp_path)) for _ in range(5)]
    ruff_s = min(one.wall_s if one else float("nan") for one, _ in rounds)
    warm_s = min(one.wall_s for _, one in rounds)
    tell(record_property, "lines", lines, f"in {len(texts)} files of {tree.name}")
    tell(record_property, "ast.parse", lines / parse_s, "lines a CPU second")
    tell(record_property, "cold", lines / cold.cpu_s, "lines a CPU second")
    tell(record_property, "ruff cold", ruff_s, "s")
    tell(record_property, "warm", warm_s, "s")
    tell(record_property, "warm over ruff cold", warm_s / ruff_s, "times")
    assert {cold.out, filling.out, *(warm.out for _, warm in rounds)} == {cold.out}
    assert min(warm.cpu_s for _, warm in rounds) < cold.cpu_s


def test_a_cold_start_on_one_small_file(tmp_path: Path, record_property: Record) -> None:
    """Less than 0.25 s is wanted."""
    (tmp_path / "train.py").write_text(SMALL)
    command = (BIN / "trainloop-lint", "train.py", "--no-cache")
    rounds = [run(*command, cwd=tmp_path) for _ in range(5)]
    tell(record_property, "cold start", min(one.wall_s for one in rounds), "s")
    tell(record_property, "cold start CPU", min(one.cpu_s for one in rounds), "s")
    program = (
        "import sys\nfrom pytest_trainloop.lint.cli import main\n"
        "try:\n    main(['train.py', '--no-cache', '--quiet'])\nexcept SystemExit:\n    pass\n"
        "print(*(name for name in ('libcst', 'multiprocessing', 'numpy', 'pathspec', 'pytest',"
        " 'torch') if name in sys.modules))\n"
    )
    loaded = run(sys.executable, "-c", program, cwd=tmp_path).out.splitlines()[-1]
    assert loaded == b""


def test_memory_stays_below_300_mb(tree: Path, tmp_path: Path, record_property: Record) -> None:
    program = (
        "import re, resource, sys\nfrom pytest_trainloop.lint.cli import main\n"
        f"try:\n    main([{str(tree)!r}, '--no-cache', '--jobs', '1', '--quiet'])\n"
        "except SystemExit:\n    pass\n"
        # On Linux the resource usage of a new process begins with what its parent had.
        "if sys.platform == 'linux':\n"
        "    peak = int(re.search('VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "else:\n"
        "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "print(peak // 1024)\n"
    )
    peak = int(run(sys.executable, "-c", program, cwd=tmp_path).out.splitlines()[-1])
    tell(record_property, "memory", peak, "MB")
    assert peak < 300
