"""Finds the teachers to measure, starts those that are given as folders, and determines their tasks."""

import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

from gridworld.tasks import TASKS
from teacher_api.client import TeacherError, checked_url, connect, in_words
from teacher_api.command_line import BadSetting, CannotStart
from teacher_api.keys import read_key
from teacher_api.processes import TeacherDidNotStart, TeacherProcess
from teacher_api.terminal import Waiting
from teacher_tools.bench.settings import BenchSettings
from teacher_tools.bench.targets import Target, TeacherTarget

_LOAD_S = 1200.0
"""The time in which a started teacher has to load its checkpoint."""


class FoundTarget(NamedTuple):
    """A target that is ready to answer, and the tasks that it knows."""

    target: Target
    tasks: Collection[str]


def find_teachers(settings: BenchSettings, flags: Sequence[str], stack: ExitStack) -> dict[str, FoundTarget]:
    """Returns the targets by their names in the report: `teacher`, `vs`, `openai`.

    Args:
        flags: of `teacher serve`, for the teachers that are given as folders.
        stack: stops what is started here.

    Raises:
        CannotStart: a teacher does not exist, is not ready in time, or requires another key.
    """
    named = {"teacher": settings.teacher} | ({"vs": settings.vs} if settings.vs else {})
    places = {name: _place(name, where) for name, where in named.items()}
    folders = {name: place for name, place in places.items() if isinstance(place, Path)}
    if flags and not folders:
        raise BadSetting(
            f"the flags after -- ({' '.join(flags)}) are for a teacher that is started from a checkpoint's"
            " folder, but no folder is given"
        )
    key = read_key(settings.teacher_key_file)
    openai = {"openai": _openai(settings, settings.vs_openai)} if settings.vs_openai else {}
    stores = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    # Started side by side, since each may take minutes to load
    starting = {
        name: stack.enter_context(served(_flags_of(folder, stores / f"{name}.sqlite3", flags)))
        for name, folder in folders.items()
    }
    return {
        name: _teacher(settings, place, starting.get(name), key) for name, place in places.items()
    } | openai


def common_tasks(settings: BenchSettings, found: Iterable[FoundTarget]) -> tuple[str, ...]:
    """Returns the tasks of the settings, or those of the paper's four that all targets know.

    Raises:
        CannotStart: a target does not know a task of the settings, or the targets have none in common.
    """
    all_found = list(found)
    for target, known in all_found:
        for task in settings.task:
            if task not in known:
                where = target.about["address"]
                raise CannotStart(f"`task`: {where} does not know {task}; its tasks are {', '.join(known)}")
    tasks = settings.task or tuple(task for task in TASKS if all(task in known for _, known in all_found))
    if not tasks:
        raise CannotStart(f"the teachers have none of the tasks {', '.join(TASKS)} in common")
    return tasks


@contextmanager
def served(flags: Sequence[str]) -> Iterator[Callable[[], str]]:
    """Serves a teacher with these flags on any free port until the end of the block.

    Several teachers can load side by side: enter all blocks before the first wait.

    Yields:
        A function that waits until the teacher can answer and returns its address. It raises CannotStart if
        the process ends.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "stderr.txt")
        with TeacherProcess([*flags, "--port=0"], log=log) as teacher:

            def url() -> str:
                try:
                    address = teacher.url
                    wait_until_ready(address, _LOAD_S, lambda: teacher.process.poll() is None)
                    if teacher.process.poll() is not None:
                        raise TeacherDidNotStart(log.read_text(encoding="utf-8").strip().splitlines()[-1])
                except TeacherDidNotStart as error:
                    raise CannotStart(f"`teacher serve {' '.join(flags)}` did not start: {error}") from error
                return address

            yield url


def wait_until_ready(url: str, within_s: float, alive: Callable[[], bool] = lambda: True) -> None:
    """Waits until a teacher can answer, or its process has ended.

    Args:
        alive: returns whether the process is running.

    Raises:
        CannotStart: the teacher is not ready within this time.
    """
    deadline, waiting = time.monotonic() + within_s, Waiting(f"the teacher at {url}")
    with waiting.for_it(within_s):
        while alive():
            try:
                reply = httpx.get(f"{url}/readyz", timeout=10, trust_env=False)
            except httpx.TransportError as error:
                waiting.failed(in_words(error))
            else:
                if reply.status_code == httpx.codes.OK:
                    break
                waiting.failed(f"status {reply.status_code}: not ready to answer")
            if time.monotonic() > deadline:
                raise CannotStart(f"{url} is not ready to answer after {within_s:g} s; raise `wait_s`")
            time.sleep(0.2)
    waiting.came()


def _place(name: str, where: str) -> str | Path:
    """Returns an address as text, a folder as a path."""
    try:
        return checked_url(where) if "://" in where else _folder(where)
    except ValueError as error:
        raise BadSetting(f"{'`vs`: ' if name == 'vs' else ''}{error}") from error


def _folder(where: str) -> Path:
    folder = Path(where)
    if not folder.is_dir():
        raise ValueError(
            f"{where!r} is neither a teacher's address (http://HOST:PORT) nor a checkpoint's folder"
        )
    return folder


def _flags_of(folder: Path, store: Path, flags: Sequence[str]) -> list[str]:
    """Returns the flags of a teacher; the given ones come last and win, as with another store."""
    return ["--teacher", "prompted", "--model", str(folder), "--store", str(store), *flags]


def _teacher(
    settings: BenchSettings, place: str | Path, start: Callable[[], str] | None, key: str | None
) -> FoundTarget:
    url = start() if start else str(place)
    try:
        key_file = settings.teacher_key_file
        with connect(url, key_file=key_file, wait_s=settings.wait_s) as client:
            info = client.teacher()
    except TeacherError as error:
        raise CannotStart(str(error)) from error
    wait_until_ready(url, settings.wait_s)
    about = {"folder": str(place)} if start else {}
    about |= info.model_dump(exclude={"tasks"})
    return FoundTarget(TeacherTarget(url, about, timeout_s=settings.timeout_s, key=key), info.tasks)


def _openai(settings: BenchSettings, url: str) -> FoundTarget:
    from teacher_server.prompting.prompt_set import BadPromptSet, load_prompt_set  # noqa: PLC0415
    from teacher_tools.bench.openai import OpenAITarget  # noqa: PLC0415 - heavier than the other imports

    try:
        prompts = load_prompt_set(settings.prompts)
        target = OpenAITarget(url, prompts, timeout_s=settings.timeout_s, allow_host=settings.allow_host)
        return FoundTarget(target, prompts.tasks)
    except BadPromptSet as error:
        raise CannotStart(f"`prompts`: {error}") from error
    except ValueError as error:
        raise BadSetting(f"`vs_openai`: {error}") from error
