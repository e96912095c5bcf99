"""The comparison of arms with the baseline: samples to threshold, success, questions, curves, ablations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from student.experiments.results import ALONE, Cell, FinishedRun, Metric, Results
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

_POINTS_AT_ONCE = 64
"""Points of a curve that are resampled together; limits the memory."""
_NOT_COMPARED = {
    *("env", "algo", "seed", "out", "resume", "progress", "threads", "checkpoint_every"),
    *("teacher", "teacher_key_file", "teacher_wait_s", "allow_teacher_change"),
}
"""Settings that do not distinguish arms; a teacher is compared by its identity."""


HARM = 0.05
"""The loss of success that the table of harm marks where the interval does not exclude it."""


class PaperResult(NamedTuple):
    """The paper's result for an algorithm: speed-ups, and samples to `PAPER_RETURN` in LavaGap."""

    mean_speed_up: float
    lava_gap_speed_up: float
    lava_gap_samples: int


PAPER_RETURN = 0.91
"""The paper's threshold: a mean return in LavaGap."""
PAPER_TASKS = {"lava_gap", "dynamic_obstacles", "fetch", "go_to_door"}
PAPER_RESULTS = {"ppo": PaperResult(2.56, 2.11, 5260), "a2c": PaperResult(2.86, 2.18, 9180)}


class Criterion(NamedTuple):
    """A metric of the evaluations and the threshold for it."""

    metric: Metric
    threshold: float

    def __str__(self) -> str:
        return f"{self.metric} ≥ {self.threshold:g}"


@dataclass(frozen=True)
class SpeedUp:
    """An arm's samples to threshold and its speed-up over the baseline.

    Attributes:
        env: None for the geometric mean over environments.
        median: the median samples to threshold, in frames.
        ratio: the speed-up, the baseline's median over the arm's.
        parts: the environments in the geometric mean: those with a known speed-up.
    """

    algo: str
    env: str | None
    criterion: Criterion
    arm: str
    seeds: int
    reached: int
    median: Estimate | None
    ratio: Estimate | None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class FinalSuccess:
    """An arm's mean success at the end of its runs, and its difference to the baseline's.

    Attributes:
        env: None for all environments that the arm is for; the difference is then that on these.
        lowest: the lowest success that a seed fell to after it had held the threshold; None if none held it.
    """

    algo: str
    env: str | None
    arm: str
    seeds: int
    success: Estimate
    difference: Estimate | None
    lowest: float | None


@dataclass(frozen=True)
class Harm:
    """What learning from a teacher costs: an arm's success at the end minus the baseline's.

    Attributes:
        arm: an arm with a teacher; None for the mean over these arms.
        env: None for the mean over environments. Each cell counts the same in a mean.
        cells: the cells that the difference is the mean of.
    """

    algo: str
    arm: str | None
    env: str | None
    cells: int
    difference: Estimate

    @property
    def harmful(self) -> bool:
        """Whether the interval does not exclude a loss of more than `HARM`."""
        return (self.difference.low or self.difference.value).value < -HARM


@dataclass(frozen=True)
class QuestionCounts:
    """The questions and the time of an arm's runs, as means over seeds.

    Attributes:
        papers_count: the questions of the paper's procedure, which asks about every sample of every epoch.
    """

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
    """Success at T evaluations: the interquartile mean over seeds and its 95 % confidence band."""

    frames_T: NDArray[np.int64]
    success_T: NDArray[np.float64]
    low_T: NDArray[np.float64]
    high_T: NDArray[np.float64]


