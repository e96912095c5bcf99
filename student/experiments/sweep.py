"""`student sweep`: all runs of a plan, many at once, resumed where an earlier sweep of it stopped."""

import json
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from student.experiments.plans import (
    GIVEN,
    SWEEP_FILE,
    BadPlan,
    Plan,
    PlannedRun,
    differences,
    ignore_variables,
    read_plan,
    stored_plan,
)
from student.experiments.progress import Progress
from student.experiments.settings import SweepSettings
from student.experiments.workers import LocalWorkers, Task, Workers, locked, score_teacher, train_run
from student.runs.folder import write_json
from teacher_api.client import connect
from teacher_api.command_line import INTERRUPTED, CannotStart, CommandFailed, fail
from teacher_api.processes import TeacherDidNotStart, served_teacher
from teacher_api.terminal import say

_ATTEMPTS = 2
"""How often a task may cost its worker's life before it is given up."""
_LOOK_S = 0.5
"""Between two looks at signals and progress."""


class Interrupted(CommandFailed):
    """A signal asked the sweep to stop; the message says how far it came and how to go on."""

    exit_code = INTERRUPTED


@dataclass(frozen=True)
class _Teacher:
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
    for name, why in failed.items():
        fail(f"{name}: {why}", 1)
    return 1 if failed else 0


def sweep(settings: SweepSettings, plan: Plan) -> dict[str, str]:
    """Does all that is left to do in the sweep's folder.

    Returns:
        What failed, and why, by the runs' names. The next sweep of the folder tries it again.

    Raises:
        CannotStart: the folder, a teacher or the cluster cannot be used for this plan.
        TeacherError: a teacher does not answer.
        Interrupted: by SIGINT or SIGTERM; what was under way is saved.
    """
    _check_address(settings, plan)
    folder = settings.out.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"cannot write to {settings.out}: {error.strerror}") from error
    with locked(folder), ExitStack() as stack:
        _check_folder(folder, plan)
        left = [run for run in plan.runs() if not (folder / "runs" / run.name / "summary.json").exists()]
        workers = _workers(settings, plan)
        stack.callback(workers.close)
        arms = list(dict.fromkeys(run.arm for run in left))
        teachers = _start_teachers(settings, plan, arms, folder, stack)
        write_json(folder / SWEEP_FILE, plan.as_json())
        frames = {run: plan.settings_of(run.arm, run.algo, run.env).frames for run in plan.runs()}
        stopping = stack.enter_context(_signals())
        progress = Progress(folder / "runs", frames, settings.progress)
        stack.callback(progress.close)
        todo = _Todo(folder, workers, stopping, progress)
        todo.work_off(_scores(settings, plan, teachers.values(), folder))
        todo.work_off(_run_task(settings, plan, run, teachers, folder) for run in left)
        if stopping.is_set() and progress.count < len(frames):
            raise Interrupted(
                f"interrupted; {progress.count} of {len(frames)} runs are done: the same command goes on"
            )
    return todo.failed


class _Todo:
    """Has workers do tasks, and keeps failed.json."""

    def __init__(self, folder: Path, workers: Workers, stopping: threading.Event, progress: Progress) -> None:
        self._workers, self._stopping, self._progress = workers, stopping, progress
        self._file = folder / "failed.json"
        self._file.unlink(missing_ok=True)
        self.failed: dict[str, str] = {}

    def work_off(self, tasks: Iterable[Task]) -> None:
        """Has all of them done, unless told to stop: then those under way are asked to."""
        waiting, under_way = deque(tasks), 0
        attempts: Counter[str] = Counter()
        interrupted = False
        while under_way or (waiting and not self._stopping.is_set()):
            while waiting and under_way < self._workers.capacity and not self._stopping.is_set():
                task = waiting.popleft()
                attempts[task.name] += 1
                self._workers.start(task)
                self._progress.started(task.name)
                under_way += 1
            for task, outcome in self._workers.ended(_LOOK_S):
                under_way -= 1
                if outcome.how == "done":
                    self._progress.done(task.name)
                elif outcome.how == "failed" or self._is_given_up(attempts[task.name]):
                    self._fail(task.name, outcome.why)
                else:
                    self._progress.stopped(task.name)
                    waiting.appendleft(task)
            if self._stopping.is_set() and not interrupted:
                self._workers.interrupt()
                interrupted = True
            self._progress.refresh()

    def _is_given_up(self, attempts: int) -> bool:
        return attempts >= _ATTEMPTS and not self._stopping.is_set()

    def _fail(self, name: str, why: str) -> None:
        self._progress.failed(name, why)
        self.failed[name] = why
        write_json(self._file, self.failed)


