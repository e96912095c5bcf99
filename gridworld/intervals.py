"""95 % intervals of what was measured: shares and means."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Interval = tuple[float, float]


def success_interval(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a success rate, or of any other share."""
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
