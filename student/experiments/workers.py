"""What a sweep gives to others to do, and the processes of this machine that do it."""

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
from student.runs.folder import write_json
from student.settings import EvaluateSettings, TrainSettings
from student.trainer import Stopped, train
from teacher_api.client import TeacherError
from teacher_api.command_line import CannotStart
from teacher_api.terminal import speak_as

TEACHER_EPISODES = 200
"""Episodes that show how good a teacher is."""
_ORPHANS_S = 10
"""Seconds that the workers of a killed sweep are waited for."""


@dataclass(frozen=True)
class Task:
    """Something that a worker can do: `do(folder, settings)`."""

    name: str
    do: Callable[[Path, dict[str, Any]], None]
    folder: Path
    settings: dict[str, Any]
    sweep: Path
    """The sweep's folder."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    done; failed: it raised; stopped: as asked to; died: its process did, and it may be tried again.
    """

    how: Literal["done", "failed", "stopped", "died"]
    why: str = ""


class Workers(Protocol):
    """Who does tasks; local processes or a cluster."""

    @property
    def capacity(self) -> int:
        """How many tasks can be under way."""
        ...

    def start(self, task: Task) -> None:
        """Begins a task; no more than `capacity` are to be under way."""
        ...

    def ended(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        """The tasks that came to an end; waits for one no longer than the time-out."""
        ...

    def interrupt(self) -> None:
        """Asks all tasks under way to stop where they can go on later; they end soon."""
        ...

    def close(self) -> None:
        """Ends the workers, and what they are doing."""
        ...


def train_run(folder: Path, settings: dict[str, Any]) -> None:
    """Trains a run to its end, from its last checkpoint if it has one.

    Args:
        settings: all of TrainSettings but `out`, which is the folder.
    """
    train(TrainSettings.model_validate({**settings, "out": folder, "go_on": True}))


def score_teacher(folder: Path, settings: dict[str, Any]) -> None:
    """Writes down how a teacher plays: what `student evaluate` reports, and who it is.

    Args:
        settings: address, key_file, env, task, identity, wait_s.
    """
    report = score(
        EvaluateSettings(
            policy=settings["address"],
            env=settings["env"],
            task=settings["task"],
            episodes=TEACHER_EPISODES,
            teacher_key_file=settings["key_file"],
            teacher_wait_s=settings["wait_s"],
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / f"{settings['env']}.json",
        {"env": settings["env"], "teacher": settings["identity"], **report},
    )


def attempt(task: Task) -> Outcome:
    """Does a task in this process; whatever it raises becomes its outcome.

    An error that nobody foresaw is told in full in error.txt in the task's folder.
    """
    ignore_variables()
    speak_as(f"student sweep: {task.name}")
    try:
        with _used(task.sweep):
            task.do(task.folder, task.settings)
    except Stopped as error:
        return Outcome("stopped" if error.exit_code == 130 else "failed", in_a_line(error))
    except (CannotStart, TeacherError) as error:
        return Outcome("failed", in_a_line(error))
    except Exception as error:
        with suppress(OSError):
            task.folder.mkdir(parents=True, exist_ok=True)
            (task.folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return Outcome("failed", f"{type(error).__name__}: {in_a_line(error)}")
    (task.folder / "error.txt").unlink(missing_ok=True)
    return Outcome("done")


@contextmanager
def locked(sweep: Path) -> Iterator[None]:
    """Keeps other sweeps away from a folder for as long as this process or one of its workers uses it.

    Raises:
        CannotStart: another sweep is at work there.
    """
    with _lock_file(sweep) as file:
        until = time.monotonic() + _ORPHANS_S
        while not _try(file, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise CannotStart(
                    f"another sweep works in {sweep}: wait for it, stop it, or use another --out"
                )
            time.sleep(0.1)
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def _used(sweep: Path) -> Iterator[None]:
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
    """Processes that do one task after the other: loading torch takes seconds, so they are kept."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._idle: list[tuple[Connection, BaseProcess]] = []
        self._busy: dict[Connection, tuple[BaseProcess, Task]] = {}

    def start(self, task: Task) -> None:
        while self._idle:
            connection, process = self._idle.pop()
            with suppress(OSError):  # it died while it had nothing to do
                connection.send(task)
                self._busy[connection] = process, task
                return
        connection, process = _new_worker()
        connection.send(task)
        self._busy[connection] = process, task

    def ended(self, timeout_s: float) -> list[tuple[Task, Outcome]]:
        outcomes = []
        for connection in wait(list(self._busy), timeout_s):
            assert isinstance(connection, Connection)
            process, task = self._busy.pop(connection)
            try:
                outcome: Outcome = connection.recv()
                self._idle.append((connection, process))
            except (EOFError, OSError):
                process.join()
                outcome = Outcome("died", _cause(process.exitcode))
            outcomes.append((task, outcome))
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
    ours, its = spawn.Pipe()
    process = spawn.Process(target=_work, args=(its,), daemon=True)
    # Ctrl-C is for the sweep, which tells its workers to stop: they are born deaf to it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    its.close()
    return ours, process


def _work(connection: Connection) -> None:
    """A worker's life: it ends when the sweep closes the connection, and at once when the sweep is gone."""
    os.setsid()  # a signal to the sweep's group is for the sweep too
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed worker would leave behind
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            task: Task = connection.recv()
            connection.send(attempt(task))


def _end_with_the_sweep() -> None:
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    sweep.join()
    os._exit(1)


def _cause(exit_code: int | None) -> str:
    if exit_code is None or exit_code >= 0:
        return f"its process ended with exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"its process was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
