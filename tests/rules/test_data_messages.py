"""What a reader is told of the ways in which data, replicas and random numbers go wrong."""

from __future__ import annotations

import pytest

from pytest_trainloop.rules import Bad, all_rules
from pytest_trainloop.source.read import read_source

#: What is said of each rule's first bad example, place by place.
TOLD: dict[str, list[tuple[str, str]]] = {
    "missing-set-epoch": [
        (
            (
                "`sampler` shuffles every epoch alike: `for epoch in range(epochs):` goes "
                "over `loader` again without `set_epoch`"
            ),
            ("tell it the epoch before each pass: `sampler.set_epoch(epoch)`"),
        ),
    ],
    "misaligned-labels": [
        (
            (
                "`TensorDataset(x, y)` puts side by side what `torch.randperm(len(x))` "
                "(line 5) and `torch.randperm(len(y))` (line 6) have shuffled apart: inputs"
                " have the labels of other samples"
            ),
            (
                "draw one order and use it for both: `order = torch.randperm(len(x))`, then"
                " `x[order]` and `y[order]`"
            ),
        ),
    ],
    "duplicated-worker-seed": [
        (
            (
                "`self.rng` is copied into each worker of `DataLoader`: all of them draw "
                "the same random numbers, in every epoch"
            ),
            (
                "make `self.rng` in the worker, at its first sample, with "
                "`torch.initial_seed()` as its seed"
            ),
        ),
    ],
    "unshuffled-training": [
        (
            (
                "`DataLoader` does not shuffle: `for epoch in range(epochs):` trains on "
                "`images` in the same order in every turn"
            ),
            ("shuffle it: `shuffle=True`"),
        ),
    ],
    "forward-bypasses-ddp": [
        (
            (
                "`model.module(x)` goes past the `DistributedDataParallel` around "
                "`net.to(rank)`: the gradients of this loss are not averaged over the "
                "processes"
            ),
            ("compute the loss through the wrapper: `model(x)`"),
        ),
    ],
    "seed-in-loop": [
        (
            (
                "`torch.manual_seed(seed)` resets the random numbers in each turn of `for "
                "epoch in range(epochs):`: every turn shuffles, augments and drops out "
                "alike"
            ),
            (
                "seed once, before the training loop; where one draw must repeat, give it a"
                " generator of its own: `torch.Generator().manual_seed(seed)`"
            ),
        ),
    ],
    "silent-nan-skip": [
        (
            (
                "`continue` passes a batch over, by `torch.isnan(loss)`, without a count or"
                " a word in the log: if every batch is passed over, the run still looks "
                "finished"
            ),
            ("count the skipped batches, log them, and raise an error where there are too many"),
        ),
    ],
}


@pytest.mark.parametrize("name", TOLD)
def test_the_message_names_the_cause_and_the_advice_says_what_to_write(name: str) -> None:
    """A reader who sees only the first line knows what is wrong, in names of their own."""
    rule = all_rules()[name]
    example = rule.examples[0]
    assert isinstance(example, Bad)
    findings = rule.lint(read_source(example.program, "train.py"))
    assert [(found.message, found.advice) for found in findings] == TOLD[name]
