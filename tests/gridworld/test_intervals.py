"""Intervals against known values."""

import numpy as np
import pytest
from scipy import stats

from gridworld.intervals import mean_interval, success_interval

pytestmark = pytest.mark.unit


def test_wilsons_interval() -> None:
    low, high = success_interval(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert success_interval(200, 200)[0] == pytest.approx(0.98115, abs=1e-4)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 7), (1, 1), (81, 263), (97, 100), (200, 200)])
def test_both_intervals_are_scipys(successes: int, episodes: int) -> None:
    expected = stats.binomtest(successes, episodes).proportion_ci(0.95, method="wilson")
    assert success_interval(successes, episodes) == pytest.approx(expected, abs=1e-12)
    values = np.random.default_rng(successes).random(episodes + 1)
    with_ = {"n_resamples": 2000, "confidence_level": 0.95, "method": "percentile", "rng": 0}
    expected = stats.bootstrap((values,), np.mean, **with_).confidence_interval
    assert mean_interval(values) == pytest.approx(expected, abs=1e-12)


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = mean_interval(rng.normal(3, 1, 60))
        covered += low <= 3 <= high
    assert 86 <= covered <= 100


def test_a_constant_has_no_spread() -> None:
    assert mean_interval(np.full(5, 0.25)) == (0.25, 0.25)
