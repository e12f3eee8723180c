"""`python -m examples.classifier`: what a user types, and what they see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from examples.classifier import __main__ as command
from examples.classifier.__main__ import main

CLONE = Path(__file__).resolve().parents[2]
TINY = ["--examples", "200", "--epochs", "2"]
FULL = ["--epochs", "3", "--device", "cpu", "--save-every", "7"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--device", "cpu"])


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "examples.classifier", "--out", str(folder), *FULL],
        cwd=CLONE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
    )


def output_of(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    return output


def saved(folder: Path) -> dict[str, Any]:
    contents: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    return contents


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(folder)
    output_of(process)
    assert process.returncode == 0
    return saved(folder)


@pytest.mark.parametrize(
    ("stop", "status", "farewell"),
    [
        (signal.SIGINT, 130, "the same command goes on"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_run_stopped_midway_and_started_again_ends_with_the_same_weights(
    stop: signal.Signals,
    status: int,
    farewell: str,
    uninterrupted: dict[str, Any],
    tmp_path: Path,
) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1/3")
    process.send_signal(stop)
    output = output_of(process)
    assert process.returncode == status
    assert farewell in output
    stopped_at = saved(tmp_path)["position"]
    assert 0 < stopped_at["step"] < uninterrupted["position"]["step"]

    output_of(start(tmp_path))
    assert_same_end(saved(tmp_path), uninterrupted)


def assert_same_end(ended: dict[str, Any], uninterrupted: dict[str, Any]) -> None:
    assert ended["position"] == uninterrupted["position"]
    assert ended["history"] == uninterrupted["history"]
    for name, weights in uninterrupted["model"].items():
        assert torch.equal(ended["model"][name], weights), name


def test_a_request_to_terminate_is_obeyed_after_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*TINY, "--out", str(tmp_path / "uninterrupted"))
    with monkeypatch.context() as patch:
        # Between two epochs, so that the signal comes at the same place each time.
        patch.setattr(command, "report", lambda _run: signal.raise_signal(signal.SIGTERM))
        stopped = run(*TINY, "--out", str(tmp_path))
    assert stopped.exit_code == 143
    assert (
        stopped.output
        == f"stopped; saved to {tmp_path / 'checkpoint.pt'}: the same command goes on\n"
    )
    assert saved(tmp_path)["position"]["epoch"] == 1
    run(*TINY, "--out", str(tmp_path))
    assert_same_end(saved(tmp_path), saved(tmp_path / "uninterrupted"))


def test_help_names_the_options_and_their_defaults() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert "--out DIRECTORY" in result.output
    assert "[default: runs/classifier]" in result.output
    assert "Stop it with Ctrl-C" in result.output


def test_each_epoch_is_reported(tmp_path: Path) -> None:
    result = run(*TINY, "--out", str(tmp_path))
    first, second, last = result.output.splitlines()
    assert result.exit_code == 0
    assert first.startswith("epoch 1/2  step ")
    assert second.startswith("epoch 2/2  step ")
    for measured in ("loss", "gradient norm", "rate", "held-out accuracy"):
        assert f"  {measured} " in second
    assert last.endswith(f"saved to {tmp_path / 'checkpoint.pt'}")


def test_a_finished_run_is_found_and_fresh_starts_it_over(tmp_path: Path) -> None:
    once = run(*TINY, "--out", str(tmp_path)).output
    found = run(*TINY, "--out", str(tmp_path)).output
    over = run(*TINY, "--out", str(tmp_path), "--fresh").output
    assert over == once
    assert found == f"found {tmp_path / 'checkpoint.pt'}\n{once.splitlines()[-1]}\n"


def test_a_checkpoint_of_other_settings_is_refused_in_one_line(tmp_path: Path) -> None:
    run(*TINY, "--out", str(tmp_path))
    result = run(*TINY, "--out", str(tmp_path), "--seed", "1")
    assert result.exit_code == 1
    assert result.output.splitlines()[1] == (
        f"Error: {tmp_path / 'checkpoint.pt'} belongs to another run: its config has seed = 0,"
        " not 1 (choose another folder, or delete it to start over)"
    )
    assert len(result.output.splitlines()) == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(*TINY, "--out", str(tmp_path / "file" / "below"))
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert str(tmp_path / "file" / "below") in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--device", "cuda", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "--device cuda: torch sees no GPU" in result.output


def test_the_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run(*TINY, "--out", str(tmp_path))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
