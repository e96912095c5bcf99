"""The teacher interface: a teacher has an identity and answers observations."""

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
    """A question with its picture decoded: uint8 [H, W, 3], RGB."""

    picture: NDArray[np.uint8]
    mission: str
    task: str
    actions: tuple[str, ...]
    stage: Stage = "both"


@dataclass(frozen=True)
class TeacherAnswer:
    """Probabilities over the requested actions, in their order, and the report of each stage.

    For an observation with stage "analysis", `probabilities` and `action` are None.

    Attributes:
        confidence: how sure the teacher is that its most probable action is a best one, 0 to 1; None if it
            does not know.
    """

    probabilities: dict[str, float] | None
    analysis: StageReport
    action: StageReport | None
    confidence: float | None = None


class CannotAnswer(Exception):
    """The question has no answer; `field` is the question's field that is at fault."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


class UnreadableAnswer(Exception):
    """The teacher's answer could not be read, or did not come.

    Attributes:
        raw: the text that the teacher wrote.
        stage: the stage that failed.
        fault: the kind of failure, one of a few words, for the metrics.
    """

    def __init__(
        self, reason: str, raw: str | None = None, *, stage: StageName = "action", fault: str = "schema"
    ) -> None:
        super().__init__(reason)
        self.raw, self.stage, self.fault = raw, stage, fault


class NoAnswerNow(UnreadableAnswer):
    """The answer did not come; the same question may succeed later."""


class TeacherGone(Exception):
    """The teacher answers no further question; the message says why."""


class Teacher(Protocol):
    """Answers observations.

    Attributes:
        kind: The name of its class of teachers, as the setting `teacher` names them.
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
        """Makes the teacher ready; called once, before the first question."""

    async def answer(self, observation: Observation) -> TeacherAnswer:
        """Answers an observation. Cancelling the call stops the work.

        Raises:
            CannotAnswer: the question is at fault.
            UnreadableAnswer: the teacher is at fault; NoAnswerNow: the same question may succeed later.
            TeacherGone: the teacher answers no further question.
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
    """Returns the description's kind and 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{description['kind']}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def name_of(teacher: Teacher) -> str:
    """Returns a display name: the checkpoint's folder, the model's name on a hub or server, or the kind."""
    model = teacher.hosting.get("model")
    if model is None or "server" in teacher.hosting:
        return str(model or teacher.kind)
    folder = Path(model).resolve()
    hub = folder.parent.parent.name
    if folder.parent.name == "snapshots" and hub.startswith("models--"):  # the cache of a model hub
        return hub.removeprefix("models--").replace("--", "/")
    return folder.name or str(folder)
