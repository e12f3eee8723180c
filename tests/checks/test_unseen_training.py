"""Training that cannot be watched is told apart from a loop that trains nothing."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pytest_trainloop import watch

HEAD = """
import multiprocessing, subprocess, sys
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from pytest_trainloop import evaluates, frees, overfits, repeats, resumes, trains

@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))

def update_by_hand(model, loader):
    model.train()
    for x, y in loader:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for p in model.parameters():
            p.data.add_(p.grad, alpha=-0.1)

"""
BY_HAND = """
@{check}
def test_it(model, tiny_loader, checkpoint_dir):
    update_by_hand(model, tiny_loader)
"""


def run(pytester: pytest.Pytester, code: str) -> pytest.RunResult:
    pytester.makepyfile(test_it=HEAD + code)
    options = ("-p", "no:cacheprovider", "-p", "no:randomly", "-W", "ignore")
    return pytester.runpytest_inprocess(*options)


@pytest.mark.parametrize("check", ["overfits", "resumes", "trains"])
def test_updates_by_hand_cannot_be_judged(pytester: pytest.Pytester, check: str) -> None:
    run(pytester, BY_HAND.format(check=check)).stdout.fnmatch_lines(
        [
            (
                f"{check}: cannot judge: no optimizer stepped, but `0.weight`, `0.bias`, `2.weight`"
                " and 1 more moved: updates that are written by hand are not seen"
            ),
            "  * backward calls, the last at test_it.py:17",
            (
                "  What to do: let an optimizer of `torch.optim` make the updates, whose steps can"
                " be watched"
            ),
        ]
    )


def test_updates_by_hand_are_no_evaluation(pytester: pytest.Pytester) -> None:
    """The calls in train mode are those of training; what is evaluated after it is judged."""
    result = run(
        pytester,
        """
@pytest.mark.parametrize("mode", [False, True])
@evaluates
def test_it(model, tiny_loader, mode):
    for _ in range(2):
        update_by_hand(model, tiny_loader)
        model.train(mode)
        with torch.no_grad():
            for x, y in tiny_loader: model(x)
""",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["evaluates: `model` is evaluated in train mode, on which `1` (Dropout) depends"]
    )


UNSEEN = {
    "a child process": (
        "    one = multiprocessing.get_context('fork').Process(); one.start(); one.join()",
        "the test body started a child process at test_it.py:24",
    ),
    "a launcher": (
        "    subprocess.run([sys.executable, '-c', ''])",
        "the test body started `python*` at test_it.py:24",
    ),
}


@pytest.mark.parametrize("body", UNSEEN)
@pytest.mark.filterwarnings("ignore:This process")  # Python's own word on forks beside threads
def test_what_another_process_trains_cannot_be_judged(pytester: pytest.Pytester, body: str) -> None:
    code, started = UNSEEN[body]
    run(pytester, f"@trains\ndef test_it():\n    pass\n{code}\n").stdout.fnmatch_lines(
        [
            (
                f"trains: cannot judge: no backward was seen: {started}, and what other processes"
                " compute is not seen"
            ),
            (
                "  What to do: call in the test itself what the other process runs (a script:"
                " `run_script`), a loop for several devices as the only process of its group"
            ),
        ]
    )


@pytest.mark.filterwarnings("ignore:This process")  # as above
def test_other_children_hide_nothing(pytester: pytest.Pytester) -> None:
    """The workers of a data loader, and other commands, train nothing."""
    result = run(
        pytester,
        "@trains\ndef test_it(tiny_dataset):\n"
        "    subprocess.run('true')\n"
        "    list(DataLoader(tiny_dataset, num_workers=1, multiprocessing_context='fork'))\n",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["trains: the test body never called backward"])


@pytest.mark.parametrize("device", ["None", "torch.device('cpu')"])
def test_gradients_that_are_asked_for_by_hand(pytester: pytest.Pytester, device: str) -> None:
    """Also below a mode that each call of torch passes through, as a default device is one."""
    run(
        pytester,
        "@trains\ndef test_it(model):\n"
        f"    torch.set_default_device({device})\n"
        "    torch.autograd.grad(model(torch.ones(2, 4)).sum(), list(model.parameters()))\n"
        "    torch.set_default_device(None)\n",
    ).stdout.fnmatch_lines(
        [
            (
                "trains: cannot judge: no backward was seen, but 1 call of `torch.autograd.grad`:"
                " updates that are written by hand are not seen"
            )
        ]
    )


class Wait(torch.autograd.Function):
    """Lets two backwards run at the same time."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor, barrier: threading.Barrier) -> torch.Tensor:
        ctx.barrier = barrier  # type: ignore[attr-defined]  # what a function keeps
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.barrier.wait(20)  # type: ignore[attr-defined]  # as above
        return grads[0], None


def test_backwards_of_two_threads_at_a_time_are_both_seen() -> None:
    barrier = threading.Barrier(2)

    def back_propagate() -> None:
        loss = nn.Linear(4, 1)(torch.ones(2, 4)).sum()
        Wait.apply(loss, barrier).backward()  # type: ignore[no-untyped-call]  # torch's own

    with watch() as run:
        threads = [threading.Thread(target=back_propagate) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(run.backwards) == 2


def test_the_backward_inside_of_a_backward_is_not_counted() -> None:
    layer = nn.Linear(4, 4)
    with watch() as run:
        x = torch.ones(2, 4, requires_grad=True)
        F.relu(checkpoint(layer, x, use_reentrant=True)).sum().backward()
    assert len(run.backwards) == 1
