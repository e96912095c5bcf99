"""Intervals against known values."""

import numpy as np
import pytest

from gridworld.intervals import mean_interval, success_interval

pytestmark = pytest.mark.unit


def test_wilsons_interval() -> None:
    low, high = success_interval(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert success_interval(200, 200)[0] == pytest.approx(0.98115, abs=1e-4)


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = mean_interval(rng.normal(3, 1, 60))
        covered += low <= 3 <= high
    assert 86 <= covered <= 100


def test_a_constant_has_no_spread() -> None:
    assert mean_interval(np.full(5, 0.25)) == (0.25, 0.25)
