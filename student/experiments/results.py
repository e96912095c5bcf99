"""The finished runs that a report compares: those of a sweep, or those in any folders."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from student.experiments.plans import SweepPlan, load_plan
from student.experiments.statistics import EVALUATIONS_IN_A_ROW, CensoredTimes, samples_to
from student.runs.metrics import BadMetrics, MetricsRow, read_metrics
from student.settings import FORMER_NAMES
from teacher_api.command_line import CannotStart

ALONE = "alone"
"""The name of an arm without a teacher, or its first word, where the report names the arms."""

Metric = Literal["success", "return"]


class BadSweep(CannotStart):
    """The runs in a folder cannot be reported: the message says why and what to do."""


class Cell(NamedTuple):
    """A cell of the experiment's design; its runs differ in their seeds alone."""

    arm: str
    algo: str
    env: str


@dataclass(frozen=True)
class Design:
    """The factors of an experiment and their levels; every arm is compared with the baseline.

    Attributes:
        own_envs: the environments of the arms that are not for all of them.
    """

    arms: tuple[str, ...]
    algos: tuple[str, ...]
    envs: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str
    own_envs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def envs_of(self, arm: str) -> tuple[str, ...]:
        """Returns the environments that an arm is for."""
        return self.own_envs.get(arm, self.envs)

    def cells(self) -> list[Cell]:
        """Returns all cells, by algorithm, environment, arm."""
        return [
            Cell(arm, algo, env)
            for algo in self.algos
            for env in self.envs
            for arm in self.arms
            if env in self.envs_of(arm)
        ]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with E evaluations on held-out episodes."""

    cell: Cell
    seed: int
    config: dict[str, Any]
    summary: dict[str, Any]
    frames_E: NDArray[np.int64]
    success_E: NDArray[np.float64]
    return_E: NDArray[np.float64]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in force."""
        settings: dict[str, Any] = self.config["settings"]
        return settings

    @property
    def identity(self) -> str | None:
        """The teacher's identity; None without a teacher."""
        identity: str | None = self.summary.get("teacher")
        return identity

    @property
    def frames(self) -> int:
        """Frames trained for."""
        return int(self.summary["frames"])

    def samples_to(self, metric: Metric, threshold: float) -> int | None:
        """Returns the samples to a threshold, in frames; None if the threshold is never reached."""
        values_E = self.success_E if metric == "success" else self.return_E
        return samples_to(threshold, self.frames_E.tolist(), values_E.tolist())

    def lowest_after(self, threshold: float) -> float | None:
        """Returns the lowest success after a threshold was held; None if it never was, or only at the end."""
        reached = self.samples_to("success", threshold)
        if reached is None:
            return None
        later_L = self.success_E[self.frames_E >= reached][EVALUATIONS_IN_A_ROW:]
        return float(later_L.min()) if len(later_L) else None


class TeacherEvaluation(NamedTuple):
    """A teacher evaluated as a policy in an environment, with the reports of `student evaluate`."""

    name: str
    env: str
    identity: str
    sampled: dict[str, Any]
    argmax: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The finished runs of an experiment.

    Attributes:
        plan: the plan of the sweep; None for runs in any folders.
        planned: the number of runs, finished or not.
        teachers: evaluations of the teachers.
        notes: what was left out and what limits the comparison, a line each.
    """

    design: Design
    plan: SweepPlan | None
    planned: int
    runs: dict[Cell, list[FinishedRun]]
    teachers: list[TeacherEvaluation]
    notes: list[str]

    def cells(self) -> list[Cell]:
        """Returns the cells with a finished run, by algorithm, environment, arm."""
        return [cell for cell in self.design.cells() if cell in self.runs]

    def times(self, cell: Cell, metric: Metric, threshold: float) -> CensoredTimes:
        """Returns each seed's samples to threshold, censored at the end of a run that never reached it."""
        found = [(run.samples_to(metric, threshold), run.frames) for run in self.runs[cell]]
        return CensoredTimes(
            np.array([frames if reached is None else reached for reached, frames in found], float),
            np.array([reached is not None for reached, _ in found]),
        )

    def teachers_of(self, algo: str, env: str) -> list[TeacherEvaluation]:
        """Returns the evaluations, in an environment, of the teachers of an algorithm's runs there."""
        used = {run.identity for cell in self.cells() if cell[1:] == (algo, env) for run in self.runs[cell]}
        return [each for each in self.teachers if each.env == env and each.identity in used]