class ArmComparison:
    """All resampled statistics, computed once and in a fixed order: the same seed gives the same numbers."""

    def __init__(self, results: Results, threshold: float, resamples: int, seed: int) -> None:
        self.results, self.design = results, results.design
        self.criterion = Criterion("success", threshold)
        self._resamples, self._seed = resamples, seed
        self._rng = np.random.default_rng(seed)
        self.curves = {cell: curve for cell in results.cells() if (curve := self._curve(results.runs[cell]))}
        self._differences = {
            cell: drawn
            for cell in results.cells()
            if cell.arm != self.design.baseline and (drawn := self._resampled_difference(cell)) is not None
        }
        """The resampled difference to the baseline in each cell of the other arms, [1 + resamples]."""
        self.finals = list(self._finals())
        self.harms = [row for algo in self.design.algos for row in self._harms(algo)]
        self.speed_ups = [row for algo in self.design.algos for row in self._speed_ups(algo)]
        self.questions = [_question_counts(cell, results.runs[cell]) for cell in results.cells()]

    def speed_up(self, cell: Cell) -> SpeedUp:
        """Returns a cell's row for the threshold of success."""
        return next(
            row
            for row in self.speed_ups
            if (row.arm, row.algo, row.env) == cell and row.criterion == self.criterion
        )

    def final(self, cell: Cell) -> FinalSuccess:
        """Returns a cell's row for success at the end."""
        return next(row for row in self.finals if (row.arm, row.algo, row.env) == cell)

    def _curve(self, runs: list[FinishedRun]) -> Curve | None:
        frames_T = _shared_frames(runs)
        if not len(frames_T):
            return None
        success_NT = np.array([np.interp(frames_T, run.frames_E, run.success_E) for run in runs])
        blocks = np.array_split(
            success_NT, np.arange(_POINTS_AT_ONCE, len(frames_T), _POINTS_AT_ONCE), axis=1
        )
        drawn_RT = np.concatenate([self._resampled([block], interquartile_mean) for block in blocks], axis=1)
        low_T, high_T = interval_of(drawn_RT) if len(drawn_RT) > 1 else (drawn_RT[0], drawn_RT[0])
        return Curve(frames_T, drawn_RT[0], low_T, high_T)

    def _resampled(self, strata: list[NDArray[np.float64]], statistic: Any) -> NDArray[np.float64]:
        return stratified(strata, statistic, self._resamples, self._rng)

    def _finals(self) -> Iterator[FinalSuccess]:
        design = self.design
        for algo in design.algos:
            for env in (*design.envs, None):
                for arm in design.arms:
                    envs = design.envs_of(arm) if env is None else (env,)
                    strata = self._successes(arm, algo, envs)
                    if not strata or (env is None and not self._successes(design.baseline, algo, envs)):
                        continue
                    success = _estimate(self._resampled(strata, np.mean))
                    seeds, difference = sum(map(len, strata)), self._difference(arm, algo, envs)
                    lowest = self._lowest(arm, algo, envs)
                    yield FinalSuccess(algo, env, arm, seeds, success, difference, lowest)

    def _difference(self, arm: str, algo: str, envs: tuple[str, ...]) -> Estimate | None:
        """Returns the difference to the baseline's success, as the mean over environments."""
        cells = [Cell(arm, algo, env) for env in envs]
        parts = [self._differences[cell] for cell in cells if cell in self._differences]
        return _mean_estimate(parts) if len(parts) == len(cells) else None

    def _resampled_difference(self, cell: Cell) -> NDArray[np.float64] | None:
        """Returns the mean difference to the baseline, seed by seed, of the seeds that both have.

        A seed begins with the same network and meets the same episodes in all arms. The arms of an
        environment get the same resamples of their seeds.
        """
        arm, baseline = (
            {run.seed: float(run.summary["success"]) for run in self.results.runs.get(each, [])}
            for each in (cell, cell._replace(arm=self.design.baseline))
        )
        if not (seeds := sorted(arm.keys() & baseline.keys())):
            return None
        differences_N = np.array([arm[seed] - baseline[seed] for seed in seeds])
        rng = np.random.default_rng([self._seed, self.design.envs.index(cell.env)])
        return stratified([differences_N], np.mean, self._resamples, rng)

    def _lowest(self, arm: str, algo: str, envs: tuple[str, ...]) -> float | None:
        """Returns the lowest success after the threshold was held, of all seeds in these environments."""
        runs = [run for env in envs for run in self.results.runs[Cell(arm, algo, env)]]
        found = [run.lowest_after(self.criterion.threshold) for run in runs]
        return min((lowest for lowest in found if lowest is not None), default=None)

    def _harms(self, algo: str) -> Iterator[Harm]:
        """Yields the cells of the arms with a teacher, row by row, then the means over the arms."""
        found = {
            (cell.arm, cell.env): drawn
            for cell, drawn in self._differences.items()
            if cell.algo == algo and any(run.identity is not None for run in self.results.runs[cell])
        }
        arms = [arm for arm in self.design.arms if any(arm == each for each, _ in found)]
        for arm in (*arms, None):
            for env in (*self.design.envs, None):
                parts = [
                    drawn
                    for (of_arm, of_env), drawn in found.items()
                    if arm in (None, of_arm) and env in (None, of_env)
                ]
                if parts:
                    yield Harm(algo, arm, env, len(parts), _mean_estimate(parts))

    def _successes(self, arm: str, algo: str, envs: tuple[str, ...]) -> list[NDArray[np.float64]]:
        """Returns each seed's success at the end, an array per environment; nothing if one has no runs."""
        cells = [Cell(arm, algo, env) for env in envs]
        if not all(cell in self.results.runs for cell in cells):
            return []
        return [
            np.array([float(run.summary["success"]) for run in self.results.runs[cell]]) for cell in cells
        ]

    def _speed_ups(self, algo: str) -> Iterator[SpeedUp]:
        design = self.design
        by_success = {env: self._in_env(algo, env, self.criterion) for env in design.envs}
        for env in design.envs:
            yield from (row for row, _ in by_success[env])
        yield from self._over_environments(algo, by_success)
        for env in design.envs:
            if "LavaGap" in env:
                yield from (row for row, _ in self._in_env(algo, env, Criterion("return", PAPER_RETURN)))

    def _in_env(self, algo: str, env: str, criterion: Criterion) -> list[tuple[SpeedUp, Resampled | None]]:
        """Returns a row for each arm with a finished run, and the resampled logarithm of its speed-up."""
        design = self.design
        times = {
            arm: self.results.times(cell, *criterion)
            for arm in design.arms
            if (cell := Cell(arm, algo, env)) in self.results.runs
        }
        medians = {arm: resampled_medians(each, self._resamples, self._rng) for arm, each in times.items()}
        found = []
        for arm, (frames_N, reached_N) in times.items():
            logs = None
            if arm != design.baseline and design.baseline in medians:
                logs = log_speed_up(medians[design.baseline], medians[arm])
            ratio = None if logs is None else exponential(estimate(logs))
            reached, median = int(reached_N.sum()), estimate(medians[arm])
            found.append((SpeedUp(algo, env, criterion, arm, len(frames_N), reached, median, ratio), logs))
        return found

    def _over_environments(
        self, algo: str, by_env: dict[str, list[tuple[SpeedUp, Resampled | None]]]
    ) -> Iterator[SpeedUp]:
        """Yields geometric means, without environments where neither median is known."""
        for arm in self.design.arms:
            rows = [(row, logs) for found in by_env.values() for row, logs in found if row.arm == arm]
            parts = {
                str(row.env): logs for row, logs in rows if logs and row.ratio and row.ratio.value.sign != "?"
            }
            if arm != self.design.baseline and rows:
                seeds, reached = sum(row.seeds for row, _ in rows), sum(row.reached for row, _ in rows)
                ratio = exponential(estimate(mean_of(list(parts.values())))) if parts else None
                yield SpeedUp(algo, None, self.criterion, arm, seeds, reached, None, ratio, tuple(parts))


