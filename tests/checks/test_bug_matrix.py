"""Thirteen planted bugs, each in a project of its own, and what a user reads first about them.

The loop is called as it stands, by a test with one marker. Twelve bugs are a small change of the
sound loop; the thirteenth is a run that goes on without its position in the data.
"""

from __future__ import annotations

import pytest
from _pytest.pytester import LineMatcher

MARKERS = ("overfits", "trains", "trainloop")

SOUND = """
import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        features = self.body(x).relu()
        return self.head(features)


def batches(batch_size=8):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(24) % 3
    x = torch.randn(24, 4, generator=generator) + 2 * torch.eye(4)[y]
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=True)


def train(epochs=12):
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for epoch in range(epochs):
        for x, y in batches():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
"""

REGRESSION = (
    SOUND.replace("nn.Linear(16, 3)", "nn.Linear(16, 1)")
    .replace("TensorDataset(x, y)", "TensorDataset(x, x.sum(1))")
    .replace("F.cross_entropy(model(x), y)", "F.mse_loss(model(x).squeeze(1), y)")
)

#: The sound loop (or the regression), and what is changed in it to what.
BUGS: dict[str, tuple[str, str, str]] = {
    "detach": (SOUND, "self.head(features)", "self.head(features.detach())"),
    "optimizer of a copy": (SOUND, "(model.p", "(copy.deepcopy(model).p"),
    "learning rate 0": (SOUND, "lr=0.01", "lr=0.0"),
    "wrong sign": (SOUND, "loss.backward()", "(-loss).backward()"),
    "nan": (REGRESSION, "squeeze(1)", "squeeze(1).sqrt()"),
    "frozen": (
        SOUND,
        "optimizer = torch.optim.AdamW(model.p",
        "model.head.requires_grad_(False); optimizer = torch.optim.AdamW(model.head.p",
    ),
    "softmax twice": (SOUND, "self.head(features)", "self.head(features).softmax(1)"),
    "zero_grad after backward": (
        SOUND,
        "optimizer.step()",
        "optimizer.zero_grad(); optimizer.step()",
    ),
    "no zero_grad": (SOUND, "            optimizer.zero_grad()\n", ""),
    "(8, 1) against (8,)": (REGRESSION, "model(x).squeeze(1)", "model(x)"),
    "no step": (SOUND, "            optimizer.step()\n", ""),
    "learning rate 100": (REGRESSION, "lr=0.01", "lr=100.0"),
}
OPTIMIZER = "`optimizer` (AdamW, built at train.py:29)"
NAMES = "`body.weight`, `body.bias`, `head.weight` and 1 more"

#: The first line of the failure under each marker, with `*` for numbers; None where that marker
#: does not see the bug.
FIRST_LINES: dict[str, dict[str, str | None]] = {
    "detach": {
        "overfits": (
            "detached-loss: no gradient reaches `body.weight` and `body.bias`, which"
            f" {OPTIMIZER} is to update"
        ),
        "trains": "trains: no gradient ever reached `body.weight` and `body.bias`",
        "trainloop": (
            "detached-loss: no gradient reaches `body.weight` and `body.bias`, which"
            f" {OPTIMIZER} is to update"
        ),
    },
    "optimizer of a copy": {
        "overfits": (
            f"overfits: {OPTIMIZER} updates no parameter that the loss depends on: the loss"
            f" depends on {NAMES}"
        ),
        "trains": (
            f"trains: {OPTIMIZER} updates no parameter that the loss depends on: the loss"
            f" depends on {NAMES}"
        ),
        "trainloop": (
            f"orphan-parameters: 4 parameters of {OPTIMIZER} belong to no model and never get a"
            " gradient"
        ),
    },
    "learning rate 0": {
        "overfits": f"overfits: the learning rate is 0 in all 36 steps of {OPTIMIZER}",
        "trains": f"trains: the learning rate is 0 in all 20 steps of {OPTIMIZER}",
        "trainloop": f"zero-learning-rate: the learning rate is 0 in all 36 steps of {OPTIMIZER}",
    },
    "wrong sign": {
        "overfits": (
            "overfits: the loss is negated before `backward()`, so training raises the"
            " `cross_entropy`: * → * in * steps"
        ),
        # Forgetting on purpose looks the same, where nobody says that the loss is to fall.
        "trains": None,
        "trainloop": None,
    },
    "nan": {
        "overfits": (
            "overfits: the loss is nan at step 1: `sqrt` makes nan of finite values at train.py:33"
        ),
        "trains": (
            f"trains: the loss is nan at step 1: gradients that are not finite reached {NAMES}"
        ),
        "trainloop": (
            f"non-finite-update: the loss is nan at step 1, and {OPTIMIZER} updated 4 parameters"
            " with it"
        ),
    },
    "frozen": {
        "overfits": (
            f"overfits: all 2 parameters of {OPTIMIZER} are frozen: their `requires_grad` is False"
        ),
        "trains": (
            f"trains: all 2 parameters of {OPTIMIZER} are frozen: their `requires_grad` is False"
        ),
        "trainloop": (
            f"frozen-parameters: all 2 parameters of {OPTIMIZER} are frozen: its 36 steps changed"
            " nothing"
        ),
    },
    "softmax twice": dict.fromkeys(
        MARKERS,
        "softmax-before-cross-entropy: a softmax turns the input of the cross entropy into"
        " probabilities, and the cross entropy applies `log_softmax` itself",
    ),
    "zero_grad after backward": {
        "overfits": (
            f"overfits: the gradients are gone when {OPTIMIZER} steps: none of {NAMES} has one"
        ),
        "trains": f"trains: the gradients are gone when {OPTIMIZER} steps: none of {NAMES} has one",
        "trainloop": (
            "zero-grad-before-step: the gradients are cleared between `backward()` and the step of"
            f" {OPTIMIZER}: none of its 36 steps had any"
        ),
    },
    "no zero_grad": dict.fromkeys(
        MARKERS,
        f"missing-zero-grad: the gradients of {NAMES} are not cleared between steps of {OPTIMIZER}:"
        " * of * steps also used those of the step before",
    ),
    "(8, 1) against (8,)": dict.fromkeys(
        MARKERS,
        "broadcast-loss: `mse_loss` compares all with all: the prediction is (8, 1) and the target"
        " (8,), which broadcast to (8, 8)",
    ),
    "no step": {
        "overfits": (
            "overfits: no optimizer stepped: 36 backward calls, the last at train.py:34, and no"
            " `optimizer.step()` after it"
        ),
        "trains": (
            "trains: no optimizer stepped: 36 backward calls, the last at train.py:34, and no"
            " `optimizer.step()` after it"
        ),
        "trainloop": (
            "missing-step: no optimizer stepped: 36 backward calls and 36 zero_grad calls of"
            " AdamW, but no `step()`"
        ),
    },
    "learning rate 100": {
        "overfits": (
            f"overfits: the learning rate 100 of {OPTIMIZER} is too high: the loss * on one"
            " frozen batch (* → *), with 0.1 it falls"
        ),
        # What is too much for a batch cannot be told from one pass over several.
        "trains": None,
        "trainloop": None,
    },
}


