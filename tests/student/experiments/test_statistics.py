"""Intervals and thresholds against known values."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from student.experiments.statistics import (
    Bound,
    CensoredTimes,
    estimate,
    exponential,
    interquartile_mean,
    interval_of,
    kaplan_meier_medians,
    log_speed_up,
    mean_of,
    resample,
    resampled_medians,
    samples_to,
    stratified,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.9, 0.95, 1.0, 0.2], 20),
        ([0.9, 0.5, 0.9, 0.9, 0.9], 30),
        ([0.0, 0.0, 0.9, 0.9], None),
        ([0.5] * 5, None),
        ([], None),
    ],
)
def test_a_threshold_needs_three_evaluations_in_a_row(values: list[float], expected: int | None) -> None:
    frames = [10 * (i + 1) for i in range(len(values))]
    assert samples_to(0.9, frames, values) == expected


_RESAMPLES = 500


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _times(*frames: float, never: int = 0, run: float = 100) -> CensoredTimes:
    """Seeds that reached the threshold after these frames, and `never` seeds that did not within `run`."""
    return CensoredTimes(
        np.array([*frames, *[run] * never], float), np.array([True] * len(frames) + [False] * never)
    )


def _speed_up(
    baseline: CensoredTimes, arm: CensoredTimes, rng: np.random.Generator | None = None
) -> tuple[Any, Any, Any]:
    rng = rng or _rng()
    medians = [resampled_medians(times, _RESAMPLES, rng) for times in (baseline, arm)]
    return exponential(estimate(log_speed_up(*medians)))


def test_kaplan_meier_medians_equal_scipys() -> None:
    rng = _rng()
    frames_RN = rng.integers(1, 12, size=(300, 9)).astype(float)  # with many ties
    reached_RN = rng.random(frames_RN.shape) < 0.7
    medians_R, at_least_R, _ = kaplan_meier_medians(frames_RN, reached_RN)
    for frames_N, reached_N, median, at_least in zip(
        frames_RN, reached_RN, medians_R, at_least_R, strict=True
    ):
        left = stats.ecdf(stats.CensoredData.right_censored(frames_N, ~reached_N)).sf
        below = left.quantiles[left.probabilities <= 0.5 + 1e-9]
        assert at_least == (len(below) == 0)
        assert median == (below[0] if len(below) else frames_N.max())
    assert 0 < at_least_R.sum() < 300


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (_times(10, 20, 30), Bound(20)),
        (_times(10, 20, never=2), Bound(20)),
        (_times(10, 20, never=3), Bound(100, ">=")),
        (_times(never=3), Bound(100, ">=")),
        # S = 3/4 after 5; two seeds are censored; the last one reaches the threshold: S = 3/4 * 0
        (CensoredTimes(np.array([5.0, 10, 20, 30]), np.array([True, False, False, True])), Bound(30)),
    ],
)
def test_medians_by_hand(times: CensoredTimes, expected: Bound) -> None:
    assert estimate(resampled_medians(times, _RESAMPLES, _rng())).value == expected


def test_a_speed_up_is_the_baselines_median_over_the_arms() -> None:
    value, low, high = _speed_up(_times(40, 50, 60, 70, 80), _times(10, 20, 20, 25, 30))
    assert value == Bound(pytest.approx(3.0))
    assert (low.sign, high.sign) == ("", "")
    assert 40 / 30 <= low.value < 3 < high.value <= 80 / 10


def test_a_speed_ups_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = _rng()
    covered = 0
    for _ in range(150):
        baseline, arm = (
            CensoredTimes(rng.lognormal(np.log(m), 0.4, 15), np.ones(15, bool)) for m in (60, 20)
        )
        _, low, high = _speed_up(baseline, arm, rng)
        covered += low.value <= 3 <= high.value
    assert 0.9 <= covered / 150 <= 0.995


def test_a_censored_interval_covers_the_truth() -> None:
    """Runs end at 70, soon after the median of 60: the upper end of the interval must be a bound."""
    rng = _rng()
    covered = opened = 0
    for _ in range(100):
        frames_N = rng.lognormal(np.log(60), 0.4, 12)
        baseline = CensoredTimes(np.minimum(frames_N, 70), frames_N <= 70)
        arm = CensoredTimes(rng.lognormal(np.log(20), 0.4, 12), np.ones(12, bool))
        _, low, high = _speed_up(baseline, arm, rng)
        covered += low.value <= 3 and (high.value >= 3 or high.sign == ">=")
        opened += high.sign == ">="
    assert covered >= 90
    assert opened > 50


def test_a_censored_baseline_gives_a_lower_bound() -> None:
    value, low, high = _speed_up(_times(never=5), _times(10, 20, 25, 40, 50))
    assert value == Bound(pytest.approx(4.0), ">=")
    assert (low.sign, high.sign) == ("", ">=")
    assert low.value <= 4


def test_a_censored_arm_gives_an_upper_bound() -> None:
    value, low, high = _speed_up(_times(10, 20, 25, 40, 50), _times(never=5))
    assert value == Bound(pytest.approx(0.25), "<=")
    assert (low.sign, high.sign) == ("<=", "")
    assert high.value >= 0.25


def test_nothing_is_known_if_both_are_censored() -> None:
    assert _speed_up(_times(never=3), _times(never=3))[0].sign == "?"


def test_a_single_seed_has_no_interval() -> None:
    assert _speed_up(_times(40), _times(10, 20, 30)) == (Bound(pytest.approx(2.0)), None, None)


def test_the_geometric_mean_of_speed_ups() -> None:
    rng = _rng()
    taught = resampled_medians(_times(10, 10, 10), _RESAMPLES, rng)
    known = log_speed_up(resampled_medians(_times(20, 20, 20), _RESAMPLES, rng), taught)
    other = log_speed_up(resampled_medians(_times(80, 80, 80), _RESAMPLES, rng), taught)
    censored = log_speed_up(resampled_medians(_times(never=3, run=80), _RESAMPLES, rng), taught)
    assert exponential(estimate(mean_of([known, other]))) == (Bound(pytest.approx(4.0)),) * 3
    value, low, high = exponential(estimate(mean_of([known, censored])))
    assert value == Bound(pytest.approx(4.0), ">=")
    assert low == Bound(pytest.approx(4.0))
    assert high.sign == ">="


def test_the_geometric_means_interval_is_narrower_than_its_parts() -> None:
    """The standard error of a mean of four is half of one's."""
    rng = _rng()
    parts = []
    for _ in range(4):
        baseline, arm = (
            CensoredTimes(rng.lognormal(np.log(m), 0.4, 25), np.ones(25, bool)) for m in (60, 20)
        )
        medians = [resampled_medians(times, 2000, rng) for times in (baseline, arm)]
        parts.append(log_speed_up(*medians))
    widths = [float(np.subtract(*interval_of(part.values_R)[::-1])) for part in (*parts, mean_of(parts))]
    assert widths[-1] == pytest.approx(np.mean(widths[:-1]) / 2, rel=0.25)


