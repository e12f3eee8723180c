"""A falling loss is told from one that does not fall by its order, on any scale."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_trainloop.runtime.trend import Trend, kendall_tau, sparkline, trend_of

SERIES = st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=80)


def falling(start: float, steps: int, rate: float) -> list[float]:
    return [start * rate**i for i in range(steps)]


@given(st.floats(1e-3, 1e3), st.integers(4, 150), st.floats(0.8, 0.99))
def test_a_steady_fall_is_good_however_slow(start: float, steps: int, rate: float) -> None:
    assert trend_of(falling(start, steps, rate), 0.5) in (Trend.FALLING, Trend.REACHED)


@given(st.floats(1e-3, 1e3), st.integers(4, 150), st.floats(0.8, 0.99))
def test_a_steady_rise_is_seen(start: float, steps: int, rate: float) -> None:
    assert trend_of(falling(start, steps, rate)[::-1], 0.5) is Trend.RISING


@given(st.floats(1e-3, 1e3), st.integers(4, 150))
def test_a_loss_that_stays_is_flat(value: float, steps: int) -> None:
    assert trend_of([value] * steps, 0.5) is Trend.FLAT


@given(SERIES, st.sampled_from([0.25, 4.0, 1024.0]))
def test_the_scale_of_a_loss_does_not_matter(losses: list[float], scale: float) -> None:
    assert trend_of([loss * scale for loss in losses], 0.5) is trend_of(losses, 0.5)


@given(SERIES, st.integers(0, 79), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_one_value_that_is_not_finite_is_enough(losses: list[float], at: int, bad: float) -> None:
    losses[at % len(losses)] = bad
    assert trend_of(losses, 0.5) is Trend.NOT_FINITE


@given(st.lists(st.floats(1e-3, 1e3), max_size=3))
def test_three_losses_show_no_trend(losses: list[float]) -> None:
    assert trend_of(losses, 0.5) is Trend.TOO_SHORT


@given(SERIES)
def test_tau_of_the_reversed_series_is_the_opposite(losses: list[float]) -> None:
    assume(len(losses) <= 60)
    assert kendall_tau(losses) == pytest.approx(-kendall_tau(losses[::-1]))


def test_a_loss_that_settles_above_its_goal_has_settled() -> None:
    losses = [1.461 + 0.9 * 0.8**i for i in range(100)]
    assert trend_of(losses, 0.5) is Trend.SETTLED
    assert trend_of(losses, 0.3) is Trend.REACHED


def test_a_negative_loss_is_to_fall_by_its_own_size() -> None:
    assert trend_of([-1.0 - 0.1 * i for i in range(20)], 0.5) is Trend.REACHED


@given(st.lists(st.floats(allow_nan=True), max_size=200))
def test_a_plot_has_a_bar_for_each_number_up_to_its_width(numbers: list[float]) -> None:
    assert len(sparkline(numbers)) == min(40, len(numbers))
