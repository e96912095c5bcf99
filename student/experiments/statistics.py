"""Samples to threshold, speed-ups, and their 95 % bootstrap intervals over seeds.

Arrays of resamples have the shape [1 + resamples, ...]: row 0 holds the observed seeds, the other rows hold
resamples of whole seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

EVALUATIONS_IN_A_ROW = 3
"""Evaluations that a threshold needs."""


def samples_to(threshold: float, frames: Sequence[int], values: Sequence[float]) -> int | None:
    """Returns the samples to a threshold, in frames; None if the threshold is never reached.

    A threshold needs three evaluations in a row; with fewer left it is never counted as reached:
    samples = min { frames[i] : values[i], values[i+1], values[i+2] >= threshold }.

    Args:
        frames: frames trained for at each evaluation, ascending.
        values: the figure at each evaluation.
    """
    for i in range(len(values) - EVALUATIONS_IN_A_ROW + 1):
        if all(value >= threshold for value in values[i : i + EVALUATIONS_IN_A_ROW]):
            return frames[i]
    return None


Sign = Literal["", ">=", "<=", "?"]
"""What a number is: an estimate (""), a lower bound, an upper bound, or neither because nothing is known."""


class Bound(NamedTuple):
    """A number that estimates a quantity, or bounds the quantity from below or above."""

    value: float
    sign: Sign = ""


class Estimate(NamedTuple):
    """An estimate with the ends of its 95 % interval, which are None with a single seed."""

    value: Bound
    low: Bound | None
    high: Bound | None


class CensoredTimes(NamedTuple):
    """Samples to threshold of N seeds, right-censored.

    Attributes:
        frames_N: the frames to the threshold, or the length of the run where it was never reached.
        reached_N: whether the threshold was reached.
    """

    frames_N: NDArray[np.float64]
    reached_N: NDArray[np.bool_]


class Resampled(NamedTuple):
    """A statistic of the observed seeds and of each resample, some of which may be bounds.

    Attributes:
        values_R: the statistic; row 0 is that of the observed seeds.
        at_least_R: whether the value is a lower bound.
        at_most_R: whether the value is an upper bound; with both flags set nothing is known.
    """

    values_R: NDArray[np.float64]
    at_least_R: NDArray[np.bool_]
    at_most_R: NDArray[np.bool_]


def resample(values_N: NDArray[Any], resamples: int, rng: np.random.Generator) -> NDArray[Any]:
    """Returns the observed seeds followed by bootstrap resamples: N seeds drawn with replacement.

    Args:
        values_N: one row per seed, [N, ...].

    Returns:
        An array of shape [1 + resamples, N, ...]; [1, 1, ...] for a single seed, which cannot be resampled.
    """
    seeds = len(values_N)
    drawn_RN = rng.integers(seeds, size=(resamples if seeds > 1 else 0, seeds))
    return values_N[np.vstack([np.arange(seeds), drawn_RN])]


def kaplan_meier_medians(frames_RN: NDArray[np.float64], reached_RN: NDArray[np.bool_]) -> Resampled:
    """Returns the Kaplan-Meier median of the samples to threshold in each row.

    The median is min { t : S(t) <= 1/2 } of the survival function S(t) = prod_{i: t_i <= t} (1 - d_i / n_i),
    where n_i runs are still below the threshold just before t_i, and d_i of them reach it at t_i. If S > 1/2
    everywhere, the length of the longest run is a lower bound. Source: Kaplan and Meier, "Nonparametric
    estimation from incomplete observations", 1958.
    """
    # Sorted by frames; at equal frames the runs that reached the threshold come before the censored ones
    order_RN = np.lexsort((~reached_RN, frames_RN), axis=1)
    frames_RN = np.take_along_axis(frames_RN, order_RN, axis=1)
    reached_RN = np.take_along_axis(reached_RN, order_RN, axis=1)
    at_risk_N = frames_RN.shape[1] - np.arange(frames_RN.shape[1])
    survival_RN = np.cumprod(1 - reached_RN / at_risk_N, axis=1)
    half_RN = survival_RN <= 0.5 + 1e-9  # products of fractions are inexact
    known_R: NDArray[np.bool_] = half_RN[:, -1]
    first_R = half_RN.argmax(1)
    medians_R = np.where(
        known_R, np.take_along_axis(frames_RN, first_R[:, None], axis=1)[:, 0], frames_RN[:, -1]
    )
    return Resampled(medians_R, ~known_R, np.zeros_like(known_R))


def resampled_medians(times: CensoredTimes, resamples: int, rng: np.random.Generator) -> Resampled:
    """Returns the Kaplan-Meier medians, in frames, of the seeds and of their resamples.

    Whole (time, reached) pairs are resampled: Efron, "Censored data and the bootstrap", 1981.
    """
    seed_RN = resample(np.arange(len(times.frames_N)), resamples, rng)
    return kaplan_meier_medians(times.frames_N[seed_RN], times.reached_N[seed_RN])


def log_speed_up(baseline: Resampled, arm: Resampled) -> Resampled:
    """Returns log(median of the baseline / median of the arm), the logarithm of the speed-up.

    A lower bound of the baseline's median gives a lower bound of the speed-up; a lower bound of the arm's
    median gives an upper bound.
    """
    rows = min(len(baseline.values_R), len(arm.values_R))  # 1 if either has a single seed
    return Resampled(
        np.log(baseline.values_R[:rows]) - np.log(arm.values_R[:rows]),
        baseline.at_least_R[:rows],
        arm.at_least_R[:rows],
    )


def mean_of(parts: Sequence[Resampled]) -> Resampled:
    """Returns the mean of statistics that were resampled independently; a bound where any part is one.

    The mean of log-ratios is the logarithm of the geometric mean of the ratios.
    """
    rows = min(len(part.values_R) for part in parts)
    return Resampled(
        np.mean([part.values_R[:rows] for part in parts], axis=0),
        np.any([part.at_least_R[:rows] for part in parts], axis=0),
        np.any([part.at_most_R[:rows] for part in parts], axis=0),
    )


def estimate(resampled: Resampled) -> Estimate:
    """Returns the statistic of the observed seeds with the 95 % percentile interval of its resamples.

    A resample that is a bound may lie anywhere beyond its value. Where enough resamples are bounds for an end
    of the interval to be infinite, that end is a bound too: ">=" at the upper end, "<=" at the lower end.
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
    """Returns the ratio of an estimated log-ratio."""
    value, low, high = (bound and Bound(float(np.exp(bound.value)), bound.sign) for bound in of)
    assert value is not None
    return Estimate(value, low, high)


