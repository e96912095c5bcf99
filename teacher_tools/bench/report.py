"""What a run found, as JSON and as Markdown tables that read well on a terminal too."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from teacher_tools.bench.figures import Figures, Ratio, Ratios, Spread, figures_of, ratios_of
from teacher_tools.bench.loops import Window
from teacher_tools.bench.measuring import Block, Load, Pass

LATE_MS = 10.0
"""From which on the client's own lateness is worth a warning."""
_TAIL = 0.2
"""Share of an open loop's time after its last arrival, from which on it is."""


@dataclass(frozen=True)
class Point:
    """What one teacher did at one load, cold or warm."""

    target: str
    load: Load
    pass_: Pass
    figures: Figures
    windows: Sequence[Window]


@dataclass(frozen=True)
class Comparison:
    """The first teacher over another one at one load, cold or warm."""

    other: str
    load: Load
    pass_: Pass
    ratios: Ratios


@dataclass(frozen=True)
class Report:
    """A run's results: `about` says what was asked, and how; `targets` who was asked."""

    about: Mapping[str, Any]
    targets: Mapping[str, Mapping[str, Any]]
    points: Sequence[Point]
    comparisons: Sequence[Comparison]
    interrupted: bool


def report_of(
    blocks: Sequence[Block],
    *,
    about: Mapping[str, Any],
    targets: Mapping[str, Mapping[str, Any]],
    interrupted: bool,
) -> Report:
    """The results of what was measured; `about` holds target_ms. The first of the targets is compared."""

    def point_of(block: Block) -> tuple[Any, ...]:
        return block.load.kind, block.load.value, block.pass_, list(targets).index(block.target)

    points = []
    for _, found in groupby(sorted(blocks, key=point_of), key=point_of):
        rounds = list(found)
        one = rounds[0]
        windows = [block.window for block in rounds]
        figures = figures_of(windows, about["target_ms"], planned=one.load.kind == "rate")
        if figures.asked:
            points.append(Point(one.target, one.load, one.pass_, figures, windows))
    first = {(point.load, point.pass_): point for point in points if point.target == next(iter(targets))}
    comparisons = [
        Comparison(point.target, point.load, point.pass_, ratios)
        for point in points
        if (base := first.get((point.load, point.pass_))) and base is not point
        if (ratios := ratios_of(base.windows, point.windows))
    ]
    return Report(about, targets, points, comparisons, interrupted)


def as_json(report: Report) -> dict[str, Any]:
    """All of it, and every counted question: when it was planned, in seconds, and how long it took."""

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
            | asdict(p.figures)
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
    """Tables of latency and rates, of where the time went, and of ratios; then what to be wary of."""
    about = report.about
    parts = [
        "# How fast the teachers answered" if len(report.targets) > 1 else "# How fast the teacher answered"
    ]
    parts.append("\n".join(f"- {name}: {_who(told)}" for name, told in report.targets.items()))
    parts.append(
        f"{about['machine']}; {about['questions']} questions or more for each point and pass, about"
        f" {', '.join(about['task'])}; seed {about['seed']}; {about['began']}"
    )
    if report.interrupted:
        parts.append("**Interrupted: the last point is not whole, and some are missing.**")
    parts.append(_latency_table(report))
    parts += [table for table in (_parts_table(report), _ratio_table(report)) if table]
    parts += [f"Note: {warning}" for warning in warnings(report)]
    return "\n\n".join(parts) + "\n"


