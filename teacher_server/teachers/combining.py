"""Combines the answers about several views of a state, and computes the confidence of the answer."""

import math
from collections.abc import Iterable, Mapping, Sequence

from teacher_api.schemas import StageReport


def mean_distribution(distributions: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns each action's mean probability over distributions about the same actions."""
    return {
        action: math.fsum(each[action] for each in distributions) / len(distributions)
        for action in distributions[0]
    }


def agreement_of(distributions: Sequence[Mapping[str, float]]) -> float:
    """Returns how much distributions about the same actions agree: 1 if all are equal, 0 if none overlap.

    1 - JS / ln K for K distributions, with the Jensen-Shannon divergence JS = H(mean) - mean of H, in nats.
    """
    if len(distributions) == 1:
        return 1.0
    apart = _entropy(mean_distribution(distributions)) - _mean(map(_entropy, distributions))
    return min(max(1 - apart / math.log(len(distributions)), 0.0), 1.0)


def confidence_of(
    distributions: Sequence[Mapping[str, float]], analysis: StageReport, action: StageReport
) -> float | None:
    """Returns certainty * label mass * agreement; a factor that is not known is left out.

    Args:
        distributions: action -> probability, of each view.
        analysis: the report of stage 1, whose `certainty` is the first factor.
        action: the report of stage 2, whose `label_mass` is the second factor.

    Returns:
        None if no factor is known: no log-probabilities, and a single view.
    """
    agreement = agreement_of(distributions) if len(distributions) > 1 else None
    known = [factor for factor in (analysis.certainty, action.label_mass, agreement) if factor is not None]
    return math.prod(known) if known else None


def combined(reports: Sequence[StageReport]) -> StageReport:
    """Returns the report about all views: text of the first, all tokens, longest time, means of the rest."""
    return StageReport(
        text=reports[0].text,
        tokens=sum(report.tokens for report in reports),
        milliseconds=max(report.milliseconds for report in reports),
        label_mass=_mean_of_known(report.label_mass for report in reports),
        certainty=_mean_of_known(report.certainty for report in reports),
    )


def _mean_of_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


def _entropy(distribution: Mapping[str, float]) -> float:
    return -math.fsum(p * math.log(p) for p in distribution.values() if p > 0)
