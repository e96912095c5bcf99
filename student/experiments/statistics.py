"""Intervals and thresholds, as the figures of a run and of a sweep report them.

For a sweep whole seeds are resampled. What comes of it is an array whose first row is the figure of the seeds
themselves, and whose other rows are those of the resamples.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray


def samples_to(threshold: float, frames: Sequence[int], values: Sequence[float], hold: int = 3) -> int | None:
    """Frames at the first evaluation from which `hold` in a row reach a threshold; None if none does.

    Near the end fewer than `hold` evaluations may be left: then reaching it in all of them is not enough.
    """
    for i in range(len(values) - hold + 1):
        if all(value >= threshold for value in values[i : i + hold]):
            return frames[i]
    return None


Sign = Literal["", ">=", "<=", "?"]
"""What a figure is of the truth: an estimate of it; a lower bound; an upper bound; or nothing is known."""


class Bound(NamedTuple):
    """A figure, and whether the truth is about it, at least it or at most it."""

    value: float
    sign: Sign = ""


class Estimate(NamedTuple):
    """A figure with the ends of its 95 % interval; None where there is a single seed."""

    value: Bound
    low: Bound | None
    high: Bound | None


class Times(NamedTuple):
    """When each of N seeds reached a threshold, in frames; for one that never did, how long it ran."""

    frames_N: NDArray[np.float64]
    reached_N: NDArray[np.bool_]


class Resampled(NamedTuple):
    """A figure that may be known only from one side: that of the seeds first, then those of R resamples.

    Where `at_least_R` the truth is `values_R` or more; where `at_most_R`, that or less; where both, anything.
    """

    values_R: NDArray[np.float64]
    at_least_R: NDArray[np.bool_]
    at_most_R: NDArray[np.bool_]


def resample(values_N: NDArray[Any], resamples: int, rng: np.random.Generator) -> NDArray[Any]:
    """The seeds themselves, then as many of them drawn with replacement `resamples` times.

    Args:
        values_N: one row a seed, [N, ...].

    Returns:
        [1 + resamples, N, ...]; a single seed cannot be resampled: [1, 1, ...].
    """
    seeds = len(values_N)
    drawn_RN = rng.integers(seeds, size=(resamples if seeds > 1 else 0, seeds))
    return values_N[np.vstack([np.arange(seeds), drawn_RN])]


def kaplan_meier_medians(frames_RN: NDArray[np.float64], reached_RN: NDArray[np.bool_]) -> Resampled:
    """The Kaplan-Meier median of each row: the first frame at which at most half are still on their way.

    Rows where less than half got there have no median: it lies above the longest run, which stands for it.
    """
    # In order of frames; at the same frame those that got there come before those that ran out
    order_RN = np.lexsort((~reached_RN, frames_RN), axis=1)
    frames_RN = np.take_along_axis(frames_RN, order_RN, axis=1)
    reached_RN = np.take_along_axis(reached_RN, order_RN, axis=1)
    at_risk_N = frames_RN.shape[1] - np.arange(frames_RN.shape[1])
    on_their_way_RN = np.cumprod(1 - reached_RN / at_risk_N, axis=1)
    half_RN = on_their_way_RN <= 0.5 + 1e-9  # the product of fractions is not exact
    known_R: NDArray[np.bool_] = half_RN[:, -1]
    first_R = half_RN.argmax(1)
    medians_R = np.where(
        known_R, np.take_along_axis(frames_RN, first_R[:, None], axis=1)[:, 0], frames_RN[:, -1]
    )
    return Resampled(medians_R, ~known_R, np.zeros_like(known_R))


def resampled_medians(times: Times, resamples: int, rng: np.random.Generator) -> Resampled:
    """Kaplan-Meier medians of samples to threshold, in frames."""
    seed_RN = resample(np.arange(len(times.frames_N)), resamples, rng)
    return kaplan_meier_medians(times.frames_N[seed_RN], times.reached_N[seed_RN])


def log_speed_up(baseline: Resampled, arm: Resampled) -> Resampled:
    """The logarithm of (the baseline's median) / (the arm's).

    A baseline that is not known, being above the length of its runs, makes it a lower bound; such an arm an
    upper bound.
    """
    rows = min(len(baseline.values_R), len(arm.values_R))  # one where either has a single seed
    return Resampled(
        np.log(baseline.values_R[:rows]) - np.log(arm.values_R[:rows]),
        baseline.at_least_R[:rows],
        arm.at_least_R[:rows],
    )


def mean_of(parts: Sequence[Resampled]) -> Resampled:
    """The mean of figures that were resampled apart; known from one side where any part is.

    That of the logarithms of ratios is the logarithm of their geometric mean.
    """
    rows = min(len(part.values_R) for part in parts)
    return Resampled(
        np.mean([part.values_R[:rows] for part in parts], axis=0),
        np.any([part.at_least_R[:rows] for part in parts], axis=0),
        np.any([part.at_most_R[:rows] for part in parts], axis=0),
    )


def estimate(resampled: Resampled) -> Estimate:
    """The figure of the seeds themselves with the 95 % interval of its resamples (percentiles).

    Resamples that are known from one side only may lie anywhere on the other; where that leaves an end of the
    interval nowhere to stop, the end is a bound: ">=" above, "<=" below.
    """
    values_R, at_least_R, at_most_R = resampled
    signs: dict[tuple[bool, bool], Sign] = {
        (False, False): "",
        (True, False): ">=",
        (False, True): "<=",
        (True, True): "?",
    }
    value = Bound(float(values_R[0]), signs[bool(at_least_R[0]), bool(at_most_R[0])])
    if len(values_R) == 1:
        return Estimate(value, None, None)
    low, high = interval_of(values_R)
    lowest, _ = interval_of(np.where(at_most_R, -np.inf, values_R))
    _, highest = interval_of(np.where(at_least_R, np.inf, values_R))
    return Estimate(
        value,
        Bound(float(lowest)) if np.isfinite(lowest) else Bound(float(low), "<="),
        Bound(float(highest)) if np.isfinite(highest) else Bound(float(high), ">="),
    )


def exponential(of: Estimate) -> Estimate:
    """A ratio from its logarithm."""
    value, low, high = (bound and Bound(float(np.exp(bound.value)), bound.sign) for bound in of)
    assert value is not None
    return Estimate(value, low, high)


def interval_of(values_R: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The 95 % percentile interval of resamples [1 + R, ...], the first row, which is none, left out.

    No interpolation: infinities may stand among them.
    """
    low, high = np.quantile(values_R[1:], (0.025, 0.975), axis=0, method="inverted_cdf")
    return low, high


def interquartile_mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The mean without the lowest and the highest quarter (rounded down), as rliable takes it."""
    from scipy import stats  # noqa: PLC0415  (more than a second, and only reports need it)

    return np.asarray(stats.trim_mean(values, 0.25, axis=axis))


def stratified(
    strata: Sequence[NDArray[np.float64]],
    statistic: Callable[..., NDArray[np.float64]],
    resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """A statistic of the seeds of all environments together, and of resamples within each (rliable's method).

    Args:
        strata: one array [N, ...] for each environment.
        statistic: takes an array and an axis, as np.mean does.

    Returns:
        [1 + resamples, ...]; a single row where no environment has more than one seed.
    """
    drawn = [resample(stratum, resamples, rng) for stratum in strata]
    rows = max(len(each) for each in drawn)
    pooled = [np.broadcast_to(each, (rows, *each.shape[1:])) if len(each) == 1 else each for each in drawn]
    return statistic(np.concatenate(pooled, axis=1), axis=1)
