"""Where training goes on with the weights of a checkpoint, and what is saved."""

from __future__ import annotations

import pytest

from pytest_trainloop.source.read import read_source

TRAINING = """
import torch
import torch.multiprocessing as mp

def run(loader, path):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    scaler = torch.amp.GradScaler()
    loaded = torch.load(path)
    model.load_state_dict(loaded["model"])
    {rest}
    for x, y in loader:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    torch.save(model.state_dict(), path)
"""


@pytest.mark.parametrize(
    ("rest", "resumes"),
    [
        ('scheduler.load_state_dict(loaded["scheduler"])', 1),
        ('scaler.load_state_dict(loaded["scaler"])', 1),
        ('scheduler.load_state_dict(torch.load("schedule.pt"))', 0),
        ('model.head.load_state_dict(loaded["head"])', 0),
    ],
)
def test_what_comes_back_with_the_weights_tells_a_resumed_run(rest: str, resumes: int) -> None:
    facts = read_source(TRAINING.format(rest=rest), "train.py")
    assert len(facts.checkpoints.resumes) == resumes


def test_a_save_is_one_place_and_each_of_its_readings() -> None:
    text = TRAINING.format(rest="pass") + "\nmp.spawn(run)\nrun([], 'a')\n"
    checkpoints = read_source(text, "train.py").checkpoints
    assert len(checkpoints.saves) == 1
    assert len(checkpoints.readings_of_saves) == 2
