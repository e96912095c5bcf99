"""A sweep's arms compared with its baseline: samples to threshold, success, questions, curves, ablations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from student.experiments.results import ALONE, Cell, FinishedRun, Sweep
from student.experiments.statistics import (
    Bound,
    Estimate,
    Resampled,
    estimate,
    exponential,
    interquartile_mean,
    interval_of,
    log_speed_up,
    mean_of,
    resampled_medians,
    stratified,
)

PAPERS_RETURN = 0.91
"""The paper's threshold, of the mean return in LavaGap."""
_TOGETHER = 64
"""Points of a curve resampled at once: bounds the memory."""
_TELLS_NOTHING_APART = {
    *("env", "algo", "seed", "out", "resume", "progress", "threads", "checkpoint_every"),
    *("teacher", "teacher_key_file", "teacher_wait_s", "allow_teacher_change"),
}
"""Settings in which arms may differ that are compared in another one; a teacher counts by its identity."""


class Paper(NamedTuple):
    """What the paper reports for an algorithm: ratios, and samples to a mean return of 0.91 in LavaGap."""

    mean_speed_up: float
    lava_gap_speed_up: float
    lava_gap_samples: int


PAPERS_TASKS = {"lava_gap", "dynamic_obstacles", "fetch", "go_to_door"}
PAPER = {"ppo": Paper(2.56, 2.11, 5260), "a2c": Paper(2.86, 2.18, 9180)}


class Measure(NamedTuple):
    """A figure of the evaluations and what it has to reach."""

    figure: Literal["success", "return"]
    threshold: float

    def __str__(self) -> str:
        return f"{self.figure} ≥ {self.threshold:g}"


@dataclass(frozen=True)
class SpeedUp:
    """Samples to threshold of an arm, and how many times fewer than the baseline's.

    Over all environments (`env` None) the ratio is the geometric mean over `parts`, those that have one.
    """

    algo: str
    env: str | None
    measure: Measure
    arm: str
    seeds: int
    reached: int
    median: Estimate | None
    ratio: Estimate | None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class FinalSuccess:
    """Mean success at the end of an arm's runs, and how far above the baseline's."""

    algo: str
    env: str | None
    arm: str
    seeds: int
    success: Estimate
    difference: Estimate | None


@dataclass(frozen=True)
class Questions:
    """What an arm's runs cost, as means over seeds; the paper asks about every sample of every epoch."""

    algo: str
    env: str
    arm: str
    seeds: int
    frames: float
    states: float
    questions: float
    store_hits: float
    failed: float
    papers_count: float | None
    seconds: float
    frames_per_second: float


@dataclass(frozen=True)
class Curve:
    """Success at T evaluations: the interquartile mean over seeds and its 95 % band."""

    frames_T: NDArray[np.int64]
    success_T: NDArray[np.float64]
    low_T: NDArray[np.float64]
    high_T: NDArray[np.float64]


