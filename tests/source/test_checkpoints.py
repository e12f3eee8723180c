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


@pytest.mark.parametrize("given", ["path, net", "path=path, model=net", "net, path=path"])
def test_the_model_that_training_resumes_with_is_told_by_its_argument(given: str) -> None:
    """Wherever it stands among the arguments of what loads it."""
    names = "model, path" if given.startswith("net") else "path, model"
    facts = read_source(
        "import torch\n\n"
        f"def restore({names}):\n"
        "    state = torch.load(path)\n"
        "    model.load_state_dict(state['model'])\n"
        "    return state['epoch']\n\n"
        "def main(net, loader, path):\n"
        "    optimizer = torch.optim.Adam(net.parameters())\n"
        f"    first = restore({given})\n"
        "    for epoch in range(first, 9):\n"
        "        for x, y in loader:\n"
        "            optimizer.zero_grad()\n"
        "            torch.nn.functional.cross_entropy(net(x), y).backward()\n"
        "            optimizer.step()\n",
        "train.py",
    )
    assert [resume.model_text for resume in facts.checkpoints.resumes] == ["net"]
