"""The tables of a report: for its pages, and as CSV files."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from gridworld.tasks import family_of
from student.experiments.comparison import (
    PAPER_RESULTS,
    PAPER_RETURN,
    PAPER_TASKS,
    ArmComparison,
    Harm,
    SpeedUp,
    comparable_settings,
)
from student.experiments.figures import short_env
from student.experiments.results import Cell, FinishedRun, Results
from student.experiments.statistics import Bound, Estimate

_SIGNS = {"": "", ">=": "≥ ", "<=": "≤ "}
_NOTHING = "–"


@dataclass(frozen=True)
class ReportRow:
    """A row of a table; `kind` is "mean" (over environments), "paper" (the paper's result) or ""."""

    cells: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class ReportTable:
    """A table of a report's pages."""

    columns: tuple[str, ...]
    rows: list[ReportRow]


def formatted(estimate: Estimate | None, form: str) -> str:
    """Returns an estimate with its interval, such as "≥ 2.13 [1.50, ≥ 3.20]"; `form` formats each number."""
    if estimate is None:
        return _NOTHING
    value, low, high = estimate
    if value.sign == "?":
        return "not known"
    if low is None or high is None or (value.sign and low.value == value.value == high.value):
        return _bound(value, form)  # a single seed, or only runs that never reached it
    return f"{_bound(value, form)} [{_bound(low, form)}, {_bound(high, form)}]"


def _bound(bound: Bound, form: str) -> str:
    return f"{_SIGNS[bound.sign]}{bound.value:{form}}"


def speed_up_table(comparison: ArmComparison) -> ReportTable:
    """Returns samples to threshold and speed-ups, with the paper's results below the rows they compare to."""
    rows: list[ReportRow] = []
    families = {task.key if (task := family_of(env)) else None for env in comparison.design.envs}
    only_paper_tasks = families <= PAPER_TASKS
    blocks = groupby(comparison.speed_ups, key=lambda row: (row.algo, row.env, row.criterion))
    for (algo, env, criterion), block in blocks:
        rows += [_speed_up_row(row, len(comparison.design.envs_of(row.arm))) for row in block]
        paper = PAPER_RESULTS.get(algo)
        if paper and env is None and only_paper_tasks:
            cells = (
                algo.upper(),
                "four tasks, in the paper",
                "",
                "LVLM2P",
                "",
                "",
                f"{paper.mean_speed_up:.2f}",
            )
            rows.append(ReportRow(cells, "paper"))
        elif paper and criterion.metric == "return":
            samples, ratio = f"{paper.lava_gap_samples:,}", f"{paper.lava_gap_speed_up:.2f}"
            threshold = f"return ≥ {PAPER_RETURN}"
            cells = (algo.upper(), "LavaGap, in the paper", threshold, "LVLM2P", "", samples, ratio)
            rows.append(ReportRow(cells, "paper"))
    columns = ("algorithm", "environment", "threshold", "arm", "reached", "samples to threshold", "speed-up")
    return ReportTable(columns, rows)


def _speed_up_row(row: SpeedUp, environments: int) -> ReportRow:
    env = short_env(row.env) if row.env else f"geometric mean, {len(row.parts)} of {environments}"
    reached = f"{row.reached} of {row.seeds}"
    ratio = formatted(row.ratio, ".2f")
    cells = (
        row.algo.upper(),
        env,
        str(row.criterion),
        row.arm,
        reached,
        formatted(row.median, ",.0f"),
        ratio,
    )
    return ReportRow(cells, "" if row.env else "mean")


def final_table(comparison: ArmComparison) -> ReportTable:
    """Returns success at the end and its difference to the baseline's."""
    rows = [
        ReportRow(
            (
                row.algo.upper(),
                short_env(row.env) if row.env else _all_of(row.arm, comparison),
                row.arm,
                str(row.seeds),
                formatted(row.success, ".3f"),
                formatted(row.difference, "+z.3f"),
                _NOTHING if row.lowest is None else f"{row.lowest:.3f}",
            ),
            "" if row.env else "mean",
        )
        for row in comparison.finals
    ]
    lowest = f"lowest after {comparison.criterion}"
    columns = ("algorithm", "environment", "arm", "seeds", "success", "difference to the baseline", lowest)
    return ReportTable(columns, rows)


def _all_of(arm: str, comparison: ArmComparison) -> str:
    design = comparison.design
    envs = design.envs_of(arm)
    if envs == design.envs:
        return "all environments"
    return f"its {len(envs)} environments" if len(envs) > 1 else "its environment"


def harm_tables(comparison: ArmComparison) -> list[ReportTable]:
    """Returns a table for each algorithm: the difference to the baseline by teacher and environment."""
    tables = []
    for algo in comparison.design.algos:
        harms = {(row.arm, row.env): row for row in comparison.harms if row.algo == algo}
        arms = list(dict.fromkeys(arm for arm, _ in harms))
        envs = [env for env in (*comparison.design.envs, None) if (None, env) in harms]
        rows = [
            ReportRow(
                (arm or "all arms", *(_harm(harms.get((arm, env))) for env in envs)), "" if arm else "mean"
            )
            for arm in arms
        ]
        if rows:
            named = (short_env(env) if env else "all environments" for env in envs)
            tables.append(ReportTable((f"arm, with {algo.upper()}", *named), rows))
    return tables


def _harm(row: Harm | None) -> str:
    if row is None:
        return _NOTHING
    return f"{'▼ ' if row.harmful else ''}{formatted(row.difference, '+z.3f')}"


def questions_table(comparison: ArmComparison) -> ReportTable:
    """Returns the questions and the time of the runs, as means over seeds."""
    columns = (
        *("algorithm", "environment", "arm", "states", "questions", "from store", "failed", "paper's count"),
        *("seconds", "frames/s"),
    )
    rows = []
    for row in comparison.questions:
        counts = [f"{n:,.0f}" for n in (row.states, row.questions, row.store_hits, row.failed)]
        paper = _NOTHING if row.papers_count is None else f"{row.papers_count:,.0f}"
        speed = f"{row.frames_per_second:,.0f}"
        cells = (row.algo.upper(), short_env(row.env), row.arm, *counts, paper, f"{row.seconds:,.1f}", speed)
        rows.append(ReportRow(cells))
    return ReportTable(columns, rows)


def settings_table(results: Results) -> ReportTable:
    """Returns the settings in force that differ between arms, a column per arm."""
    rows = []
    for algo in results.design.algos:
        by_arm = {arm: comparable_settings(run) for arm, run in _first_runs(results, algo).items()}
        for name in dict.fromkeys(name for settings in by_arm.values() for name in settings):
            values = [
                _json(by_arm[arm][name]) if name in by_arm.get(arm, {}) else _NOTHING
                for arm in results.design.arms
            ]
            if len(set(values)) > 1:
                rows.append(ReportRow((algo.upper(), name.replace("_", "-"), *values)))
    return ReportTable(("algorithm", "setting", *results.design.arms), rows)


def shared_settings(results: Results) -> dict[str, dict[str, Any]]:
    """Returns the settings in force that all arms share, by algorithm."""
    shared = {}
    for algo in results.design.algos:
        first, *others = [comparable_settings(run) for run in _first_runs(results, algo).values()] or [{}]
        missing = object()
        shared[algo] = {
            name: value
            for name, value in first.items()
            if all(other.get(name, missing) == value for other in others)
        }
    return shared


def teachers_table(results: Results) -> ReportTable:
    """Returns the teachers and their success as policies."""
    rows = [
        ReportRow(
            (
                teacher.name,
                short_env(teacher.env),
                teacher.identity,
                str(teacher.sampled.get("episodes", "")),
                f"{teacher.sampled['success']:.3f}{_interval(teacher.sampled.get('success_interval'))}",
                f"{teacher.argmax['success']:.3f}{_interval(teacher.argmax.get('success_interval'))}",
            )
        )
        for teacher in results.teachers
    ]
    columns = ("teacher", "environment", "identity", "episodes", "success, sampled", "success, most probable")
    return ReportTable(columns, rows)


def _interval(ends: Sequence[float] | None) -> str:
    return f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""


def _first_runs(results: Results, algo: str) -> dict[str, FinishedRun]:
    """Returns one finished run of each arm."""
    found: dict[str, FinishedRun] = {}
    for env in results.design.envs:
        for arm in results.design.arms:
            if runs := results.runs.get(Cell(arm, algo, env)):
                found.setdefault(arm, runs[0])
    return found


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def curves_csv(results: Results) -> str:
    """Returns every evaluation of every finished run."""
    rows = (
        (*cell, run.seed, *point)
        for cell in results.cells()
        for run in results.runs[cell]
        for point in zip(run.frames_E.tolist(), run.success_E.tolist(), run.return_E.tolist(), strict=True)
    )
    return _csv(("arm", "algo", "env", "seed", "frames", "success", "return"), rows)


def speed_ups_csv(comparison: ArmComparison) -> str:
    """Returns the unrounded table of speed-ups; an empty environment marks the geometric mean over all."""
    rows = (
        (
            *(row.arm, row.algo, row.env or "", row.criterion.metric, row.criterion.threshold, row.seeds),
            *(row.reached, *_flat(row.median), *_flat(row.ratio), " ".join(row.parts)),
        )
        for row in comparison.speed_ups
    )
    columns = ("arm", "algo", "env", "figure", "threshold", "seeds", "reached")
    return _csv((*columns, *_named("median"), *_named("speedup"), "environments"), rows)


def final_csv(comparison: ArmComparison) -> str:
    """Returns unrounded success at the end; an empty environment stands for all environments."""
    rows = (
        (
            *(row.arm, row.algo, row.env or "", row.seeds, *_ends(row.success), *_ends(row.difference)),
            "" if row.lowest is None else row.lowest,
        )
        for row in comparison.finals
    )
    ends = ("success", "success_low", "success_high", "difference", "difference_low", "difference_high")
    return _csv(("arm", "algo", "env", "seeds", *ends, "lowest"), rows)


def harm_csv(comparison: ArmComparison) -> str:
    """Returns the unrounded tables of harm; an empty arm or environment marks a mean over all of them."""
    rows = (
        (row.arm or "", row.algo, row.env or "", row.cells, *_ends(row.difference), int(row.harmful))
        for row in comparison.harms
    )
    ends = ("difference", "difference_low", "difference_high")
    return _csv(("arm", "algo", "env", "cells", *ends, "harmful"), rows)


def questions_csv(comparison: ArmComparison) -> str:
    """Returns the questions and the time of the runs, as means over seeds."""
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
    """Returns values and signs; empty cells where there is no estimate or no interval."""
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
