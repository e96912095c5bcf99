"""The jobs of a sweep, and the worker processes of this machine that run them."""

import fcntl
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from tqdm import tqdm

from gridworld.environments import in_a_line
from student.experiments.plans import ignore_variables
from student.runs.evaluate import score
from student.runs.settings import EvaluateSettings
from student.settings import TrainSettings
from student.trainer import Stopped, train
from teacher_api.client import TeacherError
from teacher_api.command_line import INTERRUPTED, CannotStart
from teacher_api.files import write_json
from teacher_api.processes import end_with_parent
from teacher_api.terminal import speak_as

_ORPHANS_S = 10
"""Seconds to wait for the workers of a killed sweep to end."""


@dataclass(frozen=True)
class Job:
    """A unit of work for a worker: the call `run(folder, settings)`.

    Attributes:
        sweep: the sweep's folder.
    """

    name: str
    run: Callable[[Path, dict[str, Any]], None]
    folder: Path
    settings: dict[str, Any]
    sweep: Path


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended.

    Attributes:
        status: "failed" if the job raised an error, "interrupted" if it stopped on request, "crashed" if its
            process ended.
    """

    status: Literal["done", "failed", "interrupted", "crashed"]
    reason: str = ""


class Workers(Protocol):
    """Runs jobs: in local processes, or on a cluster."""

    @property
    def capacity(self) -> int:
        """The number of jobs that can run at a time."""
        ...

    def start(self, job: Job) -> None:
        """Starts a job; call this only while fewer than `capacity` jobs are running."""
        ...

    def ended(self, timeout_s: float) -> list[tuple[Job, JobOutcome]]:
        """Returns the jobs that ended since the last call; waits until one ends or the time-out passes."""
        ...

    def interrupt(self) -> None:
        """Asks all running jobs to stop at a point from which they can be resumed."""
        ...

    def close(self) -> None:
        """Ends the workers and the jobs that they are running."""
        ...


def train_run(folder: Path, settings: dict[str, Any]) -> None:
    """Trains a run to its end, resuming it from its last checkpoint if there is one.

    Args:
        folder: the run's folder.
        settings: the input of TrainSettings, without `out`.
    """
    train(TrainSettings.model_validate({**settings, "out": folder, "go_on": True}))


def evaluate_teacher(folder: Path, settings: dict[str, Any]) -> None:
    """Evaluates a teacher as a policy; writes its identity and the report of `student evaluate` to ENV.json.

    Args:
        folder: the teacher's folder.
        settings: address, key_file, env, task, identity, episodes, wait_s.
    """
    report = score(
        EvaluateSettings(
            policy=settings["address"],
            env=settings["env"],
            task=settings["task"],
            episodes=settings["episodes"],
            teacher_key_file=settings["key_file"],
            teacher_wait_s=settings["wait_s"],
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / f"{settings['env']}.json",
        {"env": settings["env"], "teacher": settings["identity"], **report},
    )


def run_job(job: Job) -> JobOutcome:
    """Runs a job in this process; an error becomes the job's outcome.

    The traceback of an unexpected error is written to error.txt in the job's folder.
    """
    ignore_variables()
    speak_as(f"student sweep: {job.name}")
    try:
        with _shared_lock(job.sweep):
            job.run(job.folder, job.settings)
    except Stopped as error:
        return JobOutcome("interrupted" if error.exit_code == INTERRUPTED else "failed", in_a_line(error))
    except (CannotStart, TeacherError) as error:
        return JobOutcome("failed", in_a_line(error))
    except Exception as error:
        with suppress(OSError):
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return JobOutcome("failed", f"{type(error).__name__}: {in_a_line(error)}")
    (job.folder / "error.txt").unlink(missing_ok=True)
    return JobOutcome("done")


@contextmanager
def locked(sweep: Path) -> Iterator[None]:
    """Locks a sweep's folder against other sweeps, for as long as this process or one of its workers uses it.

    Raises:
        CannotStart: another sweep uses the folder.
    """
    with _lock_file(sweep) as file:
        until = time.monotonic() + _ORPHANS_S
        while not _try(file, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise CannotStart(
                    f"another sweep uses {sweep}: wait for its end, stop it, or choose another `out`"
                )
            time.sleep(0.1)
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def _shared_lock(sweep: Path) -> Iterator[None]:
    with _lock_file(sweep) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _lock_file(sweep: Path) -> IO[bytes]:
    return (sweep / "sweep.lock").open("ab")


def _try(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class LocalWorkers:
    """Local processes, each kept for further jobs because loading torch takes seconds."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._idle: list[tuple[Connection, BaseProcess]] = []
        self._busy: dict[Connection, tuple[BaseProcess, Job]] = {}

    def start(self, job: Job) -> None:
        while self._idle:
            connection, process = self._idle.pop()
            with suppress(OSError):  # the process ended while it was idle
                connection.send(job)
                self._busy[connection] = process, job
                return
        connection, process = _new_worker()
        connection.send(job)
        self._busy[connection] = process, job

    def ended(self, timeout_s: float) -> list[tuple[Job, JobOutcome]]:
        outcomes = []
        for connection in wait(list(self._busy), timeout_s):
            assert isinstance(connection, Connection)
            process, job = self._busy.pop(connection)
            try:
                outcome: JobOutcome = connection.recv()
                self._idle.append((connection, process))
            except (EOFError, OSError):
                process.join()
                outcome = JobOutcome("crashed", _cause(process.exitcode))
            outcomes.append((job, outcome))
        return outcomes

    def interrupt(self) -> None:
        for process, _ in self._busy.values():
            process.terminate()

    def close(self) -> None:
        for process, _ in self._busy.values():
            process.kill()
        for connection, _ in self._idle:
            connection.close()
        for process in [process for process, _ in self._busy.values()] + [
            process for _, process in self._idle
        ]:
            process.join()


def _new_worker() -> tuple[Connection, BaseProcess]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(theirs,), daemon=True)
    # Ctrl-C goes to the sweep, which interrupts its workers: SIGINT is blocked in them from the start
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return ours, process


def _work(connection: Connection) -> None:
    """Runs jobs until the sweep closes the connection; ends at once when the sweep's process ends."""
    os.setsid()  # a signal to the sweep's process group must not reach the workers
    tqdm.set_lock(threading.RLock())  # a killed worker would leave tqdm's default, a semaphore, behind
    end_with_parent()
    with suppress(EOFError, OSError):
        while True:
            job: Job = connection.recv()
            connection.send(run_job(job))


def _cause(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"its process ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    guess = ", possibly because memory ran out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{guess}"