def run(pytester: pytest.Pytester, loop: str, marker: str, *options: str) -> pytest.RunResult:
    test = f"import pytest, train\n\n@pytest.mark.{marker}\ndef test_it():\n    train.train()\n"
    pytester.makepyfile(train=loop, test_train=test)
    # A user's project takes torch's warning of a broadcast for what it is.
    quiet = ("-p", "no:cacheprovider", "-W", "ignore:Using a target size")
    return pytester.runpytest_inprocess(*quiet, *options)


def planted(bug: str) -> str:
    loop, sound, broken = BUGS[bug]
    assert loop.count(sound) == 1
    return loop.replace(sound, broken)


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_named_in_the_first_line(pytester: pytest.Pytester, bug: str, marker: str) -> None:
    expected = FIRST_LINES[bug][marker]
    result = run(pytester, planted(bug), marker)
    if expected is None:
        result.assert_outcomes(passed=1)
        return
    result.assert_outcomes(failed=1)
    lines = result.stdout.lines
    title = next(i for i, line in enumerate(lines) if line.startswith("____"))
    LineMatcher([lines[title + 1]]).fnmatch_lines([expected])


def test_every_bug_is_seen_by_some_marker() -> None:
    assert set(FIRST_LINES) == set(BUGS)
    assert all(any(lines.values()) for lines in FIRST_LINES.values())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("loop", [SOUND, REGRESSION], ids=["classifier", "regression"])
def test_the_sound_loops_raise_no_alarm(pytester: pytest.Pytester, loop: str, seed: int) -> None:
    marker = "overfits\n@pytest.mark.trains(frozen=())\n@pytest.mark.repeats"
    result = run(pytester, loop, marker, f"--trainloop-seed={seed}")
    result.assert_outcomes(passed=1)


RESUMING = (
    SOUND.replace("def train(epochs=12):", "def train(folder, epochs=3):")
    .replace(
        "    for epoch in range(epochs):\n",
        "    order, done = torch.Generator().manual_seed(1), 0\n"
        "    if (folder / 'last.pt').exists():\n"
        "        saved = torch.load(folder / 'last.pt')\n"
        "        model.load_state_dict(saved['model'])\n"
        "        optimizer.load_state_dict(saved['optimizer'])\n"
        "        order.set_state(saved['order'])\n"
        "        done = saved['done']\n"
        "    for epoch in range(done // 3, epochs):\n"
        "        before = order.get_state()\n",
    )
    .replace("in batches():", "in islice(batches(order), done % 3, None):")
    .replace("def batches(batch_size=8):", "def batches(order, batch_size=8):")
    .replace("shuffle=True", "shuffle=True, generator=order")
    .replace("import copy", "from itertools import islice")
    + """
            done += 1
            after = order.get_state() if done % 3 == 0 else before
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "order": after, "done": done}, folder / "last.pt")
"""
)
RESUME_TEST = """
import pytest, train

@pytest.mark.resumes
def test_it(checkpoint_dir):
    train.train(checkpoint_dir)
"""


@pytest.mark.parametrize(
    ("sound", "broken", "cause"),
    [
        ("", "", None),
        (
            "islice(batches(order), done % 3, None)",
            "batches(order)",
            (
                "resumes: batch not the same at step *: it was given the batch of step *: the data"
                " position is not restored"
            ),
        ),
        (
            "        order.set_state(saved['order'])\n",
            "",
            (
                "resumes: batch not the same at step *: it was given the batch of step *, of"
                " another epoch: the data order is not restored"
            ),
        ),
    ],
    ids=["sound", "position lost", "order lost"],
)
def test_a_run_that_goes_on_elsewhere_in_the_data(
    pytester: pytest.Pytester, sound: str, broken: str, cause: str | None
) -> None:
    assert sound in RESUMING
    pytester.makepyfile(train=RESUMING.replace(sound, broken) if sound else RESUMING)
    pytester.makepyfile(test_train=RESUME_TEST)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    if cause is None:
        result.assert_outcomes(passed=1)
        return
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([cause])
