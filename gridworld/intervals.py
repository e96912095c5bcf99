"""Confidence intervals of shares and means.

Written without scipy.stats, whose import takes more than a second.
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

_RESAMPLES = 2000


def success_interval(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Returns Wilson's interval of a share, such as a success rate (Newcombe 1998, method 3)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / episodes
    centre = share + z**2 / (2 * episodes)
    reach = z * (share * (1 - share) / episodes + z**2 / (4 * episodes**2)) ** 0.5
    low, high = ((centre + sign * reach) / (1 + z**2 / episodes) for sign in (-1, 1))
    return (low if successes else 0.0), (high if successes < episodes else 1.0)


def mean_interval(values: NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """Returns the bootstrap interval of a mean: percentiles of 2,000 resamples, drawn from a fixed seed."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    drawn_RN = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[drawn_RN].mean(axis=1), (tail, 1 - tail))
    return float(low), float(high)