def arms_that_differ_in(name: str, results: Results, algo: str, env: str) -> list[dict[Any, str]]:
    """Returns groups of arms with a teacher that differ in one setting alone: value of the setting -> arm."""
    groups: dict[str, dict[Any, str]] = {}
    for arm in results.design.arms:
        runs = results.runs.get(Cell(arm, algo, env), [])
        if runs and runs[0].identity is not None and name in runs[0].settings:
            rest = {key: value for key, value in comparable_settings(runs[0]).items() if key != name}
            groups.setdefault(repr(sorted(rest.items())), {}).setdefault(runs[0].settings[name], arm)
    return [dict(sorted(group.items())) for group in groups.values() if len(group) > 1]


def name_arms(runs: Sequence[FinishedRun]) -> list[str]:
    """Names the arms of runs without a plan, by teacher and by the settings that differ between runs.

    Runs that differ only in seed, environment, algorithm or frames get the same name. Where presets differ,
    the name has the preset instead of the settings that follow from it.

    Returns:
        A name for each run, such as "alone", "taught", "taught, lambda 0.1".
    """
    compared = [comparable_settings(run) for run in runs]
    bases = [ALONE if run.identity is None else "taught" for run in runs]
    differing: dict[str, dict[str, None]] = {base: {} for base in bases}
    for names in (
        ("preset",),
        sorted({name for settings in compared for name in settings} - {"preset", "frames"}),
    ):
        groups: dict[Any, list[dict[str, Any]]] = {}
        for run, base, settings in zip(runs, bases, compared, strict=True):
            preset = settings.get("preset") if names != ("preset",) else None
            groups.setdefault((base, run.cell.algo, run.cell.env, preset), []).append(settings)
        for (base, *_), group in groups.items():
            for name in names:
                if len({repr(settings.get(name)) for settings in group}) > 1:
                    differing[base][name] = None
    return [
        ", ".join([base, *(f"{name.replace('_', '-')} {settings.get(name)}" for name in differing[base])])
        for base, settings in zip(bases, compared, strict=True)
    ]


def comparable_settings(run: FinishedRun) -> dict[str, Any]:
    """Returns the settings that distinguish arms, with the teacher's identity as `teacher`."""
    compared = {name: value for name, value in run.settings.items() if name not in _NOT_COMPARED}
    return {"teacher": run.identity or "none"} | compared


def _shared_frames(runs: list[FinishedRun]) -> NDArray[np.int64]:
    """Returns the frames of all seeds' evaluations, within the range that every seed covers; T may be 0."""
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


def _mean_estimate(parts: Sequence[NDArray[np.float64]]) -> Estimate:
    """Returns the estimate of a mean of resampled statistics."""
    rows = min(map(len, parts))
    return _estimate(np.mean([part[:rows] for part in parts], axis=0))


def _question_counts(cell: Cell, runs: list[FinishedRun]) -> QuestionCounts:
    def mean(name: str) -> float:
        return float(np.mean([float(run.summary.get(name) or 0) for run in runs]))

    taught = [run.frames * int(run.settings.get("epochs", 1)) for run in runs if run.identity is not None]
    frames, seconds = mean("frames"), mean("seconds")
    return QuestionCounts(
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
