"""What must always hold of the comparison of gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_trainloop.checks._tensors import ROUNDING, factor_between, first_difference

Sizes = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def gradients(sizes: list[int], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {str(n): torch.randn(size, generator=generator) for n, size in enumerate(sizes)}


@given(Sizes, st.integers(0, 99), st.floats(0.01, 100))
def test_a_multiple_is_known_as_one(sizes: list[int], seed: int, factor: float) -> None:
    theirs = gradients(sizes, seed)
    ours = {name: one * factor for name, one in theirs.items()}
    assert factor_between(ours, theirs) == pytest.approx(factor, rel=1e-3)
    assert first_difference(ours, theirs, abs(factor - 1) * 1.01 + 1e-6) is None
    if abs(factor - 1) > 1e-3:
        sizable = 0.9 * ROUNDING * max(float(one.abs().max()) for one in theirs.values())
        first = next(name for name, one in theirs.items() if float(one.abs().max()) > sizable)
        assert first_difference(ours, theirs, abs(factor - 1) * 0.9) == first


@given(Sizes, st.integers(0, 99))
def test_nothing_differs_from_itself(sizes: list[int], seed: int) -> None:
    ours = gradients(sizes, seed)
    assert first_difference(ours, gradients(sizes, seed), 0.0) is None


@given(Sizes, st.integers(0, 99), st.data())
def test_the_first_that_differs_is_named(sizes: list[int], seed: int, data: st.DataObject) -> None:
    theirs = gradients(sizes, seed)
    name = data.draw(st.sampled_from(sorted(theirs)))
    ours = {**theirs, name: theirs[name] + theirs[name].abs().max() + 1}
    assert first_difference(ours, theirs, 1e-3) == name
    assert first_difference({n: o for n, o in theirs.items() if n != name}, theirs, 1e-3) == name


def test_no_factor_is_made_up() -> None:
    ours = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    theirs = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([-3.0])}
    assert factor_between(ours, theirs) is None
    assert factor_between(ours, {"a": theirs["a"]}) is None
    assert factor_between(ours, {name: one * 0 for name, one in theirs.items()}) is None
