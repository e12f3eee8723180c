"""What a reader is told of each lost part of a run: cause in their own names, then remedy."""

from __future__ import annotations

import pytest

from pytest_trainloop.rules import Bad, all_rules
from pytest_trainloop.source.read import read_source

#: What is said of each rule's first bad example, place by place.
TOLD: dict[str, list[tuple[str, str]]] = {
    "optimizer-not-checkpointed": [
        (
            (
                "training resumes here with the weights of `model`, but the state of "
                "`optimizer` is not restored, and no checkpoint holds it"
            ),
            "restore it from the checkpoint too: `optimizer.load_state_dict(...)`",
        ),
        (
            "the checkpoint that training resumes from holds no state of `optimizer`",
            "save `optimizer.state_dict()` beside the weights",
        ),
    ],
    "scheduler-not-checkpointed": [
        (
            (
                "the checkpoint that training resumes from holds no state of `scheduler`: "
                "after a restart the schedule begins anew"
            ),
            ("save `scheduler.state_dict()` too, and restore it where the optimizer is restored"),
        ),
    ],
    "scaler-not-checkpointed": [
        (
            (
                "the checkpoint that training resumes from holds no state of `scaler`: after "
                "a restart the loss scale begins anew, and steps are skipped until it fits"
            ),
            ("save `scaler.state_dict()` too, and restore it where the optimizer is restored"),
        ),
    ],
    "ema-not-checkpointed": [
        (
            (
                "the checkpoint that training resumes from holds no state of `ema`: after a "
                "restart the moving average of the weights begins anew"
            ),
            "save `ema.state_dict()` too, and restore it where the optimizer is restored",
        ),
    ],
    "rng-not-checkpointed": [
        (
            (
                "the checkpoint that training resumes from holds no state of the random "
                "number generators: a resumed run begins at `torch.manual_seed(0)` again and "
                "repeats the draws of the first epochs"
            ),
            ("save `torch.get_rng_state()`, and the states of CUDA, NumPy and Python if they draw"),
        ),
    ],
    "global-step-not-checkpointed": [
        (
            (
                "the loss depends on `step`, and the checkpoint that training resumes from "
                "(line 21) does not hold it: after a restart it begins anew"
            ),
            "save `step` with the checkpoint, and restore it",
        ),
    ],
    "resume-epoch-off-by-one": [
        (
            (
                "a resumed run does an epoch twice: the checkpoint is written at the end of "
                'the epoch it names in "epoch" (line 15), and `for epoch in range(start, '
                "epochs):` begins with that epoch again"
            ),
            'save the next epoch as "epoch", or add 1 to it where it is loaded',
        ),
    ],
    "aliased-best-state": [
        (
            (
                "`best_state` holds the weights themselves, not a copy: every later "
                "`optimizer.step()` changes them too"
            ),
            "keep a copy: `copy.deepcopy(model.state_dict())`",
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
