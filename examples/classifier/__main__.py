"""Train the reference classifier from the shell: `python -m examples.classifier`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
import torch

from examples.classifier.checkpoint import Checkpoint, CheckpointError
from examples.classifier.run import Config, Run
from examples.classifier.train import Interrupted, train

DEFAULTS = Config()


@click.command(context_settings={"show_default": True})
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/classifier"),
    help="Folder of the checkpoint. A run that is found there goes on.",
)
@click.option("--examples", type=click.IntRange(100), default=DEFAULTS.examples, help="To draw.")
@click.option("--epochs", type=click.IntRange(1), default=DEFAULTS.epochs)
@click.option("--seed", type=click.IntRange(0), default=DEFAULTS.seed)
@click.option("--learning-rate", type=float, default=DEFAULTS.learning_rate)
@click.option(
    "--save-every",
    type=click.IntRange(1),
    default=25,
    help="Steps between checkpoints; it stops at one.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="auto: the GPU if there is one.",
)
@click.option("--fresh", is_flag=True, help="Start over: delete the checkpoint that is there.")
def main(
    out: Path,
    examples: int,
    epochs: int,
    seed: int,
    learning_rate: float,
    save_every: int,
    device: str,
    fresh: bool,
) -> None:
    """Train a network to tell discs, rings, triangles and crosses apart.

    Stop it with Ctrl-C (or SIGTERM, or pull the plug) and give the same command again: it goes
    on, and ends with the same weights as if it had never been stopped.
    """
    # A network this small gains nothing from more threads, and they could add up in another order.
    torch.set_num_threads(1)
    config = Config(seed, examples, epochs=epochs, learning_rate=learning_rate)
    checkpoint = Checkpoint(out)
    if fresh:
        checkpoint.path.unlink(missing_ok=True)
    if checkpoint.exists():
        click.echo(f"found {checkpoint.path}")
    with stop_signals() as received:
        try:
            run = train(
                config,
                checkpoint,
                device=torch.device(choose_device(device)),
                save_every=save_every,
                stopping=lambda: bool(received),
                after_epoch=report,
            )
        except Interrupted:
            click.echo(f"stopped; saved to {checkpoint.path}: the same command goes on")
            sys.exit(128 + received[0])
        except (CheckpointError, OSError) as error:
            raise click.ClickException(str(error)) from None
    click.echo(f"held-out accuracy {run.history.accuracies[-1]:.1%}; saved to {checkpoint.path}")


def choose_device(asked: str) -> str:
    """`asked`, or for "auto" the best there is."""
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise click.UsageError("--device cuda: torch sees no GPU")
    return "cuda" if available and asked != "cpu" else "cpu"


def report(run: Run) -> None:
    """Say how the epoch that just ended went."""
    history, in_epoch = run.history, run.batches.in_epoch
    losses, norms = history.losses[-in_epoch:], history.gradient_norms[-in_epoch:]
    click.echo(
        f"epoch {run.position.epoch}/{run.config.epochs}"
        f"  step {run.position.step}"
        f"  loss {sum(losses) / len(losses):.3f}"
        f"  gradient norm {sum(norms) / len(norms):.2f}"
        f"  rate {history.learning_rates[-1]:.1e}"
        f"  held-out accuracy {history.accuracies[-1]:.1%}"
    )


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the requests to stop; the second one stops at once.

    Stopping in the middle of a step would leave a run that is neither before it nor after it,
    so a request is noted here and obeyed by the loop.
    """
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main(prog_name="python -m examples.classifier")
