"""Reliability diagrams: how often a teacher is right, by how sure it is."""

import io
from collections.abc import Mapping

from matplotlib.figure import Figure

from teacher_tools.score.figures import Calibration
from teacher_tools.score.measures import BINS

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F3C8D")
"""Okabe and Ito's, without yellow: told apart by the colour-blind; markers tell them apart in print."""
_MARKERS = "osD^vPX"


def draw_reliability(panels: Mapping[str, Mapping[str, Calibration]]) -> bytes | None:
    """A PNG: a panel for each environment, a line for each teacher; None where nothing is calibrated.

    A point is a bin: the mean confidence and the share of optimal arg-maxes in it, with its 95 % interval.
    The bars below tell which share of the answers is in which bin.
    """
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return None
    figure = Figure(figsize=(3.2 * len(panels), 3.9), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, height_ratios=[4, 1])
    for column, (title, lines) in enumerate(panels.items()):
        upper, lower = axes[:, column]
        upper.set_title(title, fontsize=9.5)
        upper.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
        for number, (name, calibration) in enumerate(lines.items()):
            colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
            sure = [each.confidence for each in calibration.bins]
            right = [each.optimal.value for each in calibration.bins]
            below = [max(each.optimal.value - each.optimal.low, 0) for each in calibration.bins]
            above = [max(each.optimal.high - each.optimal.value, 0) for each in calibration.bins]
            upper.errorbar(
                sure, right, [below, above], color=colour, marker=marker, markersize=4, capsize=2, label=name
            )
            width = 1 / BINS / len(lines)
            left = [each.above + number * width for each in calibration.bins]
            share = [each.optimal.of / calibration.of for each in calibration.bins]
            lower.bar(left, share, width, align="edge", color=colour)
        upper.set(xlim=(0, 1), ylim=(-0.03, 1.03))
        lower.set(ylim=(0, 1), xlabel="confidence")
        for panel in (upper, lower):
            panel.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("arg-max is optimal")
    axes[1, 0].set_ylabel("share")
    named = {
        label: handle
        for panel in axes[0]
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if len(named) > 1:
        figure.legend(
            named.values(), named, loc="outside lower center", ncols=len(named), frameon=False, fontsize=8
        )
    written = io.BytesIO()
    figure.savefig(written, dpi=150, format="png", metadata={"Software": None})
    return written.getvalue()
