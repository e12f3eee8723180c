"""A checkpoint without the optimizer: the run goes on with the right weights and no memory.

Nothing fails. The first loss after the resume is the same to the last digit, since weights, data
and RNG are back. Then Adam takes its first steps anew, each as long as the learning rate allows;
and the rate has jumped too, for it is the optimizer that holds it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from examples.broken.side_by_side import Symptom, difference, show, stopped_and_resumed
from examples.classifier import checkpoint
from examples.classifier.checkpoint import CheckpointError, RngState, rng_state, write_whole
from examples.classifier.run import Config, History, Position, Run
from examples.classifier.train import train
from pytest_trainloop import resumes

GUARD = "pytest -p trainloop examples/broken/optimizer_not_checkpointed.py"
STOP_AFTER = 50


class Checkpoint(checkpoint.Checkpoint):
    """The classifier's, but without the optimizer."""

    def save(self, run: Run) -> None:
        """Write the run as it stands, but for the optimizer."""
        contents = {
            "config": asdict(run.config),
            "split": asdict(run.split),
            "model": run.model.state_dict(),
            "scheduler": run.scheduler.state_dict(),
            "rng": rng_state(),
            "position": asdict(run.position),
            "history": asdict(run.history),
        }
        write_whole(contents, self.path)

    def restore(self, run: Run) -> RngState:
        """Bring a run to where the saved one stood, but for the optimizer."""
        contents = self._read()
        try:
            for part, ours in (("config", asdict(run.config)), ("split", asdict(run.split))):
                self._refuse_other(part, saved=contents[part], ours=ours)
            run.model.load_state_dict(contents["model"])
            run.scheduler.load_state_dict(contents["scheduler"])
            run.position = Position(**contents["position"])
            run.history = History(**contents["history"])
            rng: RngState = contents["rng"]
        except KeyError as missing:
            raise CheckpointError(f"{self.path} does not hold {missing}") from missing
        return rng


def symptom() -> Symptom:
    """Loss and learning rate around the resume."""
    config = Config(examples=1500, epochs=5)
    healthy, broken = (
        stopped_and_resumed(config, kind, STOP_AFTER).history
        for kind in (checkpoint.Checkpoint, Checkpoint)
    )
    around = slice(STOP_AFTER - 3, STOP_AFTER + 5)
    return Symptom(
        "step",
        around.start + 1,
        {
            "loss": (healthy.losses[around], broken.losses[around]),
            "learning rate": (healthy.learning_rates[around], broken.learning_rates[around]),
        },
    )


@resumes
def test_the_run_resumes(checkpoint_dir: Path) -> None:
    train(Config(examples=300, epochs=2), Checkpoint(checkpoint_dir), save_every=2)


if __name__ == "__main__":
    healthy = checkpoint.Checkpoint
    bug = difference(healthy.save, Checkpoint.save) + difference(
        healthy.restore, Checkpoint.restore
    )
    show(symptom, bug, GUARD)
