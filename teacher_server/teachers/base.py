"""What a teacher is: someone with an identity who answers observations."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from teacher_api.schemas import Stage, StageReport

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
    """Who answers.

    `description` holds all that can change an answer and nothing else, `identity` is its digest,
    `hosting` says where and by what it runs, which changes no answer, and `tasks` maps the tasks that
    the teacher knows to their useful actions.
    """

    kind: str
    identity: str
    description: dict[str, Any]
    hosting: dict[str, Any]
    tasks: dict[str, tuple[str, ...]]

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
