"""A comparison in words and figures: the report's tables, for the page and Markdown, and its CSV files."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from gridworld.tasks import family_of
from student.experiments.comparison import (
    PAPER,
    PAPERS_RETURN,
    PAPERS_TASKS,
    Comparison,
    SpeedUp,
    comparable_settings,
)
from student.experiments.figures import short
from student.experiments.results import Cell, FinishedRun, Sweep
from student.experiments.statistics import Bound, Estimate

_SIGNS = {"": "", ">=": "≥ ", "<=": "≤ "}
_NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """The cells of a row; `kind` is "mean" over environments, "paper" for the paper's own, or ""."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: list[Row]


def shown(estimate: Estimate | None, form: str) -> str:
    """An estimate with its interval, such as "≥ 2.13 [1.50, ≥ 3.20]"; `form` is that of its numbers."""
    if estimate is None:
        return _NOTHING
    value, low, high = estimate
    if value.sign == "?":
        return "not known"
    if low is None or high is None or (value.sign and low.value == value.value == high.value):
        return _bound(value, form)  # a single seed, or nothing but runs that never got there
    return f"{_bound(value, form)} [{_bound(low, form)}, {_bound(high, form)}]"


def _bound(bound: Bound, form: str) -> str:
    return f"{_SIGNS[bound.sign]}{bound.value:{form}}"


def speed_up_table(comparison: Comparison) -> Table:
    """Samples to threshold and speed-ups, the paper's own figures below the rows that they belong to."""
    rows: list[Row] = []
    families = {task.key if (task := family_of(env)) else None for env in comparison.sweep.plan.envs}
    about_the_papers_tasks = families <= PAPERS_TASKS
    blocks = groupby(comparison.speed_ups, key=lambda row: (row.algo, row.env, row.measure))
    for (algo, env, measure), block in blocks:
        rows += [_speed_up_row(row, len(comparison.sweep.plan.envs)) for row in block]
        paper = PAPER.get(algo)
        if paper and env is None and about_the_papers_tasks:
            cells = (
                algo.upper(),
                "four tasks, the paper's",
                "",
                "LVLM2P",
                "",
                "",
                f"{paper.mean_speed_up:.2f}",
            )
            rows.append(Row(cells, "paper"))
        elif paper and measure.figure == "return":
            samples, ratio = f"{paper.lava_gap_samples:,}", f"{paper.lava_gap_speed_up:.2f}"
            threshold = f"return ≥ {PAPERS_RETURN}"
            cells = (algo.upper(), "LavaGap, the paper's", threshold, "LVLM2P", "", samples, ratio)
            rows.append(Row(cells, "paper"))
    columns = ("algorithm", "environment", "threshold", "arm", "reached", "samples to threshold", "speed-up")
    return Table(columns, rows)


def _speed_up_row(row: SpeedUp, environments: int) -> Row:
    env = short(row.env) if row.env else f"geometric mean, {len(row.parts)} of {environments}"
    reached = f"{row.reached} of {row.seeds}"
    ratio = shown(row.ratio, ".2f")
    cells = (row.algo.upper(), env, str(row.measure), row.arm, reached, shown(row.median, ",.0f"), ratio)
    return Row(cells, "" if row.env else "mean")


def final_table(comparison: Comparison) -> Table:
    """Success at the end and its difference to the baseline's."""
    rows = [
        Row(
            (
                row.algo.upper(),
                short(row.env) if row.env else "all environments",
                row.arm,
                str(row.seeds),
                shown(row.success, ".3f"),
                shown(row.difference, "+z.3f"),
            ),
            "" if row.env else "mean",
        )
        for row in comparison.finals
    ]
    return Table(("algorithm", "environment", "arm", "seeds", "success", "above the baseline"), rows)


def questions_table(comparison: Comparison) -> Table:
    """What the runs asked and took, as means over seeds."""
    columns = (
        *("algorithm", "environment", "arm", "states", "asked", "from store", "failed", "the paper's way"),
        *("seconds", "frames/s"),
    )
    rows = []
    for row in comparison.questions:
        counts = [f"{n:,.0f}" for n in (row.states, row.questions, row.store_hits, row.failed)]
        paper = _NOTHING if row.papers_count is None else f"{row.papers_count:,.0f}"
        speed = f"{row.frames_per_second:,.0f}"
        cells = (row.algo.upper(), short(row.env), row.arm, *counts, paper, f"{row.seconds:,.1f}", speed)
        rows.append(Row(cells))
    return Table(columns, rows)