def _check_address(settings: SweepSettings, plan: Plan) -> None:
    given = [name for name, arm in plan.arms.items() if arm.teacher == GIVEN]
    if given and settings.teacher is None:
        raise BadPlan(f'arms.{given[0]}.teacher is "{GIVEN}": give its address with --teacher')
    if settings.teacher is not None and not given:
        raise BadPlan(f'--teacher: no arm of {settings.plan} has teacher = "{GIVEN}"')


def _check_folder(folder: Path, plan: Plan) -> None:
    """What is there has to be this plan's, or less."""
    stored = folder / SWEEP_FILE
    if not stored.exists():
        if (folder / "runs").exists():
            raise CannotStart(f"{folder}/runs is there already and is no sweep's: choose another --out")
        return
    found = differences(stored_plan(stored), plan)
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise CannotStart(
            f"{folder} holds a sweep of another plan: {'; '.join(found[:3])}{more}. Choose another --out, or"
            " bring the plan back; arms, envs, algos and seeds may be added"
        )


def _workers(settings: SweepSettings, plan: Plan) -> Workers:
    if settings.ray is None:
        return LocalWorkers(settings.jobs or os.cpu_count() or 1)
    from student.experiments.ray_workers import RayWorkers  # noqa: PLC0415

    workers = RayWorkers(settings.ray, settings.threads, settings.jobs)
    embedded = [name for name, arm in plan.arms.items() if isinstance(arm.teacher, dict)]
    if embedded and not workers.is_this_machine:
        workers.close()
        raise CannotStart(
            f"arms.{embedded[0]}.teacher: the cluster's other machines cannot reach a teacher that the sweep"
            f' starts here; start one by `teacher serve --host ADDRESS`, write teacher = "{GIVEN}" and'
            " give its address with --teacher"
        )
    return workers


def _start_teachers(
    settings: SweepSettings, plan: Plan, arms: Iterable[str], folder: Path, stack: ExitStack
) -> dict[str, _Teacher]:
    """The teachers of these arms, by their names; they are served until the stack is closed."""
    teachers: dict[str, _Teacher] = {}
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
        teachers[name] = _Teacher(name, address, key_file and key_file.absolute(), identity)
        _check_identity(teachers[name], folder)
    return teachers


def _check_identity(teacher: _Teacher, folder: Path) -> None:
    for played in (folder / "teachers" / teacher.name).glob("*.json"):
        before = json.loads(played.read_text(encoding="utf-8"))["teacher"]
        if before != teacher.identity:
            raise CannotStart(
                f"the sweep in {folder} learns from the teacher {before}, and {teacher.name} at"
                f" {teacher.address} is now {teacher.identity}: bring the first one back, or choose"
                " another --out"
            )


def _scores(
    settings: SweepSettings, plan: Plan, teachers: Iterable[_Teacher], folder: Path
) -> Iterator[Task]:
    """How each teacher plays by itself, where that is not known yet."""
    for teacher in teachers:
        of_its_own = folder / "teachers" / teacher.name
        arm = next(name for name, arm in plan.arms.items() if arm.teacher_name == teacher.name)
        for env in plan.envs:
            if not (of_its_own / f"{env}.json").exists():
                what = {
                    "address": teacher.address,
                    "key_file": teacher.key_file,
                    "identity": teacher.identity,
                    "env": env,
                    "task": plan.settings_of(arm, plan.algos[0], env).task,
                    "wait_s": settings.teacher_wait_s,
                }
                yield Task(f"teachers/{teacher.name}/{env}", score_teacher, of_its_own, what, folder)


def _run_task(
    settings: SweepSettings, plan: Plan, run: PlannedRun, teachers: dict[str, _Teacher], folder: Path
) -> Task:
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
    return Task(run.name, train_run, folder / "runs" / run.name, common | own, folder)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """Set by SIGINT and SIGTERM; a second SIGINT ends the sweep at once."""
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
