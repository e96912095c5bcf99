"""Finds the teachers to measure, starts those that are given as folders, and determines their tasks."""

import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from gridworld.tasks import TASKS
from teacher_api.client import TeacherError, checked_url, connect
from teacher_api.command_line import BadSetting, CannotStart
from teacher_api.keys import read_key
from teacher_tools.bench.hosting import served, wait_until_ready
from teacher_tools.bench.settings import BenchSettings
from teacher_tools.bench.targets import Target, TeacherTarget


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
