"""`student sweep`: trains all runs of a plan, many at a time, and resumes an interrupted sweep."""

import json
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from student.experiments.plans import (
    GIVEN,
    SWEEP_FILE,
    BadPlan,
    PlannedRun,
    SweepPlan,
    differences,
    ignore_variables,
    load_plan,
    read_plan,
    store_plan,
)
from student.experiments.progress import SweepProgress
from student.experiments.settings import SweepSettings
from student.experiments.workers import Job, LocalWorkers, Workers, evaluate_teacher, locked, train_run
from teacher_api.client import connect
from teacher_api.command_line import INTERRUPTED, CannotStart, CommandFailed, fail
from teacher_api.files import write_json, writing
from teacher_api.processes import TeacherDidNotStart, served_teacher
from teacher_api.terminal import say

_ATTEMPTS = 2
"""Attempts at a job whose worker crashes."""
_POLL_S = 0.5
"""Seconds between two checks for signals and progress."""


class SweepInterrupted(CommandFailed):
    """A signal interrupted the sweep; the message says how many runs are done and how to resume."""

    exit_code = INTERRUPTED


@dataclass(frozen=True)
class _SweepTeacher:
    """A teacher that the sweep's runs can reach."""

    name: str
    address: str
    key_file: Path | None
    identity: str


def main(settings: SweepSettings) -> int:
    """Runs the command; returns 0, or 1 if runs failed."""
    ignore_variables()
    plan = read_plan(settings.plan)
    for note in plan.notes():
        say(f"note: {note}")
    failed = sweep(settings, plan)
    for name, reason in failed.items():
        fail(f"{name}: {reason}", 1)
    return 1 if failed else 0


def sweep(settings: SweepSettings, plan: SweepPlan) -> dict[str, str]:
    """Runs all jobs of a plan that are not done yet.

    Returns:
        The failed jobs' names and reasons. The next sweep in the folder tries them again.

    Raises:
        CannotStart: the folder, a teacher or the cluster cannot be used for this plan.
        TeacherError: a teacher does not answer.
        SweepInterrupted: SIGINT or SIGTERM arrived; running jobs have saved their state.
    """
    _check_address(settings, plan)
    folder = settings.out.resolve()
    with writing("out", settings.out):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder), ExitStack() as stack:
        _check_folder(folder, plan)
        left = [run for run in plan.runs() if not (folder / "runs" / run.name / "summary.json").exists()]
        workers = _workers(settings, plan)
        stack.callback(workers.close)
        arms = dict.fromkeys([*(run.arm for run in left), *_not_evaluated(plan, folder).values()])
        teachers = _start_teachers(settings, plan, arms, folder, stack)
        store_plan(folder, plan)
        frames = {run: plan.settings_of(run.arm, run.algo, run.env).frames for run in plan.runs()}
        stopping = stack.enter_context(_signals())
        progress = SweepProgress(folder / "runs", frames, settings.progress)
        stack.callback(progress.close)
        scheduler = _Scheduler(folder, workers, stopping, progress)
        scheduler.run(_teacher_jobs(settings, plan, teachers, folder))
        scheduler.run(_training_job(settings, plan, run, teachers, folder) for run in left)
        if stopping.is_set() and progress.count < len(frames):
            raise SweepInterrupted(
                f"interrupted; {progress.count} of {len(frames)} runs are done: run it again to resume"
            )
    return scheduler.failed


class _Scheduler:
    """Gives jobs to workers, tries crashed jobs again, and writes failed.json."""

    def __init__(
        self, folder: Path, workers: Workers, stopping: threading.Event, progress: SweepProgress
    ) -> None:
        self._workers, self._stopping, self._progress = workers, stopping, progress
        self._file = folder / "failed.json"
        self._file.unlink(missing_ok=True)
        self.failed: dict[str, str] = {}

    def run(self, jobs: Iterable[Job]) -> None:
        """Runs jobs until all have ended; after a signal, interrupts running jobs and starts no more."""
        waiting, running = deque(jobs), 0
        attempts: Counter[str] = Counter()
        interrupted = False
        while running or (waiting and not self._stopping.is_set()):
            while waiting and running < self._workers.capacity and not self._stopping.is_set():
                job = waiting.popleft()
                attempts[job.name] += 1
                self._workers.start(job)
                self._progress.started(job.name)
                running += 1
            for job, outcome in self._workers.ended(_POLL_S):
                running -= 1
                if outcome.status == "done":
                    self._progress.done(job.name)
                elif outcome.status == "failed" or self._is_given_up(attempts[job.name]):
                    self._fail(job.name, outcome.reason)
                else:
                    self._progress.interrupted(job.name)
                    waiting.appendleft(job)
            if self._stopping.is_set() and not interrupted:
                self._workers.interrupt()
                interrupted = True
            self._progress.refresh()

    def _is_given_up(self, attempts: int) -> bool:
        return attempts >= _ATTEMPTS and not self._stopping.is_set()

    def _fail(self, name: str, reason: str) -> None:
        self._progress.failed(name, reason)
        self.failed[name] = reason
        write_json(self._file, self.failed)


def _check_address(settings: SweepSettings, plan: SweepPlan) -> None:
    given = [name for name, arm in plan.arms.items() if arm.teacher == GIVEN]
    if given and settings.teacher is None:
        raise BadPlan(f'arms.{given[0]}.teacher is "{GIVEN}": give its address as `teacher`')
    if settings.teacher is not None and not given:
        raise BadPlan(f'`teacher`: no arm of {settings.plan} has teacher = "{GIVEN}"')


