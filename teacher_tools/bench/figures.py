"""What was measured, in figures: percentiles, rates, goodput, and the ratios of two teachers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from teacher_tools.bench.loops import Window

_RESAMPLES = 2000


@dataclass(frozen=True)
class Spread:
    """How some times are spread; percentiles between two of them are interpolated."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    maximum: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """None where there are none."""
        array = np.fromiter(values, float)
        if not array.size:
            return None
        p50, p90, p95, p99, maximum = np.percentile(array, [50, 90, 95, 99, 100])
        return cls(*(float(x) for x in (array.mean(), p50, p90, p95, p99, maximum)))


@dataclass(frozen=True)
class Figures:
    """One teacher at one point and pass, all rounds together.

    Attributes:
        errors: how many failed, by status.
        seconds: in which these were answered.
        answered_per_s, good_per_s: answers a second; those of them within the target (goodput).
        latency_ms: of those answered, from the planned time to the last byte.
        parts_ms: where the time went: `waiting` for a place, decoding the `picture`, the `teacher`, within
            it its stages `analysis` and `action`; the service's `total`, which has all these in it and the
            storing; `outside` of it: HTTP, the network and this client.
        tokens: generated for a question on average, by stage.
        tokens_per_s: generated in all stages.
        late_ms: how late the client asked; None in a closed loop, which has no plan.
    """

    asked: int
    answered: int
    stored: int
    errors: dict[str, int]
    seconds: float
    answered_per_s: float
    good_per_s: float
    latency_ms: Spread | None
    parts_ms: dict[str, Spread]
    tokens: dict[str, float]
    tokens_per_s: float
    late_ms: Spread | None


def figures_of(windows: Sequence[Window], target_ms: float, *, planned: bool) -> Figures:
    """The figures of one teacher's rounds.

    Args:
        target_ms: latency up to which an answer counts as goodput.
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
    return Figures(
        asked=len(samples),
        answered=len(answers),
        stored=sum(answer.reply.stored for answer in answers),
        errors=dict(Counter(sample.reply.status for sample in samples if not sample.reply.answered)),
        seconds=seconds,
        answered_per_s=len(answers) / seconds if seconds else 0.0,
        good_per_s=good / seconds if seconds else 0.0,
        latency_ms=Spread.of(answer.latency_ms for answer in answers),
        parts_ms={name: spread for name, values in parts.items() if (spread := Spread.of(values))},
        tokens={stage: number / len(answers) for stage, number in generated.items()},
        tokens_per_s=generated.total() / seconds if seconds else 0.0,
        late_ms=Spread.of(sample.late_ms for sample in samples) if planned else None,
    )


@dataclass(frozen=True)
class Ratio:
    """A figure of the first teacher over that of the other, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratios:
    """How two teachers compare at one point and pass: median latency, and answers a second."""

    p50: Ratio
    answered_per_s: Ratio


def ratios_of(first: Sequence[Window], other: Sequence[Window], seed: int = 0) -> Ratios | None:
    """The ratios of two teachers that were asked round by round in turn.

    The intervals are percentiles of 2,000 bootstrap resamples of whole rounds, the same rounds of both: what
    disturbed the machine for a while disturbed both.

    Args:
        first, other: their rounds, in the same order.

    Returns:
        None where fewer than two rounds have answers from both.
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
        """None where nothing was answered."""
        latencies = [sample.latency_ms for sample in window.samples if sample.reply.answered]
        return cls(np.array(latencies), window.seconds) if latencies else None


def _ratios(pairs: Sequence[tuple[_Round, _Round]]) -> tuple[float, float]:
    """Of the median latencies, and of the answers a second."""
    (p50, rate), (other_p50, other_rate) = (_pooled(rounds) for rounds in zip(*pairs, strict=True))
    return p50 / other_p50, rate / other_rate


def _pooled(rounds: Sequence[_Round]) -> tuple[float, float]:
    latencies = np.concatenate([each.latencies_ms for each in rounds])
    return float(np.median(latencies)), latencies.size / sum(each.seconds for each in rounds)


def _ratio(values: Sequence[float]) -> Ratio:
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Ratio(values[0], float(low), float(high))
