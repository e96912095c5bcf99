"""The figures of a report as PNG: success against frames, samples to threshold, ablations."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

from student.experiments.comparison import ArmComparison, Curve, arms_that_differ_in
from student.experiments.results import Cell
from student.experiments.statistics import Estimate
from teacher_api.plot_style import COLOURS, STYLE

mpl.use("Agg")
from matplotlib import pyplot as plt

_BASELINE_COLOUR = "#222222"
_MARKERS = "osD^vPX*"
"""Distinguish the arms in print."""
_INCHES_A_CHARACTER = 0.08
_TITLE_WIDTH = 40
"""Characters of a title that fit above one panel."""
_TEACHER_DASHES = ((5, 2), (1, 1.5), (6, 2, 1, 2), (3, 3))


def short_env(env_id: str) -> str:
    """Returns an environment's id without "MiniGrid-" and "-v0"."""
    return env_id.removeprefix("MiniGrid-").removesuffix("-v0")


def draw_success(comparison: ArmComparison) -> bytes:
    """Draws success against frames, the paper's figure 3: a row per algorithm, a column per environment."""
    design = comparison.design
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(design.algos), len(design.envs), 3.3, 2.6)
        for row, algo in enumerate(design.algos):
            for column, env in enumerate(design.envs):
                panel = axes[row, column]
                panel.set_title(_title(algo, env))
                _draw_success(comparison, panel, algo, env, list(design.arms))
            axes[row, 0].set_ylabel("success on held-out episodes")
        for panel in axes[-1]:
            panel.set_xlabel("frames")
        return _finished(figure, axes)


def draw_samples(comparison: ArmComparison) -> bytes:
    """Draws samples to the threshold of success: medians with intervals, and the single seeds."""
    design = comparison.design
    with mpl.rc_context(STYLE):
        height = 1.0 + 0.32 * len(design.arms)
        figure, axes = _panels(len(design.algos), len(design.envs), 3.3, height, sharey=True)
        figure.set_figwidth(figure.get_figwidth() + _INCHES_A_CHARACTER * max(map(len, design.arms)))
        for row, algo in enumerate(design.algos):
            for column, env in enumerate(design.envs):
                panel = axes[row, column]
                panel.set_title(_title(algo, env))
                for y, arm in enumerate(design.arms):
                    if (cell := Cell(arm, algo, env)) in comparison.results.runs:
                        _draw_times(comparison, panel, cell, y)
                panel.set_xlim(left=0)
                panel.xaxis.set_major_formatter(_thousands)
                panel.grid(axis="y", visible=False)
            axes[row, 0].set_yticks(range(len(design.arms)), list(design.arms))
            axes[row, 0].set_ylim(len(design.arms) - 0.5, -0.5)
        for panel in axes[-1]:
            panel.set_xlabel(f"frames to {comparison.criterion}")
        return _finished(figure, axes, legend=False)


def draw_ablations(comparison: ArmComparison) -> bytes | None:
    """Draws the paper's figure 4: soft against hard targets, and success and samples over lambda.

    Returns:
        None if no arms differ in targets alone or lambda alone.
    """
    cells = [(algo, env) for algo in comparison.design.algos for env in comparison.design.envs]
    targets = {at: arms_that_differ_in("targets", comparison.results, *at) for at in cells}
    lambdas = {at: arms_that_differ_in("lambda", comparison.results, *at) for at in cells}
    rows = [at for at in cells if targets[at] or lambdas[at]]
    if not rows:
        return None
    kinds = ["targets"] * any(targets.values()) + ["success", "samples"] * any(lambdas.values())
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(rows), len(kinds), 3.6, 2.6)
        for row, (algo, env) in enumerate(rows):
            for column, kind in enumerate(kinds):
                panel, groups = axes[row, column], (targets if kind == "targets" else lambdas)[algo, env]
                panel.set_title(_title(algo, env))
                if not groups:
                    panel.set_axis_off()
                elif kind == "targets":
                    arms = [arm for group in groups for arm in group.values()]
                    _draw_success(comparison, panel, algo, env, [comparison.design.baseline, *arms])
                    panel.set(xlabel="frames", ylabel="success")
                else:
                    _draw_lambdas(comparison, panel, Cell("", algo, env), groups, kind)
        return _finished(figure, axes)