class Comparison:
    """Everything that is resampled, once, in an order of its own: the same seed gives the same figures."""

    def __init__(self, sweep: Sweep, threshold: float, resamples: int, seed: int) -> None:
        self.sweep = sweep
        self.measure = Measure("success", threshold)
        self._resamples = resamples
        self._rng = np.random.default_rng(seed)
        self.curves = {cell: curve for cell in sweep.cells() if (curve := self._curve(sweep.runs[cell]))}
        self.finals = list(self._finals())
        self.speed_ups = [row for algo in sweep.plan.algos for row in self._speed_ups(algo)]
        self.questions = [_questions(cell, sweep.runs[cell]) for cell in sweep.cells()]

    def speed_up(self, cell: Cell) -> SpeedUp:
        """A cell's row at the threshold of success."""
        return next(
            row
            for row in self.speed_ups
            if (row.arm, row.algo, row.env) == cell and row.measure == self.measure
        )

    def final(self, cell: Cell) -> FinalSuccess:
        return next(row for row in self.finals if (row.arm, row.algo, row.env) == cell)

    def _curve(self, runs: list[FinishedRun]) -> Curve | None:
        frames_T = _shared_frames(runs)
        if not len(frames_T):
            return None
        success_NT = np.array([np.interp(frames_T, run.frames_E, run.success_E) for run in runs])
        blocks = np.array_split(success_NT, np.arange(_TOGETHER, len(frames_T), _TOGETHER), axis=1)
        drawn_RT = np.concatenate([self._resampled([block], interquartile_mean) for block in blocks], axis=1)
        low_T, high_T = interval_of(drawn_RT) if len(drawn_RT) > 1 else (drawn_RT[0], drawn_RT[0])
        return Curve(frames_T, drawn_RT[0], low_T, high_T)

    def _resampled(self, strata: list[NDArray[np.float64]], statistic: Any) -> NDArray[np.float64]:
        return stratified(strata, statistic, self._resamples, self._rng)

    def _finals(self) -> Iterator[FinalSuccess]:
        plan = self.sweep.plan
        for algo in plan.algos:
            for env in (*plan.envs, None):
                drawn = {
                    arm: (sum(map(len, strata)), self._resampled(strata, np.mean))
                    for arm in plan.arms
                    if (strata := self._successes(arm, algo, env))
                }
                for arm, (seeds, of_arm) in drawn.items():
                    difference = None
                    if arm != plan.baseline and plan.baseline in drawn:
                        of_baseline = drawn[plan.baseline][1]
                        rows = min(len(of_arm), len(of_baseline))
                        difference = _estimate(of_arm[:rows] - of_baseline[:rows])
                    yield FinalSuccess(algo, env, arm, seeds, _estimate(of_arm), difference)

    def _successes(self, arm: str, algo: str, env: str | None) -> list[NDArray[np.float64]]:
        """Of every seed, for each environment; for all of them only where the baseline has each as well."""
        envs = self.sweep.plan.envs if env is None else (env,)
        if env is None and not all(
            Cell(each, algo, one) in self.sweep.runs
            for one in envs
            for each in (arm, self.sweep.plan.baseline)
        ):
            return []
        cells = [Cell(arm, algo, one) for one in envs if Cell(arm, algo, one) in self.sweep.runs]
        return [np.array([float(run.summary["success"]) for run in self.sweep.runs[cell]]) for cell in cells]

    def _speed_ups(self, algo: str) -> Iterator[SpeedUp]:
        plan = self.sweep.plan
        by_success = {env: self._in_env(algo, env, self.measure) for env in plan.envs}
        for env in plan.envs:
            yield from (row for row, _ in by_success[env])
        yield from self._over_environments(algo, by_success)
        for env in plan.envs:
            if "LavaGap" in env:
                yield from (row for row, _ in self._in_env(algo, env, Measure("return", PAPERS_RETURN)))

    def _in_env(self, algo: str, env: str, measure: Measure) -> list[tuple[SpeedUp, Resampled | None]]:
        """A row for each arm that has a finished run, with the logarithm of its ratio, resampled."""
        plan = self.sweep.plan
        times = {
            arm: self.sweep.times(cell, *measure)
            for arm in plan.arms
            if (cell := Cell(arm, algo, env)) in self.sweep.runs
        }
        medians = {arm: resampled_medians(each, self._resamples, self._rng) for arm, each in times.items()}
        found = []
        for arm, (frames_N, reached_N) in times.items():
            logs = None
            if arm != plan.baseline and plan.baseline in medians:
                logs = log_speed_up(medians[plan.baseline], medians[arm])
            ratio = None if logs is None else exponential(estimate(logs))
            reached, median = int(reached_N.sum()), estimate(medians[arm])
            found.append((SpeedUp(algo, env, measure, arm, len(frames_N), reached, median, ratio), logs))
        return found

    def _over_environments(
        self, algo: str, by_env: dict[str, list[tuple[SpeedUp, Resampled | None]]]
    ) -> Iterator[SpeedUp]:
        """The geometric mean; an environment where neither arm got there tells nothing, and is not in it."""
        for arm in self.sweep.plan.arms:
            rows = [(row, logs) for found in by_env.values() for row, logs in found if row.arm == arm]
            parts = {
                str(row.env): logs for row, logs in rows if logs and row.ratio and row.ratio.value.sign != "?"
            }
            if arm != self.sweep.plan.baseline and rows:
                seeds, reached = sum(row.seeds for row, _ in rows), sum(row.reached for row, _ in rows)
                ratio = exponential(estimate(mean_of(list(parts.values())))) if parts else None
                yield SpeedUp(algo, None, self.measure, arm, seeds, reached, None, ratio, tuple(parts))


