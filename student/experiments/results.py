"""Finished runs as a report reads them: those of a sweep's folder, or those in any folders."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from student.experiments.plans import SWEEP_FILE, StoredPlan, read_stored_plan
from student.experiments.statistics import Times, samples_to
from teacher_api.command_line import CannotStart

HOLD = 3
"""Evaluations in a row over which a threshold has to hold."""
ALONE = "alone"
"""How the name of an arm without a teacher begins where the report names the arms."""


class BadSweep(CannotStart):
    """A folder whose runs cannot be reported, and what to do."""


class Cell(NamedTuple):
    """What all seeds of a cell have in common."""

    arm: str
    algo: str
    env: str


@dataclass(frozen=True)
class FinishedRun:
    """One seed of a cell, trained to its end; E evaluations on held-out episodes."""

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
        """The teacher's; None without one."""
        identity: str | None = self.summary.get("teacher")
        return identity

    @property
    def frames(self) -> int:
        """Trained for."""
        return int(self.summary["frames"])

    def samples_to(self, figure: Literal["success", "return"], threshold: float) -> int | None:
        """Frames until an evaluation figure reached the threshold and held it; None if it never did."""
        values_E = self.success_E if figure == "success" else self.return_E
        return samples_to(threshold, self.frames_E.tolist(), values_E.tolist(), HOLD)


class TeacherPlay(NamedTuple):
    """How a teacher itself does as a policy in an environment: reports as `student evaluate` makes them."""

    name: str
    env: str
    identity: str
    sampled: dict[str, Any]
    argmax: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Runs as they were read.

    Attributes:
        plan: which arms, algorithms, environments and seeds there are.
        planned: how many runs there are to be.
        teachers: their own play, where it is known.
        notes: what could not be counted, a line each.
    """

    plan: StoredPlan
    planned: int
    runs: dict[Cell, list[FinishedRun]]
    teachers: list[TeacherPlay]
    notes: list[str]

    def cells(self) -> list[Cell]:
        """Those with a finished run, by algorithm, environment, arm."""
        return [cell for cell in _cells(self.plan) if cell in self.runs]

    def times(self, cell: Cell, figure: Literal["success", "return"], threshold: float) -> Times:
        """Samples to threshold of every seed; one that never got there is censored at its run's frames."""
        found = [(run.samples_to(figure, threshold), run.frames) for run in self.runs[cell]]
        return Times(
            np.array([frames if reached is None else reached for reached, frames in found], float),
            np.array([reached is not None for reached, _ in found]),
        )

    def teachers_of(self, algo: str, env: str) -> list[TeacherPlay]:
        """The play of those teachers that a run of this algorithm here has learnt from."""
        used = {run.identity for cell in self.cells() if cell[1:] == (algo, env) for run in self.runs[cell]}
        return [play for play in self.teachers if play.env == env and play.identity in used]


def read_sweep(folder: Path) -> Sweep:
    """Reads all that is finished of a sweep.

    Raises:
        BadSweep: no run is finished.
        BadPlan: sweep.json cannot be read.
    """
    plan = read_stored_plan(folder / SWEEP_FILE)
    runs: dict[Cell, list[FinishedRun]] = {}
    left_out: dict[tuple[Cell, str], list[int]] = {}
    notes: list[str] = []
    failed = _read_failed(folder)
    for cell in _cells(plan):
        for seed in plan.seeds:
            try:
                run = _read_run(folder.joinpath("runs", *cell, f"seed-{seed}"), (*cell[1:], seed), cell.arm)
            except _Unusable as problem:
                name = "/".join((*cell, f"seed-{seed}"))
                why = f"failed: {failed[name]}" if name in failed else str(problem)
                left_out.setdefault((cell, why), []).append(seed)
                continue
            runs.setdefault(cell, []).append(run)
            notes += _evaluated_too_seldom(run, _name(cell, [seed]))
    notes = [f"{_name(cell, seeds)}: left out: {why}" for (cell, why), seeds in left_out.items()] + notes
    if not runs:
        raise BadSweep(f"{folder} has no finished run yet: {len(left_out)} cells of the sweep are to be run")
    teachers = _read_teachers(folder, notes)
    notes += [*_oddities(runs, teachers), *_unplanned(folder, plan)]
    return Sweep(plan, len(_cells(plan)) * len(plan.seeds), runs, teachers, notes)


def read_runs(folders: Sequence[Path], name_arms: Callable[[list[FinishedRun]], list[str]]) -> Sweep:
    """Reads all finished runs in these folders and below them, wherever they are.

    Args:
        name_arms: the arm of each run.

    Raises:
        BadSweep: there is no such folder, or no finished run in one of them.
    """
    found: dict[Path, FinishedRun] = {}
    notes: list[str] = []
    planned = 0
    for folder in folders:
        paths = list(_run_folders(folder))
        if not paths:
            raise BadSweep(
                f"{folder} holds no run and no sweep: name a folder that `student train` or"
                " `student sweep` made, or one that has such folders in it"
            )
        for path in paths:
            planned += 1
            try:
                found[path] = _read_run(path)
            except _Unusable as problem:
                notes.append(f"{path}: left out: {problem}")
                continue
            notes += _evaluated_too_seldom(found[path], str(path))
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
    plan = StoredPlan(
        version=1,
        envs=tuple(sorted({cell.env for cell in runs})),
        algos=tuple(sorted({cell.algo for cell in runs}, reverse=True)),
        seeds=tuple(sorted({run.seed for each in runs.values() for run in each})),
        baseline=arms[0],
        arms={arm: {} for arm in arms},
    )
    return Sweep(plan, planned, runs, [], [*notes, *_oddities(runs, [])])