def _draw_success(comparison: ArmComparison, panel: Any, algo: str, env: str, arms: Sequence[str]) -> None:
    """Draws the arms' curves with their bands, the teachers' success dashed, and the threshold dotted."""
    for arm in dict.fromkeys(arms):
        curve: Curve | None = comparison.curves.get(Cell(arm, algo, env))
        if curve is not None:
            style = _style(comparison, arm)
            every = max(1, len(curve.frames_T) // 6)
            panel.plot(curve.frames_T, curve.success_T, label=arm, markevery=every, markersize=4, **style)
            panel.fill_between(
                curve.frames_T,
                curve.low_T,
                curve.high_T,
                color=style["color"],
                alpha=0.6 / max(4, len(arms)),
                linewidth=0,
            )
    panel.axhline(comparison.criterion.threshold, color="#888888", linewidth=0.8, linestyle=":")
    names = list(dict.fromkeys(teacher.name for teacher in comparison.results.teachers))
    for teacher in comparison.results.teachers_of(algo, env):
        dashes = _TEACHER_DASHES[names.index(teacher.name) % len(_TEACHER_DASHES)]
        label = f"teacher {teacher.name}"
        panel.axhline(teacher.sampled["success"], color="#555555", linewidth=1.2, dashes=dashes, label=label)
    panel.set_ylim(-0.03, 1.03)
    panel.xaxis.set_major_formatter(_thousands)


def _draw_times(comparison: ArmComparison, panel: Any, cell: Cell, y: int) -> None:
    """Draws a dot per seed, an arrow for a seed without the threshold, and the median with its interval."""
    style = _style(comparison, cell.arm)
    times = comparison.results.times(cell, *comparison.criterion)
    spread_N = y + np.linspace(-0.22, 0.22, len(times.frames_N))
    for chosen_N, marker in ((times.reached_N, "o"), (~times.reached_N, ">")):
        panel.plot(
            times.frames_N[chosen_N],
            spread_N[chosen_N],
            marker,
            color=style["color"],
            mfc="none",
            ms=3.5,
            alpha=0.6,
        )
    median = comparison.speed_up(cell).median
    if median is not None:
        _draw_estimate(panel, median, y, style["color"])


def _draw_estimate(panel: Any, median: Estimate, y: float, colour: str) -> None:
    value, low, high = median
    if low is not None and high is not None:
        panel.plot([low.value, high.value], [y, y], color=colour, linewidth=2, alpha=0.8)
    panel.plot(
        [value.value], [y], ">" if value.sign else "|", color=colour, markersize=9, markeredgewidth=2.5
    )


def _draw_lambdas(
    comparison: ArmComparison, panel: Any, at: Cell, groups: list[dict[Any, str]], kind: str
) -> None:
    """Draws success at the end, or samples to threshold, over lambda on a logarithmic axis, 0 at its left."""
    positive = sorted({value for group in groups for value in group if value > 0})
    zero = positive[0] / 10
    ticks: dict[float, str] = {value: f"{value:g}" for value in positive}
    alone = _baseline_without_teacher(comparison, at)
    for number, group in enumerate(groups):
        arms = ({0.0: alone} if alone else {}) | group
        cells = [at._replace(arm=arm) for arm in arms.values()]
        if kind == "success":
            estimates = [comparison.final(cell).success for cell in cells]
        else:
            estimates = [median for cell in cells if (median := comparison.speed_up(cell).median)]
        x = [value or zero for value in arms]
        ticks |= {zero: "0"} if 0 in arms else {}
        style = {"color": COLOURS[number % len(COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
        y = [each.value.value for each in estimates]
        below = [(each.value.value - each.low.value) if each.low else 0.0 for each in estimates]
        above = [(each.high.value - each.value.value) if each.high else 0.0 for each in estimates]
        panel.errorbar(x, y, [np.maximum(below, 0), np.maximum(above, 0)], capsize=2.5, markersize=5, **style)
        for at_x, each in zip(x, estimates, strict=True):
            if each.value.sign:
                panel.annotate("≥", (at_x, each.value.value), (0, 5), textcoords="offset points", ha="center")
    panel.set_xscale("log")
    panel.set_xticks(list(ticks), list(ticks.values()))
    panel.minorticks_off()
    panel.set_xlabel("lambda" + (" (0: without a teacher)" if alone else ""))
    if kind == "success":
        panel.set(ylabel="success at the end", ylim=(-0.03, 1.03))
    else:
        panel.set_ylabel(f"frames to {comparison.criterion}")
        panel.set_ylim(0, panel.get_ylim()[1] * 1.12)
        panel.yaxis.set_major_formatter(_thousands)


def _baseline_without_teacher(comparison: ArmComparison, at: Cell) -> str | None:
    """Returns the baseline's name if it has no teacher: then it stands for a lambda of 0."""
    name = comparison.design.baseline
    runs = comparison.results.runs.get(at._replace(arm=name), [])
    return name if runs and runs[0].identity is None else None


def _style(comparison: ArmComparison, arm: str) -> dict[str, Any]:
    design = comparison.design
    number = list(design.arms).index(arm)
    others = [each for each in design.arms if each != design.baseline]
    colour = _BASELINE_COLOUR if arm == design.baseline else COLOURS[others.index(arm) % len(COLOURS)]
    return {"color": colour, "marker": _MARKERS[number % len(_MARKERS)]}


def _thousands(value: float, _: int) -> str:
    return f"{value / 1000:g}k" if value else "0"


def _panels(rows: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Any, Any]:
    size = (max(width * columns, 4.8), height * rows + 0.5)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **shared)


def _finished(figure: Any, axes: Any, legend: bool = True) -> bytes:
    """Returns the figure as PNG, with one legend below all panels."""
    named = {
        label: line
        for panel in axes.flat
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if legend and named:
        _add_legend(figure, list(named.values()), list(named))
    written = io.BytesIO()
    # "tight" enlarges the picture for what crosses its edge, such as an arm's long name
    figure.savefig(written, dpi=150, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return written.getvalue()


def _add_legend(figure: Any, lines: Sequence[Any], names: Sequence[str]) -> None:
    """Adds a legend below the panels, with as many columns as fit, and enlarges the figure by its height."""
    for columns in range(len(names), 0, -1):
        legend = figure.legend(lines, names, loc="outside lower center", ncols=columns)
        size = legend.get_window_extent(figure.canvas.get_renderer())
        if columns == 1 or size.width <= figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + size.height / figure.dpi)


def _title(algo: str, env: str) -> str:
    """Returns a panel's title, wrapped to the panel's width."""
    return textwrap.fill(f"{algo.upper()}, {short_env(env)}", _TITLE_WIDTH)