def arms_that_differ_in(name: str, sweep: Sweep, algo: str, env: str) -> list[dict[Any, str]]:
    """Groups of taught arms that differ from one another in one setting alone: its values and their arms."""
    groups: dict[str, dict[Any, str]] = {}
    for arm in sweep.plan.arms:
        runs = sweep.runs.get(Cell(arm, algo, env), [])
        if runs and runs[0].identity is not None and name in runs[0].settings:
            rest = {key: value for key, value in comparable_settings(runs[0]).items() if key != name}
            groups.setdefault(repr(sorted(rest.items())), {}).setdefault(runs[0].settings[name], arm)
    return [dict(sorted(group.items())) for group in groups.values() if len(group) > 1]


def named_arms(runs: Sequence[FinishedRun]) -> list[str]:
    """Names of arms for runs that no plan names: alone or taught, and the settings in which such runs differ.

    Runs that differ in nothing but their seed, environment, algorithm or frames have the same name. Where
    presets differ, their names stand for the settings that follow from them.

    Returns:
        A name for each run, such as "alone", "taught", "taught, lambda 0.1".
    """
    told = [comparable_settings(run) for run in runs]
    bases = [ALONE if run.identity is None else "taught" for run in runs]
    differing: dict[str, dict[str, None]] = {base: {} for base in bases}
    for names in (
        ("preset",),
        sorted({name for settings in told for name in settings} - {"preset", "frames"}),
    ):
        groups: dict[Any, list[dict[str, Any]]] = {}
        for run, base, settings in zip(runs, bases, told, strict=True):
            preset = settings.get("preset") if names != ("preset",) else None
            groups.setdefault((base, run.cell.algo, run.cell.env, preset), []).append(settings)
        for (base, *_), group in groups.items():
            for name in names:
                if len({repr(settings.get(name)) for settings in group}) > 1:
                    differing[base][name] = None
    return [
        ", ".join([base, *(f"{name.replace('_', '-')} {settings.get(name)}" for name in differing[base])])
        for base, settings in zip(bases, told, strict=True)
    ]


def comparable_settings(run: FinishedRun) -> dict[str, Any]:
    """The settings that make one arm differ from another; the teacher by its identity."""
    told = {name: value for name, value in run.settings.items() if name not in _TELLS_NOTHING_APART}
    return {"teacher": run.identity or "none"} | told


def _shared_frames(runs: list[FinishedRun]) -> NDArray[np.int64]:
    """Frames of all seeds' evaluations, as far as every seed was evaluated; T may be 0."""
    if not all(len(run.frames_E) for run in runs):
        return np.array([], np.int64)
    frames_T: NDArray[np.int64] = np.unique(np.concatenate([run.frames_E for run in runs]))
    first, last = max(run.frames_E[0] for run in runs), min(run.frames_E[-1] for run in runs)
    shared_T: NDArray[np.int64] = frames_T[(frames_T >= first) & (frames_T <= last)]
    return shared_T


def _estimate(drawn_R: NDArray[np.float64]) -> Estimate:
    if len(drawn_R) == 1:
        return Estimate(Bound(float(drawn_R[0])), None, None)
    low, high = interval_of(drawn_R)
    return Estimate(Bound(float(drawn_R[0])), Bound(float(low)), Bound(float(high)))


def _questions(cell: Cell, runs: list[FinishedRun]) -> Questions:
    def mean(name: str) -> float:
        return float(np.mean([float(run.summary.get(name) or 0) for run in runs]))

    taught = [run.frames * int(run.settings.get("epochs", 1)) for run in runs if run.identity is not None]
    frames, seconds = mean("frames"), mean("seconds")
    return Questions(
        algo=cell.algo,
        env=cell.env,
        arm=cell.arm,
        seeds=len(runs),
        frames=frames,
        states=mean("states"),
        questions=mean("questions"),
        store_hits=mean("store_hits"),
        failed=mean("failed"),
        papers_count=float(np.mean(taught)) if taught else None,
        seconds=seconds,
        frames_per_second=frames / seconds if seconds else 0.0,
    )