def _check_folder(folder: Path, plan: SweepPlan) -> None:
    """Refuses a folder with other runs, or with a sweep whose plan is not contained in this plan."""
    if not (folder / SWEEP_FILE).exists():
        if (folder / "runs").exists():
            raise CannotStart(f"{folder}/runs exists but {folder} holds no sweep: choose another `out`")
        return
    found = differences(load_plan(folder), plan)
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise CannotStart(
            f"{folder} holds a sweep of another plan: {'; '.join(found[:3])}{more}. Choose another `out`, or"
            " restore the plan; arms, envs, algos and seeds may be added"
        )


def _workers(settings: SweepSettings, plan: SweepPlan) -> Workers:
    if settings.ray is None:
        return LocalWorkers(settings.jobs or os.cpu_count() or 1)
    from student.experiments.ray_workers import RayWorkers  # noqa: PLC0415

    workers = RayWorkers(settings.ray, settings.threads, settings.jobs)
    embedded = [name for name, arm in plan.arms.items() if isinstance(arm.teacher, dict)]
    if embedded and not workers.is_this_machine:
        workers.close()
        raise CannotStart(
            f"arms.{embedded[0]}.teacher: the cluster's other machines cannot reach a teacher that the sweep"
            " starts on this machine: start the teacher with `teacher serve --host ADDRESS`, write"
            f' teacher = "{GIVEN}" and give its address as `teacher`'
        )
    return workers


def _start_teachers(
    settings: SweepSettings, plan: SweepPlan, arms: Iterable[str], folder: Path, stack: ExitStack
) -> dict[str, _SweepTeacher]:
    """Returns the teachers of the arms, by name; embedded teachers are served until the stack is closed."""
    teachers: dict[str, _SweepTeacher] = {}
    for arm in arms:
        name, flags = plan.arms[arm].teacher_name, plan.arms[arm].teacher
        if name is None or name in teachers:
            continue
        (folder / "teachers" / name).mkdir(parents=True, exist_ok=True)
        if isinstance(flags, dict):
            files = [folder / "teachers" / f"{name}{ending}" for ending in (".sqlite3", ".log")]
            try:
                address = stack.enter_context(served_teacher(files[0], flags, files[1]))
            except TeacherDidNotStart as error:
                raise CannotStart(f"arms.{arm}.teacher: {error}") from error
            key_file = None
        else:
            assert settings.teacher is not None
            address, key_file = settings.teacher, settings.teacher_key_file
        with connect(address, key_file=key_file, wait_s=settings.teacher_wait_s) as client:
            identity = client.teacher().identity
        teachers[name] = _SweepTeacher(name, address, key_file and key_file.absolute(), identity)
        _check_identity(teachers[name], folder)
    return teachers


def _check_identity(teacher: _SweepTeacher, folder: Path) -> None:
    for evaluation in (folder / "teachers" / teacher.name).glob("*.json"):
        before = json.loads(evaluation.read_text(encoding="utf-8"))["teacher"]
        if before != teacher.identity:
            raise CannotStart(
                f"the sweep in {folder} learns from the teacher {before}, but {teacher.name} at"
                f" {teacher.address} is now {teacher.identity}: restore the first teacher, or choose"
                " another `out`"
            )


def _not_evaluated(plan: SweepPlan, folder: Path) -> dict[tuple[str, str], str]:
    """Returns the teachers' names and environments that lack an evaluation, each with an arm."""
    found: dict[tuple[str, str], str] = {}
    for name, arm in plan.arms.items():
        teacher = arm.teacher_name
        if teacher is None or not plan.teacher_episodes:
            continue
        for env in plan.envs_of(name):
            if not (folder / "teachers" / teacher / f"{env}.json").exists():
                found.setdefault((teacher, env), name)
    return found


def _teacher_jobs(
    settings: SweepSettings, plan: SweepPlan, teachers: Mapping[str, _SweepTeacher], folder: Path
) -> Iterator[Job]:
    """Yields the evaluations of teachers that are not done yet."""
    for (name, env), arm in _not_evaluated(plan, folder).items():
        teacher = teachers[name]
        arguments = {
            "address": teacher.address,
            "key_file": teacher.key_file,
            "identity": teacher.identity,
            "env": env,
            "task": plan.settings_of(arm, plan.algos[0], env).task,
            "episodes": plan.teacher_episodes,
            "wait_s": settings.teacher_wait_s,
        }
        yield Job(f"teachers/{name}/{env}", evaluate_teacher, folder / "teachers" / name, arguments, folder)


def _training_job(
    settings: SweepSettings,
    plan: SweepPlan,
    run: PlannedRun,
    teachers: dict[str, _SweepTeacher],
    folder: Path,
) -> Job:
    name = plan.arms[run.arm].teacher_name
    teacher = teachers[name] if name else None
    own = {
        "seed": run.seed,
        "teacher": teacher.address if teacher else "none",
        "teacher_key_file": teacher.key_file if teacher else None,
        "threads": settings.threads,
        "progress": False,
    }
    common = plan.settings_of(run.arm, run.algo, run.env).in_force()
    return Job(run.name, train_run, folder / "runs" / run.name, common | own, folder)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Yields an event that SIGINT and SIGTERM set; a second SIGINT ends the sweep at once."""
    stopping = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stopping.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
