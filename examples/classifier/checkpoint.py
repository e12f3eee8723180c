"""A checkpoint: the whole run in one file, and back."""

from __future__ import annotations

import os
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch

from examples.classifier.run import History, Position, Run

RngState: TypeAlias = dict[str, Any]


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message is one line that says which, why, and what to do."""


class Checkpoint:
    """The checkpoint file of a run, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Name the file; nothing is read or written yet."""
        self.path = folder / "checkpoint.pt"

    def exists(self) -> bool:
        """Whether there is something to resume from."""
        return self.path.exists()

    def save(self, run: Run) -> None:
        """Write the run as it stands, between two steps.

        Raises:
            OSError: the folder cannot be written; an older checkpoint is left as it was.
        """
        contents = {
            "config": asdict(run.config),  # holds the seed
            "split": asdict(run.split),
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scheduler": run.scheduler.state_dict(),
            "rng": rng_state(),
            "position": asdict(run.position),
            "history": asdict(run.history),
        }
        write_whole(contents, self.path)

    def restore(self, run: Run) -> RngState:
        """Bring a run that was just started to where the saved one stood.

        The RNG state is handed back, not set: what happens between here and the next step may
        still draw from the RNG. See `train`.

        Raises:
            CheckpointError: the file is damaged, or belongs to another run.
            OSError: the file cannot be opened.
        """
        contents = self._read()
        try:
            for part, ours in (("config", asdict(run.config)), ("split", asdict(run.split))):
                self._refuse_other(part, saved=contents[part], ours=ours)
            run.model.load_state_dict(contents["model"])
            run.optimizer.load_state_dict(contents["optimizer"])
            run.scheduler.load_state_dict(contents["scheduler"])
            run.position = Position(**contents["position"])
            run.history = History(**contents["history"])
            rng: RngState = contents["rng"]
        except KeyError as missing:
            raise CheckpointError(f"{self.path} does not hold {missing}") from missing
        return rng

    def _read(self) -> dict[str, Any]:
        damaged = f"{self.path} is cut short, or no checkpoint (delete it to start over)"
        with self.path.open("rb") as file:
            try:
                # weights_only: a checkpoint is data, and must not be able to run code. To the
                # CPU first: load_state_dict copies from there to where the parameters are.
                contents = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises half a dozen kinds for a damaged file
                raise CheckpointError(damaged) from error
        if not isinstance(contents, dict):
            raise CheckpointError(damaged)
        return contents

    def _refuse_other(self, part: str, saved: dict[str, Any], ours: dict[str, Any]) -> None:
        for name in sorted(saved.keys() | ours.keys()):
            if saved.get(name) != ours.get(name):
                raise CheckpointError(
                    f"{self.path} belongs to another run: its {part} has {name} ="
                    f" {saved.get(name)!r}, not {ours.get(name)!r}"
                    " (choose another folder, or delete it to start over)"
                )


def write_whole(contents: dict[str, Any], path: Path) -> None:
    """Write a file so that at any time there is the old one or the new one, never a part.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        torch.save(contents, file)
        file.flush()
        # Or a power cut could keep the new name and lose what it names.
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def rng_state() -> RngState:
    """The state of every global RNG that the run may draw from.

    NumPy's is not among them because nothing here draws from it. A transform that does needs
    `numpy.random.get_state(legacy=False)` here and `set_state` below.
    """
    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: RngState) -> None:
    """Put the global RNGs where they were. A state of more GPUs than there are is cut."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda, device)