def test_the_interquartile_mean() -> None:
    values: NDArray[Any] = np.array([100.0, 0, 2, 3, 4, 5, 6, -50])
    assert interquartile_mean(values, 0) == 3.5  # of 2, 3, 4, 5
    assert interquartile_mean(np.array([0.0, 0, 9]), 0) == 3  # a quarter of three is none


def test_resamples_come_after_the_seeds_themselves() -> None:
    drawn_RN2 = resample(np.arange(10).reshape(5, 2), 400, _rng())
    assert drawn_RN2.shape == (401, 5, 2)
    assert (drawn_RN2[0] == np.arange(10).reshape(5, 2)).all()
    assert (drawn_RN2[..., 1] == drawn_RN2[..., 0] + 1).all()  # whole seeds
    assert np.bincount(drawn_RN2[1:, :, 0].ravel() // 2) == pytest.approx(np.full(5, 400), rel=0.2)


def test_resampling_stays_within_each_environment() -> None:
    """Seeds that agree within environments that differ have no spread; pooled seeds would have one."""
    drawn_R = stratified([np.zeros(5), np.ones(5)], np.mean, _RESAMPLES, _rng())
    assert drawn_R.tolist() == [0.5] * (_RESAMPLES + 1)


def test_a_bands_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = _rng()
    covered = 0
    for _ in range(100):
        strata = [rng.normal(mean, 1, size=(10, 1)) for mean in (-0.5, 0.0, 0.5)]
        low, high = interval_of(stratified(strata, interquartile_mean, _RESAMPLES, rng))
        covered += bool(low[0] <= 0 <= high[0])
    assert 86 <= covered <= 100