def read_sweep(folder: Path) -> Results:
    """Reads the finished runs of a sweep.

    Raises:
        BadSweep: no run is finished.
        BadPlan: sweep.json cannot be read.
    """
    plan = load_plan(folder, to_report=True)
    design = Design(
        arms=tuple(plan.arms),
        algos=tuple(plan.algos),
        envs=tuple(plan.envs),
        seeds=tuple(plan.seeds),
        baseline=plan.baseline,
        own_envs={name: tuple(plan.envs_of(name)) for name, arm in plan.arms.items() if arm.envs is not None},
    )
    runs: dict[Cell, list[FinishedRun]] = {}
    left_out: dict[tuple[Cell, str], list[int]] = {}
    notes: list[str] = []
    failures = _read_failures(folder)
    for cell in design.cells():
        for seed in design.seeds:
            try:
                run = _read_run(folder.joinpath("runs", *cell, f"seed-{seed}"), (*cell[1:], seed), cell.arm)
            except _UnusableRun as problem:
                name = "/".join((*cell, f"seed-{seed}"))
                why = f"failed: {failures[name]}" if name in failures else str(problem)
                left_out.setdefault((cell, why), []).append(seed)
                continue
            runs.setdefault(cell, []).append(run)
            notes += _note_few_evaluations(run, _name(cell, [seed]))
    notes = [f"{_name(cell, seeds)}: left out: {why}" for (cell, why), seeds in left_out.items()] + notes
    if not runs:
        raise BadSweep(
            f"{folder} has no finished run: {len(left_out)} cells of the sweep are still to be run"
        )
    teachers = _read_teachers(folder, notes)
    notes += [*_limitations(runs, teachers), *_note_unplanned(folder, design)]
    return Results(design, plan, len(design.cells()) * len(design.seeds), runs, teachers, notes)


def read_runs(folders: Sequence[Path], name_arms: Callable[[list[FinishedRun]], list[str]]) -> Results:
    """Reads the finished runs in folders, at any depth.

    Args:
        name_arms: returns the arm of each run.

    Raises:
        BadSweep: a folder does not exist or holds no run, or no run is finished.
    """
    found: dict[Path, FinishedRun] = {}
    notes: list[str] = []
    planned = 0
    for folder in folders:
        paths = list(_run_folders(folder))
        if not paths:
            raise BadSweep(
                f"{folder} holds no run and no sweep: name a folder that `student train` or `student sweep`"
                " wrote, or one that contains such folders"
            )
        for path in paths:
            planned += 1
            try:
                found[path] = _read_run(path)
            except _UnusableRun as problem:
                notes.append(f"{path}: left out: {problem}")
                continue
            notes += _note_few_evaluations(found[path], str(path))
    if not found:
        raise BadSweep(f"no run is finished: {notes[0]}")
    runs: dict[Cell, list[FinishedRun]] = {}
    first: dict[tuple[Cell, int], Path] = {}
    for (path, run), arm in zip(found.items(), name_arms(list(found.values())), strict=True):
        cell = run.cell._replace(arm=arm)
        if (before := first.setdefault((cell, run.seed), path)) != path:
            notes.append(f"{path}: left out: {before} has the same settings and the same seed")
            continue
        runs.setdefault(cell, []).append(replace(run, cell=cell))
    arms = sorted({cell.arm for cell in runs}, key=lambda arm: (not arm.startswith(ALONE), arm))
    design = Design(
        arms=tuple(arms),
        algos=tuple(sorted({cell.algo for cell in runs}, reverse=True)),
        envs=tuple(sorted({cell.env for cell in runs})),
        seeds=tuple(sorted({run.seed for each in runs.values() for run in each})),
        baseline=arms[0],
    )
    return Results(design, None, planned, runs, [], [*notes, *_limitations(runs, [])])


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yields the folders of runs: `folder` itself, or folders below it."""
    if not folder.is_dir():
        raise BadSweep(f"there is no folder {folder}")
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if "config.json" in files and _is_run(Path(parent)):
            folders.clear()
            yield Path(parent)


def _is_run(folder: Path) -> bool:
    """Returns whether config.json is a run's, not that of a checkpoint or of another program."""
    try:
        settings = _read_json(folder / "config.json").get("settings")
    except _UnusableRun:
        return True  # a note will name the run
    return isinstance(settings, dict) and {"env", "algo", "seed"} <= settings.keys()


def _name(cell: Cell, seeds: list[int]) -> str:
    return f"{'/'.join(cell)} seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _read_failures(folder: Path) -> dict[str, str]:
    """Returns why runs failed, by run name, from failed.json if there is one."""
    try:
        return {name: str(why) for name, why in _read_json(folder / "failed.json").items()}
    except _UnusableRun:
        return {}


class _UnusableRun(Exception):
    """A run is left out of the report: the message says why."""


