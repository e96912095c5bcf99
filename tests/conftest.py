"""Teachers for tests: processes on free ports, each with its own store."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import minigrid  # noqa: F401  (registers the environments)
import pytest

from gridworld.pictures import draw, encode_png
from gridworld.tasks import task_of
from gridworld.views import view_of
from teacher_api import processes
from teacher_api.client import TeacherClient
from teacher_api.schemas import Question

_processes_started: list[str] = []


def _note_process(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"):
        _processes_started.append(f"{event} {arguments}")


sys.addaudithook(_note_process)


@pytest.fixture(autouse=True)
def _unit_tests_start_no_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that is marked `unit` and starts a process: mark it `integration`."""
    before = len(_processes_started)
    yield
    if request.node.get_closest_marker("unit"):
        assert _processes_started[before:] == []


def environment_without(prefix: str) -> dict[str, str]:
    """This process's variables without those of a command."""
    return {name: value for name, value in os.environ.items() if not name.startswith(prefix)}


class TeacherProcess:
    """A `teacher serve` that listens on `url`."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], env: dict[str, str]) -> None:
        self._log = folder / "stderr.txt"
        self._arguments = arguments
        self._env = environment_without("TEACHER_") | env
        self.store = Path(self._env.setdefault("TEACHER_STORE", str(folder / "answers.sqlite3")))
        self._start("0")

    def _start(self, port: str) -> None:
        self._served = processes.TeacherProcess(
            [f"--port={port}", *self._arguments], log=self._log, env=self._env
        )
        self.process = self._served.process
        self.greeting, self.url = self._served.greeting, self._served.url

    @property
    def stderr(self) -> str:
        """The text on stderr so far."""
        return self._log.read_text()

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def end(self) -> None:
        """Kills the teacher and the processes that it started."""
        self.process.kill()
        self._served.end()

    def restart(self) -> None:
        """Starts the teacher again after `kill` or `stop`, on the same port with the same store."""
        self._start(self.url.rsplit(":", 1)[1])

    def _end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)  # does nothing to one that has ended
        return self.process.wait(300)


StartTeacher = Callable[..., TeacherProcess]
"""start(*flags, **variables): store="x.sqlite3" sets TEACHER_STORE; the default is a store of its own."""

AskAbout = Callable[..., Question]
"""ask_about(env_id, seed, tile, **changes): a question about an environment's first state.

A teacher draws all tiles before it reads its first picture, which is faster for small tiles.
"""


@pytest.fixture
def teacher_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartTeacher]:
    """Starts teachers; they are killed when the test ends."""
    with started_teachers(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def shared_teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherProcess]:
    """A planner teacher for tests that neither stop it nor count what it was asked."""
    with started_teachers(tmp_path_factory) as start:
        yield start()


@pytest.fixture
def client(shared_teacher: TeacherProcess) -> Iterator[TeacherClient]:
    """A client of the shared teacher."""
    with TeacherClient(shared_teacher.url, deadline_s=300) as client:
        yield client


@pytest.fixture
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the processes that a test starts import the modules in examples/."""
    examples = str(Path(__file__).parents[1] / "examples")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([examples, os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="session")
def ask_about() -> AskAbout:
    """Makes questions about real pictures."""
    return _question


@contextmanager
def started_teachers(folders: pytest.TempPathFactory) -> Iterator[StartTeacher]:
    """Starts teachers; they are killed at the end."""
    started: list[TeacherProcess] = []

    def start(*flags: str, **variables: str) -> TeacherProcess:
        env = {f"TEACHER_{name.upper()}": str(value) for name, value in variables.items()}
        started.append(TeacherProcess(folders.mktemp("teacher"), flags, env))
        return started[-1]

    try:
        yield start
    finally:
        for teacher in started:
            teacher.end()


def _question(env_id: str, seed: int = 0, tile: int = 8, **changes: Any) -> Question:
    with gymnasium.make(env_id) as env:
        env.reset(seed=seed)
        picture = encode_png(draw(view_of(env), tile))
        mission: str = env.unwrapped.mission  # type: ignore[attr-defined]
    task = task_of(env_id)
    asked: dict[str, Any] = {"mission": mission, "task": task.key, "actions": task.useful} | changes
    return Question.about(picture, **asked)