def _run_folders(folder: Path) -> Iterator[Path]:
    """The folders of runs in a folder, itself or below it."""
    if not folder.is_dir():
        raise BadSweep(f"there is no folder {folder}")
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if "config.json" in files and _is_run(Path(parent)):
            folders.clear()
            yield Path(parent)


def _is_run(folder: Path) -> bool:
    """Whether config.json is that of a run, and not a checkpoint's or another program's."""
    try:
        settings = _read_json(folder / "config.json").get("settings")
    except _Unusable:
        return True  # it is named among what was left out
    return isinstance(settings, dict) and {"env", "algo", "seed"} <= settings.keys()


def _cells(plan: StoredPlan) -> list[Cell]:
    return [Cell(arm, algo, env) for algo in plan.algos for env in plan.envs for arm in plan.arms]


def _name(cell: Cell, seeds: list[int]) -> str:
    return f"{'/'.join(cell)} seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _read_failed(folder: Path) -> dict[str, str]:
    """Why runs failed, by their folders' names, where the sweep has written that down."""
    try:
        return {name: str(why) for name, why in _read_json(folder / "failed.json").items()}
    except _Unusable:
        return {}


class _Unusable(Exception):
    """Why a run cannot be counted."""


def _read_run(run: Path, expected: tuple[str, str, int] | None = None, arm: str = "") -> FinishedRun:
    """A run's folder; `expected` are the algorithm, environment and seed that it has to be of."""
    if not run.is_dir():
        raise _Unusable("missing: it has not been started")
    if not (run / "summary.json").is_file():
        raise _Unusable(f"unfinished: it has no summary.json, and {_how_far(run)}")
    rows = list(_evaluations(run / "metrics.jsonl"))
    config, summary = _read_json(run / "config.json"), _read_json(run / "summary.json")
    try:
        told = tuple(config["settings"][name] for name in ("algo", "env", "seed"))
        if expected not in (None, told):
            raise _Unusable(f"its config.json is of another run: {' '.join(map(str, told))}")
        if rows and rows[-1]["frames"] > summary["frames"]:
            raise _Unusable("unfinished: it has gone on since it wrote its summary.json")
        for name in ("success", "return", "frames", "seconds"):
            float(summary[name])
        return FinishedRun(
            Cell(arm, told[0], told[1]),
            told[2],
            config,
            summary,
            np.array([row["frames"] for row in rows], np.int64),
            np.array([row["evaluation_success"] for row in rows], float),
            np.array([row["evaluation_return"] for row in rows], float),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _Unusable(f"it is no run of this version: {type(error).__name__} {error}") from error


def _how_far(run: Path) -> str:
    try:
        rows = list(_evaluations(run / "metrics.jsonl"))
    except _Unusable as why:
        return str(why)
    return f"its last evaluation is at {rows[-1]['frames']:,} frames" if rows else "it was never evaluated"


def _evaluations(path: Path) -> Iterator[dict[str, Any]]:
    """The rows that hold an evaluation; other lines are not parsed: a run has thousands of them."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _Unusable(f"its metrics.jsonl cannot be read: {type(error).__name__}") from error
    *lines, rest = text.split("\n")
    if rest:
        lines.append(rest)
    for number, line in enumerate(lines, 1):
        if '"evaluation_success"' in line or number == len(lines):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise _Unusable(f"its metrics.jsonl is cut off in line {number}") from error
            if isinstance(row, dict) and row.get("evaluation_success") is not None:
                yield row


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _Unusable(f"its {path.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise _Unusable(f"its {path.name} holds no object")
    return content


def _read_teachers(folder: Path, notes: list[str]) -> list[TeacherPlay]:
    plays = []
    for path in sorted((folder / "teachers").glob("*/*.json")):
        try:
            found = _read_json(path)
            for how in ("sampled", "argmax"):
                float(found[how]["success"])
            plays.append(
                TeacherPlay(path.parent.name, path.stem, found["teacher"], found["sampled"], found["argmax"])
            )
        except (_Unusable, KeyError, TypeError, ValueError) as error:
            why = error if isinstance(error, _Unusable) else f"it holds no report: {error!r}"
            notes.append(f"teachers/{path.parent.name}/{path.name}: left out: {why}")
    return plays


def _evaluated_too_seldom(run: FinishedRun, name: str) -> list[str]:
    if len(run.frames_E) >= HOLD:
        return []
    return [
        f"{name}: evaluated {len(run.frames_E)} times, and a threshold has to hold for {HOLD}: it counts as"
        " never reached"
    ]


def _oddities(runs: dict[Cell, list[FinishedRun]], teachers: Iterable[TeacherPlay]) -> Iterator[str]:
    """What is no mistake in itself, and yet has to be known to read the figures."""
    known = {(play.identity, play.env) for play in teachers}
    unplayed: dict[tuple[str, str], None] = {}
    for cell, seeds in runs.items():
        identities = {run.identity for run in seeds}
        if len(identities) > 1:
            yield f"{'/'.join(cell)}: its seeds had {len(identities)} different teachers"
        if len({run.frames for run in seeds}) > 1:
            yield f"{'/'.join(cell)}: its seeds ran for different numbers of frames"
        unplayed |= {(each, cell.env): None for each in identities if each and (each, cell.env) not in known}
    for identity, env in unplayed:
        yield f"teacher {identity} on {env}: its own play was not evaluated: the curves have no line for it"


def _unplanned(folder: Path, plan: StoredPlan) -> Iterator[str]:
    planned = {folder.joinpath("runs", *cell, f"seed-{seed}") for cell in _cells(plan) for seed in plan.seeds}
    for path in sorted(set(folder.glob("runs/*/*/*/seed-*")) - planned):
        yield f"{path.relative_to(folder / 'runs')}: left out: it is not in sweep.json"
