"""A control: a teacher that knows nothing and says so, to see what that does to a student."""

import json
from typing import Any

from gridworld.tasks import ALL_TASKS
from teacher_api.schemas import StageReport
from teacher_server.teachers.base import Observation, TeacherAnswer, identity_of

UNIFORM_VERSION = "1"
"""Part of the identity: raise it when any answer changes."""

_ANALYSIS = "This teacher looks at nothing: every action that was asked for is as good as any other."


class UniformTeacher:
    """Gives each action that was asked for the same probability, whatever the picture shows."""

    kind = "uniform"
    model = None

    def __init__(self) -> None:
        self.description: dict[str, Any] = {"kind": self.kind, "version": UNIFORM_VERSION}
        self.identity = identity_of(self.description)
        self.hosting: dict[str, Any] = {}
        self.tasks = {task.key: task.useful for task in ALL_TASKS.values()}

    async def start(self) -> None:
        """Ready as it is."""

    async def answer(self, observation: Observation) -> TeacherAnswer:
        """The same for every picture."""
        analysis = StageReport(text=_ANALYSIS, milliseconds=0.0)
        if observation.stage == "analysis":
            return TeacherAnswer(None, analysis, None)
        probabilities = dict.fromkeys(observation.actions, 1 / len(observation.actions))
        return TeacherAnswer(
            probabilities, analysis, StageReport(text=json.dumps(probabilities), milliseconds=0.0)
        )

    async def close(self) -> None:
        """There is nothing to free."""
