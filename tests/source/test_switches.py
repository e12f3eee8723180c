"""Which calls may put a model into another mode."""

from __future__ import annotations

import pytest

from pytest_trainloop.source.facts import may_switch, may_switch_out_of_sight
from pytest_trainloop.source.read import read_source


def may_change_the_mode(statement: str) -> bool:
    """Whether the last call of a statement may switch `model`."""
    text = f"import torch\n\nmodel = build()\nmodel(1)\n{statement}\n"
    _, forward, last = read_source(text, "run.py").traces[0].calls
    return may_switch(last) or may_switch_out_of_sight(last, forward.callee)


@pytest.mark.parametrize(
    "statement",
    ["model.eval()", "hooks.inference_mode(model)", "hooks.evaluating()", "hooks.before(model)"],
)
def test_switches_and_what_is_given_the_model_may(statement: str) -> None:
    assert may_change_the_mode(statement)


@pytest.mark.parametrize(
    "statement",
    ["torch.inference_mode()", "accelerator.accumulate(model)", "accelerator.unwrap_model(model)"],
)
def test_gradients_and_accumulation_do_not(statement: str) -> None:
    assert not may_change_the_mode(statement)
