"""How to test a training loop: copy this file, and call your own loop.

Each test calls the loop as it is. What is to be true of it stands in the test's name.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.classifier.checkpoint import Checkpoint
from examples.classifier.run import Config, start
from examples.classifier.train import evaluate, train
from pytest_trainloop import Run as Record
from pytest_trainloop import overfits, resumes

#: The whole loop, in a fraction of a second: ten steps, with an epoch's end among them.
SMALL = Config(examples=400, epochs=2)


@overfits
def test_the_loop_learns_one_batch_by_heart(checkpoint_dir: Path) -> None:
    train(Config(examples=400), Checkpoint(checkpoint_dir))


@resumes
def test_an_interrupted_run_ends_as_if_it_had_not_been(checkpoint_dir: Path) -> None:
    train(SMALL, Checkpoint(checkpoint_dir), save_every=2)


def test_the_history_tells_what_happened(trainloop: Record, checkpoint_dir: Path) -> None:
    history = train(SMALL, Checkpoint(checkpoint_dir)).history
    assert history.losses == pytest.approx(trainloop.losses)
    assert history.learning_rates == pytest.approx(trainloop.learning_rates)
    # Clipping comes between the two: the history has the norms before it.
    clipped = [min(norm, SMALL.max_norm) for norm in history.gradient_norms]
    assert clipped == pytest.approx(trainloop.gradient_norms, rel=1e-4)


def test_every_parameter_is_trained(trainloop: Record, checkpoint_dir: Path) -> None:
    train(SMALL, Checkpoint(checkpoint_dir))
    assert [parameter.name for parameter in trainloop.parameters if not parameter.moved] == []


def test_evaluating_changes_nothing_and_builds_no_graph() -> None:
    run = start(SMALL, torch.device("cpu"))
    before = deepcopy(run.model.state_dict())
    graphs = []
    run.model.register_forward_hook(lambda _model, _pictures, logits: graphs.append(logits.grad_fn))
    evaluate(run.model, run.batches.to_evaluate())
    assert run.model.training
    assert set(graphs) == {None}
    for name, weights in run.model.state_dict().items():
        assert torch.equal(weights, before[name]), name


def test_accuracy_counts_every_example_the_same() -> None:
    """Three right answers of four, although the batches' accuracies are 1 and 0."""
    model = nn.Linear(2, 2, bias=False)
    nn.init.eye_(model.weight)
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    batches = [
        (torch.stack([first, second, first]), torch.tensor([0, 1, 0])),
        (torch.stack([second]), torch.tensor([0])),
    ]
    assert evaluate(model, batches) == 0.75


def test_it_learns_to_tell_the_shapes_apart(tmp_path: Path) -> None:
    run = train(Config(), Checkpoint(tmp_path))
    assert run.history.accuracies[-1] > 0.95
