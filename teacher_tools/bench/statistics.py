"""Statistics of a measurement: latencies, rates, goodput, and the ratios of two teachers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from teacher_tools.bench.loops import Window

_RESAMPLES = 2000


@dataclass(frozen=True)
class LatencyStatistics:
    """The mean, percentiles (linearly interpolated) and maximum of some times in milliseconds."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """Returns the statistics; None of no values."""
        array = np.fromiter(values, float)
        if not array.size:
            return None
        p50, p90, p95, p99, maximum = np.percentile(array, [50, 90, 95, 99, 100])
        return cls(*(float(x) for x in (array.mean(), p50, p90, p95, p99, maximum)))


@dataclass(frozen=True)
class PointStatistics:
    """One teacher at one load and pass, over all rounds.

    Attributes:
        errors: the number of failed questions by status.
        seconds: the time in which the questions were answered.
        answered_per_s, good_per_s: answers a second, and those of them within the target (goodput).
        latency_ms: of the answers, from the planned time to the last byte.
        parts_ms: where the time went. `waiting` for a place, decoding the `picture`, the `teacher` with its
            stages `analysis` and `action`; the service's `total`, which includes all of these and storing the
            answer; `outside` of the service: HTTP, the network and this client.
        tokens: the mean number generated for a question, by stage.
        tokens_per_s: generated in all stages.
        late_ms: how late the client sent the questions; None in a closed loop, which plans no times.
    """

    asked: int
    answered: int
    stored: int
    errors: dict[str, int]
    seconds: float
    answered_per_s: float
    good_per_s: float
    latency_ms: LatencyStatistics | None
    parts_ms: dict[str, LatencyStatistics]
    tokens: dict[str, float]
    tokens_per_s: float
    late_ms: LatencyStatistics | None


def point_statistics(windows: Sequence[Window], target_ms: float, *, planned: bool) -> PointStatistics:
    """Returns the statistics of one teacher's rounds.

    Args:
        target_ms: the latency up to which an answer counts as goodput.
        planned: whether the questions had planned times.
    """
    samples = [sample for window in windows for sample in window.samples]
    answers = [sample for sample in samples if sample.reply.answered]
    seconds = sum(window.seconds for window in windows)
    parts: dict[str, list[float]] = {}
    generated: Counter[str] = Counter()
    for answer in answers:
        reply = answer.reply
        for name, milliseconds in reply.parts_ms.items():
            parts.setdefault(name, []).append(milliseconds)
        if "total" in reply.parts_ms:
            outside = (reply.ended - answer.sent) * 1000 - reply.parts_ms["total"]
            parts.setdefault("outside", []).append(outside)
        generated.update(reply.tokens)
    good = sum(answer.latency_ms <= target_ms for answer in answers)
    return PointStatistics(
        asked=len(samples),
        answered=len(answers),
        stored=sum(answer.reply.stored for answer in answers),
        errors=dict(Counter(sample.reply.status for sample in samples if not sample.reply.answered)),
        seconds=seconds,
        answered_per_s=len(answers) / seconds if seconds else 0.0,
        good_per_s=good / seconds if seconds else 0.0,
        latency_ms=LatencyStatistics.of(answer.latency_ms for answer in answers),
        parts_ms={name: found for name, values in parts.items() if (found := LatencyStatistics.of(values))},
        tokens={stage: number / len(answers) for stage, number in generated.items()},
        tokens_per_s=generated.total() / seconds if seconds else 0.0,
        late_ms=LatencyStatistics.of(sample.late_ms for sample in samples) if planned else None,
    )


@dataclass(frozen=True)
class Ratio:
    """A statistic of the first teacher divided by that of another, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratios:
    """The ratios of two teachers at one load and pass: median latency, and answers a second."""

    p50: Ratio
    answered_per_s: Ratio


def ratios_of(first: Sequence[Window], other: Sequence[Window], seed: int = 0) -> Ratios | None:
    """Returns the ratios of two teachers whose rounds alternated.

    The intervals are percentiles of 2,000 bootstrap resamples of whole rounds, with the same rounds of both
    teachers, since a disturbance of the machine affects both.

    Args:
        first, other: their rounds, in the same order.

    Returns:
        None if fewer than two rounds have answers from both.
    """
    pairs = [(a, b) for a, b in zip(map(_Round.of, first), map(_Round.of, other), strict=False) if a and b]
    if len(pairs) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(len(pairs), size=(_RESAMPLES, len(pairs)))
    rows = [np.arange(len(pairs)), *drawn]
    p50s, rates = zip(*(_ratios([pairs[i] for i in row]) for row in rows), strict=True)
    return Ratios(_ratio(p50s), _ratio(rates))


class _Round(NamedTuple):
    latencies_ms: NDArray[np.float64]
    seconds: float

    @classmethod
    def of(cls, window: Window) -> Self | None:
        """Returns None for a round without an answer."""
        latencies = [sample.latency_ms for sample in window.samples if sample.reply.answered]
        return cls(np.array(latencies), window.seconds) if latencies else None


def _ratios(pairs: Sequence[tuple[_Round, _Round]]) -> tuple[float, float]:
    """Returns the ratio of the median latencies, and of the answers a second."""
    (p50, rate), (other_p50, other_rate) = (_pooled(rounds) for rounds in zip(*pairs, strict=True))
    return p50 / other_p50, rate / other_rate


def _pooled(rounds: Sequence[_Round]) -> tuple[float, float]:
    latencies = np.concatenate([each.latencies_ms for each in rounds])
    return float(np.median(latencies)), latencies.size / sum(each.seconds for each in rounds)


def _ratio(values: Sequence[float]) -> Ratio:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Ratio(values[0], float(low), float(high))
