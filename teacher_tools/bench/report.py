"""The report of a measurement: JSON, and Markdown tables that are also readable on a terminal."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from teacher_tools.bench.loops import Window
from teacher_tools.bench.measuring import Load, Pass, Round
from teacher_tools.bench.statistics import (
    LatencyStatistics,
    PointStatistics,
    Ratio,
    Ratios,
    point_statistics,
    ratios_of,
)

LATE_MS = 10.0
"""The client's own lateness (p99) from which the report warns of it."""
_TAIL = 0.2
"""The share of an open loop's time after its last arrival from which the report warns of it."""


@dataclass(frozen=True)
class Point:
    """One teacher at one load, cold or warm."""

    target: str
    load: Load
    pass_: Pass
    statistics: PointStatistics
    windows: Sequence[Window]


@dataclass(frozen=True)
class Comparison:
    """The first teacher compared with another at one load, cold or warm."""

    other: str
    load: Load
    pass_: Pass
    ratios: Ratios


@dataclass(frozen=True)
class Report:
    """The results of a measurement.

    Attributes:
        about: what was measured and how.
        targets: a description of each teacher, by name.
    """

    about: Mapping[str, Any]
    targets: Mapping[str, Mapping[str, Any]]
    points: Sequence[Point]
    comparisons: Sequence[Comparison]
    interrupted: bool


def report_of(
    rounds: Sequence[Round],
    *,
    about: Mapping[str, Any],
    targets: Mapping[str, Mapping[str, Any]],
    interrupted: bool,
) -> Report:
    """Returns the report; the first target is compared with the others. `about` has to hold target_ms."""

    def point_of(each: Round) -> tuple[Any, ...]:
        return each.load.kind, each.load.value, each.pass_, list(targets).index(each.target)

    points = []
    for _, group in groupby(sorted(rounds, key=point_of), key=point_of):
        of_point = list(group)
        one = of_point[0]
        windows = [each.window for each in of_point]
        statistics = point_statistics(windows, about["target_ms"], planned=one.load.kind == "rate")
        if statistics.asked:
            points.append(Point(one.target, one.load, one.pass_, statistics, windows))
    first = {(point.load, point.pass_): point for point in points if point.target == next(iter(targets))}
    comparisons = [
        Comparison(point.target, point.load, point.pass_, ratios)
        for point in points
        if (base := first.get((point.load, point.pass_))) and base is not point
        if (ratios := ratios_of(base.windows, point.windows))
    ]
    return Report(about, targets, points, comparisons, interrupted)


def as_json(report: Report) -> dict[str, Any]:
    """Returns the whole report as JSON values, with the planned time and latency of each counted question."""

    def samples(windows: Sequence[Window]) -> list[dict[str, Any]]:
        return [
            {"round": i, "planned_s": s.planned, "late_ms": s.late_ms, "latency_ms": s.latency_ms}
            | {"status": s.reply.status, "stored": s.reply.stored}
            for i, window in enumerate(windows)
            for s in window.samples
        ]

    return {
        **report.about,
        "interrupted": report.interrupted,
        "teachers": report.targets,
        "points": [
            {"teacher": p.target, p.load.kind: p.load.value, "pass": p.pass_}
            | asdict(p.statistics)
            | {"samples": samples(p.windows)}
            for p in report.points
        ],
        "ratios": [
            {"of": next(iter(report.targets)), "to": c.other, c.load.kind: c.load.value, "pass": c.pass_}
            | asdict(c.ratios)
            for c in report.comparisons
        ],
    }


def as_markdown(report: Report) -> str:
    """Returns tables of latencies and rates, of where the time went, and of ratios, followed by warnings."""
    about = report.about
    parts = [
        "# How fast the teachers answer" if len(report.targets) > 1 else "# How fast the teacher answers"
    ]
    parts.append("\n".join(f"- {name}: {_described(about)}" for name, about in report.targets.items()))
    parts.append(
        f"{about['machine']}; at least {about['questions']} questions for each load and pass; tasks:"
        f" {', '.join(about['task'])}; seed {about['seed']}; {about['began']}"
    )
    if report.interrupted:
        parts.append("**Interrupted: the last row is incomplete, and others are missing.**")
    parts.append(_latency_table(report))
    parts += [table for table in (_parts_table(report), _ratio_table(report)) if table]
    parts += [f"Note: {warning}" for warning in warnings(report)]
    return "\n\n".join(parts) + "\n"


