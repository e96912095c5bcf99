"""Intervals and thresholds, as the figures of a run report them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Interval = tuple[float, float]


def success_interval(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a success rate."""
    interval = stats.binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """A bootstrap interval (percentiles of 2,000 resamples, always the same ones) of a mean."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, confidence_level=confidence, method="percentile", rng=0
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def samples_to(threshold: float, frames: Sequence[int], values: Sequence[float], hold: int = 3) -> int | None:
    """Frames at the first evaluation from which `hold` in a row reach a threshold; None if none does.

    Near the end fewer than `hold` evaluations may be left: then reaching it in all of them is not enough.
    """
    for i in range(len(values) - hold + 1):
        if all(value >= threshold for value in values[i : i + hold]):
            return frames[i]
    return None
