"""Finds the teachers that are to be asked, starts those that are given as folders, and what they know."""

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


class Found(NamedTuple):
    """Who is asked, and the tasks that it knows."""

    target: Target
    tasks: Collection[str]


def find_teachers(settings: BenchSettings, flags: Sequence[str], stack: ExitStack) -> dict[str, Found]:
    """The teachers, ready to answer, by the names that the report calls them: `teacher`, `vs`, `openai`.

    Args:
        flags: of `teacher serve`, for those that are folders.
        stack: ends what is started here.

    Raises:
        CannotStart: there is no such teacher, it is not ready in time, or wants another key.
    """
    named = {"teacher": settings.teacher} | ({"vs": settings.vs} if settings.vs else {})
    places = {name: _place(name, where) for name, where in named.items()}
    folders = {name: place for name, place in places.items() if isinstance(place, Path)}
    if flags and not folders:
        raise BadSetting(
            f"the flags after -- ({' '.join(flags)}) are for a teacher that is started from a checkpoint's"
            " folder; no folder is given"
        )
    key = read_key(settings.teacher_key_file)
    openai = {"openai": _openai(settings, settings.vs_openai)} if settings.vs_openai else {}
    stores = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    # All at once: each may load for minutes
    starting = {
        name: stack.enter_context(served(_flags_of(folder, stores / f"{name}.sqlite3", flags)))
        for name, folder in folders.items()
    }
    return {name: _meet(settings, place, starting.get(name), key) for name, place in places.items()} | openai


def known_tasks(settings: BenchSettings, found: Iterable[Found]) -> tuple[str, ...]:
    """What to ask about: what the settings say, or all that all teachers know of the four families.

    Raises:
        CannotStart: a teacher does not know it, or they have none in common.
    """
    for target, known in found:
        for task in settings.task:
            if task not in known:
                where = target.about["address"]
                raise CannotStart(f"--task: {where} does not know {task}; it knows {', '.join(known)}")
    tasks = settings.task or tuple(task for task in TASKS if all(task in known for _, known in found))
    if not tasks:
        raise CannotStart(f"there is no task of {', '.join(TASKS)} that all teachers know")
    return tasks


def _place(name: str, where: str) -> str | Path:
    """An address or a folder."""
    try:
        return checked_url(where) if "://" in where else _folder(where)
    except ValueError as error:
        raise BadSetting(f"{'--vs: ' if name == 'vs' else ''}{error}") from error


def _folder(where: str) -> Path:
    folder = Path(where)
    if not folder.is_dir():
        raise ValueError(
            f"{where!r} is neither a teacher's address (http://HOST:PORT) nor a checkpoint's folder"
        )
    return folder


def _flags_of(folder: Path, store: Path, flags: Sequence[str]) -> list[str]:
    """Later ones win: those given may name another store, or none."""
    return ["--teacher", "prompted", "--model", str(folder), "--store", str(store), *flags]


def _meet(
    settings: BenchSettings, place: str | Path, start: Callable[[], str] | None, key: str | None
) -> Found:
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
    return Found(TeacherTarget(url, about, timeout_s=settings.timeout_s, key=key), info.tasks)


def _openai(settings: BenchSettings, url: str) -> Found:
    from teacher_server.prompting.prompt_set import BadPromptSet, load_prompt_set  # noqa: PLC0415
    from teacher_tools.bench.openai import OpenAITarget  # noqa: PLC0415 - needs more than the others

    try:
        prompts = load_prompt_set(settings.prompts)
        target = OpenAITarget(url, prompts, timeout_s=settings.timeout_s, allow_host=settings.allow_host)
        return Found(target, prompts.tasks)
    except BadPromptSet as error:
        raise CannotStart(f"--prompts: {error}") from error
    except ValueError as error:
        raise BadSetting(f"--vs-openai: {error}") from error
