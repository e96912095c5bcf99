"""What a teacher is: someone with an identity who answers observations."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from teacher_api.schemas import Stage, StageReport

if TYPE_CHECKING:
    from teacher_server.engines.sessions import SessionFactory
    from teacher_server.prompting.prompt_set import PromptSet

StageName = Literal["analysis", "action"]


@dataclass(frozen=True, eq=False)
class Observation:
    """A question with its picture decoded: uint8 [height, width, 3], RGB."""

    picture: NDArray[np.uint8]
    mission: str
    task: str
    actions: tuple[str, ...]
    stage: Stage = "both"


@dataclass(frozen=True)
class TeacherAnswer:
    """Probabilities over the actions asked, in their order, and what each stage said.

    For an observation of stage "analysis", `probabilities` and `action` are None.
    """

    probabilities: dict[str, float] | None
    analysis: StageReport
    action: StageReport | None


class CannotAnswer(Exception):
    """The question has no answer; `field` names what in it makes it so."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


class UnreadableAnswer(Exception):
    """The teacher's answer could not be read, or did not come.

    `raw` is what the teacher wrote, `stage` the stage that failed, and `fault` the kind of failure, one of
    a few words that can be counted.
    """

    def __init__(
        self, reason: str, raw: str | None = None, *, stage: StageName = "action", fault: str = "schema"
    ) -> None:
        super().__init__(reason)
        self.raw, self.stage, self.fault = raw, stage, fault


class NoAnswerNow(UnreadableAnswer):
    """The answer did not come, but for now alone: the same question may be answered later."""


class TeacherGone(Exception):
    """The teacher will answer no more; the message says why."""


class Teacher(Protocol):
    """Answers observations.

    Attributes:
        kind: The name of its class of teachers, as in `--teacher`.
        description: All that can change an answer, and nothing else.
        identity: The digest of the description.
        hosting: Where and by what the teacher runs; changes no answer.
        tasks: The tasks that the teacher knows, with the useful actions of each.
    """

    kind: str
    identity: str
    description: dict[str, Any]
    hosting: dict[str, Any]
    tasks: dict[str, tuple[str, ...]]

    @property
    def model(self) -> "ModelTeacher | None":
        """This teacher with what only a teacher over a model can do; None where there is no model."""

    async def start(self) -> None:
        """Gets ready to answer; called once, before the first question."""

    async def answer(self, observation: Observation) -> TeacherAnswer:
        """What to do. Cancelling it stops the work on it.

        Raises:
            CannotAnswer: the fault is the question's.
            UnreadableAnswer: the fault is the teacher's; NoAnswerNow: for now.
            TeacherGone: there is no teacher any more.
        """

    async def close(self) -> None:
        """Frees what `start` took."""


class Activity:
    """Counts a model's questions, from which the watchdog tells whether the model answers.

    Attributes:
        asked: The questions that the model is answering now.
        answered: The questions that the model has answered so far, readably or not.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.answered = 0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Counts a question; one that is cancelled or fails in the engine does not count as answered."""
        self.asked += 1
        try:
            yield
        except UnreadableAnswer as unreadable:
            self.answered += unreadable.fault != "engine"
            raise
        else:
            self.answered += 1
        finally:
            self.asked -= 1


class ModelTeacher(Teacher, Protocol):
    """A teacher whose answers a vision-language model generates.

    Attributes:
        local: Whether the model runs in an engine of this process, which can be replaced; otherwise another
            server runs it.
        activity: The counts of the model's questions.
    """

    activity: Activity

    @property
    def local(self) -> bool: ...

    @property
    def prompts(self) -> "PromptSet":
        """The prompt set that the model is prompted with."""

    @property
    def sessions(self) -> "SessionFactory":
        """The factory of sessions with the model."""

    def with_prompts(self, prompts: "PromptSet") -> "ModelTeacher":
        """Returns a teacher over the same model and another prompt set. Never start or close that teacher.

        Raises:
            BadChatTemplate: The chat template does not accept the prompt set's messages.
        """

    async def replace(self, old: "ModelTeacher", *, in_place: bool = False) -> bool:
        """Starts this teacher in the place of another one, which has no lease any more and is closed.

        Args:
            in_place: Load the weights into the running engine of the other teacher, where that is possible.

        Returns:
            Whether the weights were loaded in place.

        Raises:
            CannotLoad, EngineError: There is no engine, or the engine does not generate.
        """

    async def label_scores(self, picture: NDArray[np.uint8]) -> tuple[float, ...]:
        """Returns the natural log-probabilities of the first task's labels, after an empty analysis.

        Raises:
            EngineError: The engine failed.
        """

    async def try_out(self, tasks: Iterable[str]) -> None:
        """Asks a small question about each task; the answers need not be readable.

        Raises:
            EngineError: The engine failed.
            TeacherGone: The engine is gone.
        """


def identity_of(description: dict[str, Any]) -> str:
    """The description's kind, and 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{description['kind']}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def name_of(teacher: Teacher) -> str:
    """What people call it: its checkpoint's folder, its model's name on a hub or a server, or its kind."""
    model = teacher.hosting.get("model")
    if model is None or "server" in teacher.hosting:
        return str(model or teacher.kind)
    folder = Path(model).resolve()
    hub = folder.parent.parent.name
    if folder.parent.name == "snapshots" and hub.startswith("models--"):  # a hub's cache
        return hub.removeprefix("models--").replace("--", "/")
    return folder.name or str(folder)
