"""What is said first when two steps differ: causes before what follows from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.checks._compare import closest_step, first_difference
from pytest_trainloop.runtime.fingerprint import StepPrint

STEP = StepPrint(
    where="train.py:9",
    number=5,
    optimizer="AdamW",
    epoch=0,
    loss=1.0,
    learning_rates=(0.1,),
    weights={"m.w": b"1", "m.b": b"2"},
    buffers={"m.mean": b"3"},
    state={"exp_avg": b"4"},
    state_steps=4.0,
    gradients={"m.w": b"5"},
    batches=(b"6",),
    rng={"torch": b"7"},
    scalers=(),
    other_models={},
    sample=(1.0, 2.0),
)
EARLIER = replace(STEP, number=4, batches=(b"old",), rng={"torch": b"6"})
RUN = [EARLIER, STEP]

#: In the order in which one follows from another.
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("weights", {"weights": {"m.w": b"x", "m.b": b"2"}}),
    ("optimizer state", {"state_steps": 0.0}),
    ("learning rate", {"learning_rates": (0.2,)}),
    ("loss scale", {"scalers": ((65536.0, 0.0),)}),
    ("batch", {"batches": (b"x",), "loss": 2.0}),
    ("buffers", {"buffers": {"m.mean": b"x"}}),
    ("RNG state", {"rng": {"torch": b"x"}, "loss": 2.0}),
    ("loss", {"loss": 2.0}),
]


@given(st.sets(st.integers(0, len(CHANGES) - 1), min_size=1))
def test_the_first_cause_is_named_whatever_else_differs(which: set[int]) -> None:
    changes = {key: value for i in which for key, value in CHANGES[i][1].items()}
    difference = first_difference(replace(STEP, **changes), STEP, RUN)
    assert difference is not None
    assert difference.what == CHANGES[min(which)][0]


@given(st.sampled_from(["batches", "rng"]))
def test_what_nothing_depended_on_is_no_difference(field: str) -> None:
    other: dict[str, Any] = {"batches": (b"x",), "rng": {"torch": b"x"}}
    assert first_difference(replace(STEP, **{field: other[field]}), STEP, RUN) is None


def test_random_numbers_are_not_blamed_in_a_run_that_draws_none() -> None:
    calm = [replace(EARLIER, rng=STEP.rng), STEP]
    difference = first_difference(replace(STEP, rng={"torch": b"x"}, loss=2.0), STEP, calm)
    assert difference is not None
    assert difference.message == (
        "loss 2 instead of 1, with the same weights, data and learning rate"
    )


@pytest.mark.parametrize(
    ("batch", "epoch", "words"),
    [
        (b"old", 0, "the batch of step 4: the data position is not restored"),
        (b"old", 1, "the batch of step 4, of another epoch: the data order is not restored"),
        (b"new", 0, "a batch that the uninterrupted run never saw: the data order"),
    ],
)
def test_position_and_order_are_told_apart(batch: bytes, epoch: int, words: str) -> None:
    theirs = replace(STEP, epoch=epoch)
    difference = first_difference(replace(theirs, batches=(batch,), loss=2.0), theirs, RUN)
    assert difference is not None
    assert difference.message.startswith(f"it was given {words}")


def test_the_closest_weights_are_found() -> None:
    run = [replace(STEP, sample=(float(i), 2.0)) for i in range(5)]
    assert closest_step(replace(STEP, sample=(2.75, 2.0)), run) == (3, 0.25)
