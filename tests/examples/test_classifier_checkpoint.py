"""The classifier's checkpoint: whole or not there, and only for the run that it belongs to."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.classifier.batches import Split
from examples.classifier.checkpoint import Checkpoint, CheckpointError, rng_state, set_rng_state
from examples.classifier.run import Config, start
from examples.classifier.train import Interrupted, train

SMALL = Config(examples=240, epochs=2, batch_size=32)
STEPS = 12  # six batches an epoch


def same(ours: Any, theirs: Any) -> bool:
    """Whether two parts of a checkpoint are equal, bit for bit."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def saved(checkpoint: Checkpoint) -> dict[str, Any]:
    contents: dict[str, Any] = torch.load(checkpoint.path, weights_only=True)
    return contents


def stop_after(steps: int, config: Config, checkpoint: Checkpoint) -> None:
    steps_taken = count(1)
    with pytest.raises(Interrupted):
        train(config, checkpoint, save_every=1, stopping=lambda: next(steps_taken) == steps)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    checkpoint = Checkpoint(tmp_path_factory.mktemp("uninterrupted"))
    run = train(SMALL, checkpoint)
    assert run.position.step == STEPS
    return saved(checkpoint)


@pytest.mark.parametrize("steps", range(1, STEPS + 1))
def test_a_run_stopped_after_any_step_ends_as_if_it_had_not_been(
    steps: int, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    """Weights, optimizer, scheduler, RNG, position and history; midway and between epochs."""
    checkpoint = Checkpoint(tmp_path)
    stop_after(steps, SMALL, checkpoint)
    assert saved(checkpoint)["position"]["step"] == steps
    torch.manual_seed(99)
    random.seed(99)
    train(SMALL, checkpoint)
    ended = saved(checkpoint)
    assert [part for part in ended if not same(ended[part], uninterrupted[part])] == []


def test_a_run_stopped_twice_ends_as_if_it_had_not_been(
    uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(tmp_path)
    stop_after(3, SMALL, checkpoint)
    stop_after(5, SMALL, checkpoint)
    train(SMALL, checkpoint)
    assert same(saved(checkpoint), uninterrupted)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    train(SMALL, checkpoint)
    before = checkpoint.path.read_bytes()
    assert train(SMALL, checkpoint).finished
    assert checkpoint.path.read_bytes() == before


def test_rng_states_are_put_back() -> None:
    state = rng_state()
    drawn = (torch.rand(3).tolist(), random.getrandbits(64))
    set_rng_state(state)
    assert (torch.rand(3).tolist(), random.getrandbits(64)) == drawn


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_checkpoint_cut_short_gives_one_clear_line(kept: float, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    stop_after(2, SMALL, checkpoint)
    contents = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(contents[: int(kept * len(contents))])
    with pytest.raises(CheckpointError) as error:
        train(SMALL, checkpoint)
    assert str(error.value) == (
        f"{checkpoint.path} is cut short, or no checkpoint (delete it to start over)"
    )


def test_a_file_that_could_run_code_is_not_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    torch.save({"config": os.getcwd}, checkpoint.path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(SMALL, checkpoint)


def test_a_file_of_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    torch.save(torch.zeros(3), checkpoint.path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(SMALL, checkpoint)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    stop_after(2, SMALL, checkpoint)
    contents = saved(checkpoint)
    del contents["optimizer"]
    torch.save(contents, checkpoint.path)
    with pytest.raises(CheckpointError) as error:
        train(SMALL, checkpoint)
    assert str(error.value) == f"{checkpoint.path} does not hold 'optimizer'"


def test_another_run_does_not_go_on_from_it(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    stop_after(2, SMALL, checkpoint)
    with pytest.raises(CheckpointError) as error:
        train(replace(SMALL, learning_rate=0.1), checkpoint)
    assert str(error.value) == (
        f"{checkpoint.path} belongs to another run: its config has learning_rate = 0.005, not 0.1"
        " (choose another folder, or delete it to start over)"
    )


def test_a_changed_split_rule_does_not_go_unnoticed(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    run = start(SMALL, torch.device("cpu"))
    checkpoint.save(run)
    run.split = Split(run.split.seed, run.split.share, rule="every fifth")
    with pytest.raises(
        CheckpointError, match=r"its split has rule = 'held out if .*', not 'every fifth'"
    ):
        checkpoint.restore(run)


def test_a_write_that_fails_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path)
    stop_after(2, SMALL, checkpoint)
    before = checkpoint.path.read_bytes()

    def save_half(_contents: object, file: Any) -> None:
        file.write(before[: len(before) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="no space left"):
        train(SMALL, checkpoint, save_every=1)
    assert checkpoint.path.read_bytes() == before