def warnings(report: Report) -> list[str]:
    """What makes figures mean something else than they seem to."""
    told = []
    for point in report.points:
        where = f"{_name(report, point.target)}{point.load}, {point.pass_}"
        figures = point.figures
        if point.pass_ == "cold" and figures.stored:  # noqa: S105 - no password
            told.append(
                f"{where}: the store knew {figures.stored} of {figures.asked} questions: take another --seed,"
                " or a teacher with an empty store"
            )
        if figures.errors:
            errors = ", ".join(f"{number} x {status}" for status, number in figures.errors.items())
            told.append(f"{where}: not answered: {errors}")
        if short := sum(0 < len(window.samples) < point.load.askers for window in point.windows):
            told.append(
                f"{where}: {short} of {len(point.windows)} rounds ended before each asker was answered once:"
                " answers/s say little; give --seconds more"
            )
        tail = sum(_tail_s(window) for window in point.windows) if point.load.kind == "rate" else 0.0
        if tail > _TAIL * figures.seconds:
            told.append(
                f"{where}: {tail / figures.seconds:.0%} of the time was after the last arrivals, which makes"
                " answers/s too few: ask more --questions, or in fewer --rounds"
            )
        if figures.late_ms and figures.late_ms.p99 > LATE_MS:
            told.append(
                f"{where}: this client was late itself, by {figures.late_ms.p99:.0f} ms (p99), which counts"
                " as latency"
            )
    return told


def _tail_s(window: Window) -> float:
    """Seconds from the last arrival to the last answer."""
    if not window.samples:
        return 0.0
    ended = max(sample.reply.ended for sample in window.samples)
    return ended - max(sample.planned for sample in window.samples)


def _latency_table(report: Report) -> str:
    header = ["load", "pass", "answers", "answers/s", f"within {report.about['target_ms']:g} ms, /s"]
    header += ["mean ms", "p50", "p90", "p95", "p99", "max", "stored", "errors"]
    rows = []
    for point in report.points:
        figures = point.figures
        spread = _cells(figures.latency_ms)
        rows.append(
            [
                *(str(point.load), point.pass_, str(figures.answered), _short(figures.answered_per_s)),
                *(_short(figures.good_per_s), *spread),
                *(str(figures.stored), str(sum(figures.errors.values()))),
            ]
        )
    return _table(*_with_names(report, header, rows, [point.target for point in report.points]))


def _parts_table(report: Report) -> str:
    """Means, so that they add up; none where no answer tells."""
    parts = [name for name in _PARTS if any(name in point.figures.parts_ms for point in report.points)]
    if not parts:
        return ""
    stages = {stage: None for point in report.points for stage, n in point.figures.tokens.items() if n}
    header = ["load", "pass", *parts, *(f"tokens, {stage}" for stage in stages), *["tokens/s"] * bool(stages)]
    rows = [
        [str(point.load), point.pass_, *_means(point.figures, parts), *_tokens(point.figures, stages)]
        for point in report.points
    ]
    table = _table(*_with_names(report, header, rows, [point.target for point in report.points]))
    return f"Where the time goes, mean milliseconds; analysis and action are within teacher:\n\n{table}"


_PARTS = ("waiting", "picture", "teacher", "analysis", "action", "total", "outside")


def _means(figures: Figures, parts: Iterable[str]) -> list[str]:
    return [_short(spread.mean) if (spread := figures.parts_ms.get(name)) else "-" for name in parts]


def _tokens(figures: Figures, stages: Collection[str]) -> list[str]:
    """Of each stage for a question, then of all a second; nothing where no teacher generates any."""
    cells = [_short(figures.tokens.get(stage, 0)) for stage in stages]
    return [*cells, _short(figures.tokens_per_s)] if cells else []


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
    return f"Ratios of {first} to the others, 95 % intervals over rounds:\n\n{table}"


def _who(told: Mapping[str, Any]) -> str:
    return ", ".join(str(told[name]) for name in ("address", "model", "kind", "identity") if told.get(name))


def _name(report: Report, target: str) -> str:
    return f"{target}, " if len(report.targets) > 1 else ""


def _with_names(
    report: Report, header: list[str], rows: list[list[str]], names: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """With a first column of names where there are several teachers."""
    if len(report.targets) == 1:
        return header, rows
    return ["", *header], [[name, *row] for name, row in zip(names, rows, strict=True)]


def _cells(spread: Spread | None) -> list[str]:
    return [_short(value) for value in asdict(spread).values()] if spread else ["-"] * 6


def _interval(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _short(value: float) -> str:
    """Three digits that count, and all of those before the point."""
    decimals = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 2)}f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * (width - 1) + ":" for width in widths], *rows]
    return "\n".join(f"| {' | '.join(map(str.rjust, line, widths))} |" for line in lines)
