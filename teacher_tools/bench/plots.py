"""Plots as PNG: latency against load, and the distribution of latencies."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from teacher_api.plot_style import COLOURS, STYLE
from teacher_tools.bench.report import Point, Report

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogFormatter

_STYLE: Any = STYLE | {"legend.fontsize": 8, "legend.handlelength": 3.2}
_LABELS = {"concurrency": "questions at once (closed loop)", "rate": "arrivals a second (open loop)"}
_DASHES = {"p50": "-", "p95": "--", "p99": ":"}
_MARKERS = {"cold": "o", "warm": "s"}


def draw_latency(report: Report, file: Path) -> None:
    """Draws percentiles of latency (top) and answers a second (bottom) against concurrency and rate."""
    points = [point for point in report.points if point.statistics.latency_ms]
    kinds = [kind for kind in _LABELS if any(point.load.kind == kind for point in points)]
    with mpl.rc_context(_STYLE):
        size = (4.6 * len(kinds) + 0.4, 6.0)
        figure, axes = plt.subplots(
            2, len(kinds), figsize=size, squeeze=False, layout="constrained", sharex="col"
        )
        for column, kind in enumerate(kinds):
            for number, (name, series) in enumerate(_series(report, points, kind).items()):
                _draw_series(axes[:, column], name, series, COLOURS[number % len(COLOURS)])
            loads = sorted({point.load.value for point in points if point.load.kind == kind})
            axes[1, column].set_xlabel(_LABELS[kind])
            axes[1, column].set_xticks(loads, [f"{load:g}" for load in loads])
            _log(axes[0, column].set_yscale, axes[0, column].yaxis)
            axes[1, column].set_ylim(bottom=0)
            axes[0, column].legend()
        axes[0, 0].set_ylabel("latency, ms")
        axes[1, 0].set_ylabel("answers a second")
        figure.savefig(file, dpi=150, metadata={"Software": None})
        plt.close(figure)


def draw_distribution(report: Report, file: Path) -> None:
    """Draws the cumulative distribution of latencies, a curve for each point; a panel for each pass."""
    points = [point for point in report.points if point.statistics.latency_ms]
    passes = list(dict.fromkeys(point.pass_ for point in points))
    with mpl.rc_context(_STYLE):
        size = (4.6 * len(passes) + 0.4, 3.6)
        figure, axes = plt.subplots(
            1, len(passes), figsize=size, squeeze=False, layout="constrained", sharey=True
        )
        for panel, pass_ in zip(axes[0], passes, strict=True):
            loads = list(dict.fromkeys(point.load for point in points))
            for point in (point for point in points if point.pass_ == pass_):
                latencies = [s.latency_ms for w in point.windows for s in w.samples if s.reply.answered]
                panel.ecdf(
                    np.array(latencies),
                    label=f"{_prefix(report, point)}{point.load}",
                    color=COLOURS[loads.index(point.load) % len(COLOURS)],
                    linestyle=("-", "--", ":")[list(report.targets).index(point.target) % 3],
                )
            panel.set(title=pass_, xlabel="latency, ms")
            _log(panel.set_xscale, panel.xaxis)
            panel.legend()
        axes[0, 0].set_ylabel("share of answers within this latency")
        figure.savefig(file, dpi=150, metadata={"Software": None})
        plt.close(figure)


def _series(report: Report, points: Sequence[Point], kind: str) -> dict[str, list[Point]]:
    """Returns the points of one kind of load, by teacher and pass, in the order of their loads."""
    series: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.load.value):
        if point.load.kind == kind:
            series.setdefault(f"{_prefix(report, point)}{point.pass_}", []).append(point)
    return series


def _draw_series(panels: Any, name: str, points: Sequence[Point], colour: str) -> None:
    loads = [point.load.value for point in points]
    marker = _MARKERS[points[0].pass_]
    for percentile, dashes in _DASHES.items():
        values = [getattr(point.statistics.latency_ms, percentile) for point in points]
        style = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4}
        panels[0].plot(loads, values, label=f"{name}, {percentile}", **style)
    rates = [point.statistics.answered_per_s for point in points]
    panels[1].plot(loads, rates, label=name, color=colour, marker=marker, markersize=4)


def _log(set_scale: Callable[[str], None], axis: Any) -> None:
    """Makes an axis logarithmic, with milliseconds as plain numbers, also between powers of ten."""
    set_scale("log")
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _prefix(report: Report, point: Point) -> str:
    return f"{point.target}, " if len(report.targets) > 1 else ""
