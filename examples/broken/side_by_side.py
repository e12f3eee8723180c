"""Put the classifier and a twin of it side by side: same settings, same seed, and the numbers."""

from __future__ import annotations

import ast
import inspect
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import ndiff
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import click
import torch

from examples.classifier.checkpoint import Checkpoint
from examples.classifier.run import Config, History, Run, start
from examples.classifier.train import Interrupted, evaluate, train, train_steps

CLONE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Symptom:
    """What a bug does, in numbers: a row for each epoch or step, from number `first` on."""

    row: str
    first: int
    #: What is measured, then its values in the healthy run and in the broken one.
    numbers: dict[str, tuple[list[float], list[float]]]

    def table(self) -> str:
        """The numbers for a reader, to four digits."""
        sides = [values for pair in self.numbers.values() for values in pair]
        lines = [
            "".join([" " * 6, *(f"{name:>24}" for name in self.numbers)]),
            "".join([f"{self.row:6}", *[f"{'healthy':>12}{'broken':>12}"] * len(self.numbers)]),
        ]
        for number, row in enumerate(zip(*sides, strict=True), self.first):
            lines.append("".join([f"{number:<6}", *(f"{value:12.4g}" for value in row)]))
        return "\n".join(lines)


def epochs(config: Config, train_steps: Callable[..., History] = train_steps) -> Iterator[Run]:
    """Train without a checkpoint; yield the run after each epoch."""
    run = start(config, torch.device("cpu"))
    run.model.train()
    while not run.finished:
        batches = run.batches.of_epoch(run.position.epoch, start=0)
        run.advance(train_steps(run.model, run.optimizer, run.scheduler, batches, config.max_norm))
        run.end_epoch(evaluate(run.model, run.batches.to_evaluate()))
        yield run


def mean_of_epoch(values: list[float], run: Run) -> float:
    """The mean over the steps of the epoch that just ended."""
    last = values[-run.batches.in_epoch :]
    return sum(last) / len(last)


def stopped_and_resumed(config: Config, checkpoint_class: type[Checkpoint], after: int) -> Run:
    """Train, stop after so many steps, and go on from the checkpoint."""
    with TemporaryDirectory() as folder:
        checkpoint = checkpoint_class(Path(folder))
        steps = count(1)
        try:
            train(config, checkpoint, save_every=1, stopping=lambda: next(steps) == after)
        except Interrupted:
            return train(config, checkpoint)
    raise ValueError(f"the run ends before step {after}")


def difference(healthy: Callable[..., object], broken: Callable[..., object]) -> list[str]:
    """The lines that only one of two functions has, comments and docstrings aside."""
    lines = ndiff(_code_lines(healthy), _code_lines(broken))
    return [line for line in lines if line[0] in "+-"]


def _code_lines(function: Callable[..., object]) -> list[str]:
    source = dedent(inspect.getsource(function))
    (definition,) = ast.parse(source).body
    if not isinstance(definition, ast.FunctionDef):
        raise TypeError(f"{function} is no function")
    docstring = definition.body[0]
    lines = source.splitlines()
    del lines[docstring.lineno - 1 : docstring.end_lineno]
    code = (line.partition("  #")[0].strip() for line in lines)
    return [line for line in code if line and not line.startswith("#")]


def show(symptom: Callable[[], Symptom], bug: list[str], guard: str) -> None:
    """Print what the twin that runs is about, its symptom, its bug, and what the guard says."""
    torch.set_num_threads(1)  # as the classifier does
    about = inspect.cleandoc(str(sys.modules["__main__"].__doc__))
    click.echo(f"{about}\n\n{symptom().table()}\n")
    click.echo("\n".join(["What differs:", *bug, ""]))
    click.echo(f"$ {guard}\n{said_by(guard)}")


def said_by(command: str) -> str:
    """What a command of this Python environment prints when it is run in the clone."""
    name, *arguments = command.split()
    places = [sysconfig.get_path("scripts"), os.environ.get("PATH", "")]
    program = shutil.which(name, path=os.pathsep.join(places)) or name
    done = subprocess.run(  # noqa: S603 -- the commands stand in this folder
        [program, *arguments],
        cwd=CLONE,
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.stdout
