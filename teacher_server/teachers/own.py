"""A teacher of the user's own: a Python object that maps pictures to probabilities, served like others."""

import asyncio
import inspect
import json
import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, Protocol

from gridworld.environments import in_full
from teacher_api.schemas import StageReport, action_problem
from teacher_server.teachers.base import (
    CannotAnswer,
    Observation,
    TeacherAnswer,
    UnreadableAnswer,
    identity_of,
)

_TOLERANCE = 1e-3
"""The largest difference of a sum of probabilities from 1; they are normalised."""


class CannotServe(Exception):
    """The object cannot be served; the message says what is missing."""


class OwnTeacher(Protocol):
    """What `teacher serve --teacher package.module:Name` needs of an object.

    `Name` is the object, or a class or function that makes it, without arguments.

    Attributes:
        identity: all that can change an answer, as JSON values: a version, a digest of weights. Answers are
            stored for it, so change it whenever an answer changes.
        tasks: task -> the names of its actions.
    """

    identity: Mapping[str, Any]
    tasks: Mapping[str, tuple[str, ...]]

    def answer(self, observation: Observation) -> Mapping[str, float] | tuple[Mapping[str, float], str]:
        """Returns the probability of each of `observation.actions`, and optionally an analysis in words.

        It may be a coroutine function; otherwise it is called in one thread, one question at a time.

        Raises:
            teacher_server.teachers.base.CannotAnswer: the question has no answer (HTTP 422). Every other
                error is the teacher's own (HTTP 502).
        """


class ServedOwnTeacher:
    """An `OwnTeacher` behind the interface of the service.

    Args:
        name: package.module:Name.

    Raises:
        CannotServe: the module or the object is missing, or the object has not what is needed.
    """

    model = None

    def __init__(self, name: str) -> None:
        self._own = own = _object(name)
        self.kind = type(own).__name__
        identity, tasks = getattr(own, "identity", None), getattr(own, "tasks", None)
        if not isinstance(identity, Mapping):
            raise CannotServe(f"{name} has no `identity`: a dict with all that can change an answer")
        if not callable(getattr(own, "answer", None)):
            raise CannotServe(f"{name} has no method `answer(observation)`")
        self.tasks = _tasks(name, tasks)
        self.description: dict[str, Any] = {"kind": self.kind, **identity}
        try:
            self.identity = identity_of(self.description)
        except (TypeError, ValueError) as error:
            raise CannotServe(f"{name}: `identity` is not made of JSON values: {error}") from error
        self.hosting: dict[str, Any] = {"class": name}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="teacher")

    async def start(self) -> None:
        """Does nothing: the object is made."""

    async def answer(self, observation: Observation) -> TeacherAnswer:
        """Asks the object.

        Raises:
            CannotAnswer: the object raised it.
            UnreadableAnswer: the object raised another error, or returned no probabilities of the actions.
        """
        began = time.perf_counter()
        answer: Any = self._own.answer
        try:
            if inspect.iscoroutinefunction(answer):
                found = await answer(observation)
            else:
                loop = asyncio.get_running_loop()
                found = await loop.run_in_executor(self._thread, answer, observation)
        except (CannotAnswer, UnreadableAnswer):
            raise
        except Exception as error:
            raise UnreadableAnswer(f"the teacher raised {in_full(error)}", fault="engine") from error
        took = (time.perf_counter() - began) * 1000
        probabilities, text = found if isinstance(found, tuple) and len(found) == 2 else (found, "")
        analysis = StageReport(text=str(text), milliseconds=took)
        if observation.stage == "analysis":
            return TeacherAnswer(None, analysis, None)
        read = _read(probabilities, observation.actions)
        action = StageReport(text=json.dumps(read), milliseconds=0.0)
        return TeacherAnswer(read, analysis, action)

    async def close(self) -> None:
        """Finishes the running question and drops the waiting ones."""
        self._thread.shutdown(cancel_futures=True)


def _object(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
        made = found() if inspect.isclass(found) or inspect.isroutine(found) else found
    except Exception as error:  # a user's module can raise anything
        raise CannotServe(f"{name} cannot be made: {in_full(error)}") from error
    return made


def _tasks(name: str, tasks: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(tasks, Mapping) or not tasks:
        raise CannotServe(f"{name} has no `tasks`: a dict from each task to the names of its actions")
    found = {str(task): tuple(actions) for task, actions in tasks.items()}
    for task, actions in found.items():
        if problem := action_problem(actions):
            raise CannotServe(f"{name}: the actions of the task {task}: {problem}")
    return found


def _read(probabilities: Any, actions: tuple[str, ...]) -> dict[str, float]:
    """Returns the probabilities in the order of the actions; an action without one gets 0."""
    if not isinstance(probabilities, Mapping):
        raise UnreadableAnswer(
            f"the teacher returned {type(probabilities).__name__}, not a dict from actions to probabilities"
        )
    if unknown := [name for name in probabilities if name not in actions]:
        raise UnreadableAnswer(
            f"the teacher returned a probability of {unknown[0]!r}; the question has {', '.join(actions)}"
        )
    try:
        read = {action: float(probabilities.get(action, 0.0)) for action in actions}
    except (TypeError, ValueError) as error:
        raise UnreadableAnswer(f"the teacher returned a probability that is no number: {error}") from error
    total = math.fsum(read.values())
    if not all(p >= 0 for p in read.values()) or not abs(total - 1) <= _TOLERANCE:
        raise UnreadableAnswer(f"the teacher's probabilities are not at least 0 with the sum 1: {read}")
    return {action: p / total for action, p in read.items()}
