"""What a reader is told of each wrong mode: the cause in their own names, then the remedy."""

from __future__ import annotations

import pytest

from pytest_trainloop.rules import Bad, all_rules
from pytest_trainloop.source.read import read_source

#: What is said of each rule's first bad example, place by place.
TOLD: dict[str, list[tuple[str, str]]] = {
    "train-mode-not-restored": [
        (
            (
                "`model` stays in eval mode after this: nothing in the loop `for epoch in "
                "range(epochs):` (line 4) switches back before `model(x)` (line 7) is "
                "trained again"
            ),
            "switch back after the evaluation: `model.train()`",
        ),
    ],
    "missing-eval-mode": [
        (
            (
                "`model` is evaluated in train mode: it is trained at line 6, and nothing "
                "calls `model.eval()`"
            ),
            ("call `model.eval()` before the evaluation, and `model.train()` before training"),
        ),
    ],
    "pretrained-left-in-eval": [
        (
            (
                "`model` is trained in eval mode: "
                "`AutoModelForSequenceClassification.from_pretrained` (line 5) returns it "
                "so, and nothing calls `model.train()`"
            ),
            "call `model.train()` before the training",
        ),
    ],
    "step-in-evaluation": [
        (
            (
                "`optimizer.step()` trains on held-out data: `for x, y in val_loader:` (line "
                "10) is an evaluation, `model.eval()` stands before it"
            ),
            (
                "remove `backward()` and `step()` from the evaluation, and run it under "
                "`with torch.no_grad():`"
            ),
        ),
    ],
    "frozen-batchnorm-updates": [
        (
            ("`backbone` is frozen, but in train mode its BatchNorm statistics follow every batch"),
            "keep `backbone` in eval mode, and switch only what is trained",
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