def settings_table(sweep: Sweep) -> Table:
    """The settings in force that differ between arms, a column an arm."""
    rows = []
    for algo in sweep.plan.algos:
        by_arm = {arm: comparable_settings(run) for arm, run in _first_runs(sweep, algo).items()}
        for name in dict.fromkeys(name for settings in by_arm.values() for name in settings):
            values = [
                _json(by_arm[arm][name]) if name in by_arm.get(arm, {}) else _NOTHING
                for arm in sweep.plan.arms
            ]
            if len(set(values)) > 1:
                rows.append(Row((algo.upper(), name.replace("_", "-"), *values)))
    return Table(("algorithm", "setting", *sweep.plan.arms), rows)


def shared_settings(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """For each algorithm, the settings in force that all arms share."""
    shared = {}
    for algo in sweep.plan.algos:
        first, *others = [comparable_settings(run) for run in _first_runs(sweep, algo).values()] or [{}]
        missing = object()
        shared[algo] = {
            name: value
            for name, value in first.items()
            if all(other.get(name, missing) == value for other in others)
        }
    return shared


def teachers_table(sweep: Sweep) -> Table:
    """Who taught, and how each does as a policy itself."""
    rows = [
        Row(
            (
                play.name,
                short(play.env),
                play.identity,
                str(play.sampled.get("episodes", "")),
                f"{play.sampled['success']:.3f}{_interval(play.sampled.get('success_interval'))}",
                f"{play.argmax['success']:.3f}{_interval(play.argmax.get('success_interval'))}",
            )
        )
        for play in sweep.teachers
    ]
    columns = ("teacher", "environment", "identity", "episodes", "success, sampled", "success, most probable")
    return Table(columns, rows)


def _interval(ends: Sequence[float] | None) -> str:
    return f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""


def _first_runs(sweep: Sweep, algo: str) -> dict[str, FinishedRun]:
    """A finished run of each arm."""
    found: dict[str, FinishedRun] = {}
    for env in sweep.plan.envs:
        for arm in sweep.plan.arms:
            if runs := sweep.runs.get(Cell(arm, algo, env)):
                found.setdefault(arm, runs[0])
    return found


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def curves_csv(sweep: Sweep) -> str:
    """Every evaluation of every finished run."""
    rows = (
        (*cell, run.seed, *point)
        for cell in sweep.cells()
        for run in sweep.runs[cell]
        for point in zip(run.frames_E.tolist(), run.success_E.tolist(), run.return_E.tolist(), strict=True)
    )
    return _csv(("arm", "algo", "env", "seed", "frames", "success", "return"), rows)


def speed_ups_csv(comparison: Comparison) -> str:
    """The table of speed-ups, unrounded; an empty environment is the geometric mean over them."""
    rows = (
        (
            *(row.arm, row.algo, row.env or "", row.measure.figure, row.measure.threshold, row.seeds),
            *(row.reached, *_flat(row.median), *_flat(row.ratio), " ".join(row.parts)),
        )
        for row in comparison.speed_ups
    )
    columns = ("arm", "algo", "env", "figure", "threshold", "seeds", "reached")
    return _csv((*columns, *_named("median"), *_named("speedup"), "environments"), rows)


def final_csv(comparison: Comparison) -> str:
    """Success at the end, unrounded; an empty environment is all of them."""
    rows = (
        (row.arm, row.algo, row.env or "", row.seeds, *_ends(row.success), *_ends(row.difference))
        for row in comparison.finals
    )
    ends = ("success", "success_low", "success_high", "difference", "difference_low", "difference_high")
    return _csv(("arm", "algo", "env", "seeds", *ends), rows)


def questions_csv(comparison: Comparison) -> str:
    """What the runs asked and took, as means over seeds."""
    columns = (
        *("arm", "algo", "env", "seeds", "frames", "states", "questions", "store_hits", "failed"),
        *("papers_count", "seconds", "frames_per_second"),
    )
    rows = ([getattr(row, column) for column in columns] for row in comparison.questions)
    return _csv(columns, rows)


def _named(name: str) -> Iterator[str]:
    for end in ("", "_low", "_high"):
        yield from (f"{name}{end}", f"{name}{end}_sign")


def _flat(estimate: Estimate | None) -> tuple[Any, ...]:
    """Values and signs; nothing where there is no estimate or no interval."""
    bounds = estimate or (None, None, None)
    return tuple(part for bound in bounds for part in (bound or ("", "")))


def _ends(estimate: Estimate | None) -> tuple[Any, ...]:
    return _flat(estimate)[::2]


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return written.getvalue()