def warnings(report: Report) -> list[str]:
    """Returns what a reader of the tables has to know so as not to be misled."""
    found = []
    for point in report.points:
        where = f"{_name(report, point.target)}{point.load}, {point.pass_}"
        statistics = point.statistics
        if point.pass_ == "cold" and statistics.stored:  # noqa: S105 - no password
            found.append(
                f"{where}: the store had answers to {statistics.stored} of {statistics.asked} questions:"
                " use another --seed, or a teacher with an empty store"
            )
        if statistics.errors:
            errors = ", ".join(f"{number} x {status}" for status, number in statistics.errors.items())
            found.append(f"{where}: not answered: {errors}")
        if short := sum(0 < len(window.samples) < point.load.clients for window in point.windows):
            found.append(
                f"{where}: {short} of {len(point.windows)} rounds ended before each client had an answer:"
                " answers/s are unreliable; raise --seconds"
            )
        tail = sum(_tail_s(window) for window in point.windows) if point.load.kind == "rate" else 0.0
        if tail > _TAIL * statistics.seconds:
            found.append(
                f"{where}: {tail / statistics.seconds:.0%} of the time was after the last arrivals, so"
                " answers/s are too low: raise --questions, or lower --rounds"
            )
        if statistics.late_ms and statistics.late_ms.p99 > LATE_MS:
            found.append(
                f"{where}: the client itself was late by {statistics.late_ms.p99:.0f} ms (p99), which counts"
                " as latency"
            )
    return found


def _tail_s(window: Window) -> float:
    """Returns the seconds from the last arrival to the last answer."""
    if not window.samples:
        return 0.0
    ended = max(sample.reply.ended for sample in window.samples)
    return ended - max(sample.planned for sample in window.samples)


def _latency_table(report: Report) -> str:
    header = ["load", "pass", "answers", "answers/s", f"within {report.about['target_ms']:g} ms, /s"]
    header += ["mean ms", "p50", "p90", "p95", "p99", "max", "stored", "errors"]
    rows = []
    for point in report.points:
        of = point.statistics
        rows.append(
            [
                *(str(point.load), point.pass_, str(of.answered), _short(of.answered_per_s)),
                *(_short(of.good_per_s), *_cells(of.latency_ms)),
                *(str(of.stored), str(sum(of.errors.values()))),
            ]
        )
    return _table(*_with_names(report, header, rows, [point.target for point in report.points]))


def _parts_table(report: Report) -> str:
    """Returns means, which add up; empty if no answer reports parts."""
    parts = [name for name in _PARTS if any(name in point.statistics.parts_ms for point in report.points)]
    if not parts:
        return ""
    stages = {stage: None for point in report.points for stage, n in point.statistics.tokens.items() if n}
    header = ["load", "pass", *parts, *(f"tokens, {stage}" for stage in stages), *["tokens/s"] * bool(stages)]
    rows = [
        [str(point.load), point.pass_, *_means(point.statistics, parts), *_tokens(point.statistics, stages)]
        for point in report.points
    ]
    table = _table(*_with_names(report, header, rows, [point.target for point in report.points]))
    return f"Where the time goes, in mean milliseconds; teacher includes analysis and action:\n\n{table}"


_PARTS = ("waiting", "picture", "teacher", "analysis", "action", "total", "outside")


def _means(of: PointStatistics, parts: Iterable[str]) -> list[str]:
    return [_short(found.mean) if (found := of.parts_ms.get(name)) else "-" for name in parts]


def _tokens(of: PointStatistics, stages: Collection[str]) -> list[str]:
    """Returns the tokens of each stage for a question, then of all a second; empty without stages."""
    cells = [_short(of.tokens.get(stage, 0)) for stage in stages]
    return [*cells, _short(of.tokens_per_s)] if cells else []


def _ratio_table(report: Report) -> str:
    if not report.comparisons:
        return ""
    header = ["load", "pass", "p50", "answers/s"]
    rows = [
        [str(each.load), each.pass_, _interval(each.ratios.p50), _interval(each.ratios.answered_per_s)]
        for each in report.comparisons
    ]
    others = [each.other for each in report.comparisons]
    first = next(iter(report.targets))
    table = _table(["to", *header], [[other, *row] for other, row in zip(others, rows, strict=True)])
    return f"Ratios of {first} to the others, with 95 % intervals over rounds:\n\n{table}"


def _described(about: Mapping[str, Any]) -> str:
    return ", ".join(str(about[name]) for name in ("address", "model", "kind", "identity") if about.get(name))


def _name(report: Report, target: str) -> str:
    return f"{target}, " if len(report.targets) > 1 else ""


def _with_names(
    report: Report, header: list[str], rows: list[list[str]], names: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Adds a first column of names if there are several teachers."""
    if len(report.targets) == 1:
        return header, rows
    return ["", *header], [[name, *row] for name, row in zip(names, rows, strict=True)]


def _cells(of: LatencyStatistics | None) -> list[str]:
    return [_short(value) for value in asdict(of).values()] if of else ["-"] * 6


def _interval(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _short(value: float) -> str:
    """Returns three significant digits, and all digits before the decimal point."""
    decimals = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 2)}f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * (width - 1) + ":" for width in widths], *rows]
    return "\n".join(f"| {' | '.join(map(str.rjust, line, widths))} |" for line in lines)
