"""The classifier's data: the same pictures, the same split and the same order, always."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.classifier.batches import EpochOrder, Split
from examples.classifier.run import Config, start
from examples.classifier.shapes import NAMES, SIDE, Shapes

SEEDS = st.integers(0, 2**32)


def test_the_same_seed_draws_the_same_pictures_and_leaves_the_global_rng_alone() -> None:
    before = torch.get_rng_state()
    once, again, other = Shapes(40, seed=1), Shapes(40, seed=1), Shapes(40, seed=2)
    assert torch.equal(once.pictures, again.pictures)
    assert not torch.equal(once.pictures, other.pictures)
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_and_classes_have_the_documented_form() -> None:
    data = Shapes(40, seed=0)
    picture, label = data[7]
    assert picture.shape == (1, SIDE, SIDE)
    assert picture.dtype == torch.float32
    assert label == 3
    assert data.labels.bincount().tolist() == [10] * len(NAMES)


def test_the_mean_picture_of_a_class_says_little_about_it() -> None:
    """Dark and bright pictures cancel out, so that a linear classifier has nothing to go by."""
    data = Shapes(4000, seed=0)
    for label in range(len(NAMES)):
        pictures = data.pictures[data.labels == label]
        assert pictures.mean(dim=0).abs().max() < 0.1
        assert pictures.abs().mean(dim=0).max() > 0.5


@settings(deadline=None)  # a busy machine is no bug
@given(seed=SEEDS, size=st.integers(0, 60), more=st.integers(0, 60))
def test_more_examples_do_not_move_any_across_the_split(seed: int, size: int, more: int) -> None:
    split = Split(seed, share=0.3)
    for ours, theirs in zip(
        split.parts(Shapes(size, 0), size), split.parts(Shapes(size, 0), size + more), strict=True
    ):
        assert ours.indices == [number for number in theirs.indices if number < size]


def test_the_split_has_about_the_share_and_no_example_on_both_sides() -> None:
    training, held_out = Split(0, share=0.2).parts(Shapes(4000, 0), 4000)
    assert sorted([*training.indices, *held_out.indices]) == list(range(4000))
    assert 0.17 < len(held_out) / 4000 < 0.23


@settings(deadline=None)  # a busy machine is no bug
@given(seed=SEEDS, epoch=st.integers(0, 100), size=st.integers(0, 60), start=st.integers(0, 70))
def test_an_epoch_entered_midway_is_the_rest_of_the_whole_one(
    seed: int, epoch: int, size: int, start: int
) -> None:
    whole = list(EpochOrder(size, seed, epoch))
    rest = EpochOrder(size, seed, epoch, start)
    assert sorted(whole) == list(range(size))
    assert list(rest) == whole[start:]
    assert len(rest) == len(whole[start:])


def test_each_epoch_has_an_order_of_its_own_and_no_other_seed_shares_it() -> None:
    orders = [tuple(EpochOrder(50, seed, epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_evaluating_draws_nothing_from_the_global_rng() -> None:
    run = start(Config(examples=200), torch.device("cpu"))
    before = torch.get_rng_state()
    list(run.batches.to_evaluate())
    assert torch.equal(torch.get_rng_state(), before)