def interval_of(values_R: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the ends of the 95 % percentile interval of resamples, [1 + resamples, ...], without row 0.

    Percentiles are not interpolated, because values may be infinite.
    """
    low, high = np.quantile(values_R[1:], (0.025, 0.975), axis=0, method="inverted_cdf")
    return low, high


def interquartile_mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Returns the mean without the lowest and the highest quarter of the values (both rounded down).

    Source: rliable; Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice",
    2021.
    """
    from scipy import stats  # noqa: PLC0415  (the import takes over a second, and only reports need it)

    return np.asarray(stats.trim_mean(values, 0.25, axis=axis))


def stratified(
    strata: Sequence[NDArray[np.float64]],
    statistic: Callable[..., NDArray[np.float64]],
    resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Returns a statistic of the pooled seeds of all environments, and of stratified bootstrap resamples.

    Seeds are resampled within their environment, as in rliable (Agarwal et al., 2021).

    Args:
        strata: one array [N, ...] per environment.
        statistic: a function of an array and an axis, such as np.mean.

    Returns:
        An array of shape [1 + resamples, ...]; one row if every environment has a single seed.
    """
    drawn = [resample(stratum, resamples, rng) for stratum in strata]
    rows = max(len(each) for each in drawn)
    pooled = [np.broadcast_to(each, (rows, *each.shape[1:])) if len(each) == 1 else each for each in drawn]
    return statistic(np.concatenate(pooled, axis=1), axis=1)