def _read_run(run: Path, expected: tuple[str, str, int] | None = None, arm: str = "") -> FinishedRun:
    """Reads a run; `expected` is the algorithm, environment and seed that its config.json must have."""
    if not run.is_dir():
        raise _UnusableRun("missing: it has not been started")
    if not (run / "summary.json").is_file():
        raise _UnusableRun(f"unfinished: it has no summary.json, and {_last_evaluation(run)}")
    rows = _evaluations(run)
    config, summary = _read_json(run / "config.json"), _read_json(run / "summary.json")
    try:
        algo, *others = (config["settings"][name] for name in ("algo", "env", "seed"))
        found = (FORMER_NAMES.get(algo, algo), *others)
        if expected and (FORMER_NAMES.get(expected[0], expected[0]), *expected[1:]) != found:
            raise _UnusableRun(f"its config.json belongs to another run: {' '.join(map(str, found))}")
        if rows and rows[-1]["frames"] > summary["frames"]:
            raise _UnusableRun("unfinished: it was resumed after it wrote its summary.json")
        for name in ("success", "return", "frames", "seconds"):
            float(summary[name])
        return FinishedRun(
            Cell(arm, expected[0] if expected else found[0], found[1]),
            found[2],
            config,
            summary,
            np.array([row["frames"] for row in rows], np.int64),
            np.array([row["evaluation_success"] for row in rows], float),
            np.array([row["evaluation_return"] for row in rows], float),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _UnusableRun(f"this program cannot read its files: {type(error).__name__} {error}") from error


def _last_evaluation(run: Path) -> str:
    try:
        rows = _evaluations(run)
    except _UnusableRun as why:
        return str(why)
    return f"its last evaluation is at {rows[-1]['frames']:,} frames" if rows else "it was never evaluated"


def _evaluations(run: Path) -> list[MetricsRow]:
    """Returns the rows of metrics.jsonl that hold an evaluation, oldest first."""
    try:
        return list(read_metrics(run, figure="evaluation_success", complete=True))
    except OSError as error:
        raise _UnusableRun(f"its metrics.jsonl cannot be read: {type(error).__name__}") from error
    except BadMetrics as error:
        raise _UnusableRun(f"its metrics.jsonl is cut off in line {error.line}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _UnusableRun(f"its {path.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise _UnusableRun(f"its {path.name} is not a JSON object")
    return content


def _read_teachers(folder: Path, notes: list[str]) -> list[TeacherEvaluation]:
    evaluations = []
    for path in sorted((folder / "teachers").glob("*/*.json")):
        try:
            found = _read_json(path)
            for actions in ("sampled", "argmax"):
                float(found[actions]["success"])
            evaluations.append(
                TeacherEvaluation(
                    path.parent.name, path.stem, found["teacher"], found["sampled"], found["argmax"]
                )
            )
        except (_UnusableRun, KeyError, TypeError, ValueError) as error:
            why = error if isinstance(error, _UnusableRun) else f"it holds no evaluation: {error!r}"
            notes.append(f"teachers/{path.parent.name}/{path.name}: left out: {why}")
    return evaluations


def _note_few_evaluations(run: FinishedRun, name: str) -> list[str]:
    if len(run.frames_E) >= EVALUATIONS_IN_A_ROW:
        return []
    return [
        f"{name}: too few evaluations ({len(run.frames_E)}): a threshold needs {EVALUATIONS_IN_A_ROW} in a"
        " row, so it is counted as never reached"
    ]


def _limitations(runs: dict[Cell, list[FinishedRun]], teachers: Iterable[TeacherEvaluation]) -> Iterator[str]:
    """Yields what is no error, but limits what the comparison means."""
    evaluated = {(each.identity, each.env) for each in teachers}
    missing: dict[tuple[str, str], None] = {}
    for cell, seeds in runs.items():
        identities = {run.identity for run in seeds}
        if len(identities) > 1:
            yield f"{'/'.join(cell)}: its seeds had {len(identities)} different teachers"
        if len({run.frames for run in seeds}) > 1:
            yield f"{'/'.join(cell)}: its seeds ran for different numbers of frames"
        missing |= {
            (each, cell.env): None for each in identities if each and (each, cell.env) not in evaluated
        }
    for identity, env in missing:
        yield f"teacher {identity} on {env}: the teacher was not evaluated: the curves have no line for it"


def _note_unplanned(folder: Path, design: Design) -> Iterator[str]:
    planned = {
        folder.joinpath("runs", *cell, f"seed-{seed}") for cell in design.cells() for seed in design.seeds
    }
    for path in sorted(set(folder.glob("runs/*/*/*/seed-*")) - planned):
        yield f"{path.relative_to(folder / 'runs')}: left out: it is not in sweep.json"
