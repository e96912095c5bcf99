"""The uniform teacher: the control of experiments, which knows nothing and says so."""

import json
from typing import Any

from gridworld.tasks import ALL_TASKS
from teacher_api.schemas import StageReport
from teacher_server.teachers.base import Observation, TeacherAnswer, identity_of

UNIFORM_VERSION = "1"
"""Part of the identity: raise it when an answer changes."""

_ANALYSIS = "This teacher looks at nothing: every action that was asked for is as good as any other."


class UniformTeacher:
    """Gives all requested actions the same probability, whatever the picture shows.

    That probability is also its confidence.
    """

    kind = "uniform"
    model = None

    def __init__(self) -> None:
        self.description: dict[str, Any] = {"kind": self.kind, "version": UNIFORM_VERSION}
        self.identity = identity_of(self.description)
        self.hosting: dict[str, Any] = {}
        self.tasks = {task.key: task.useful for task in ALL_TASKS.values()}

    async def start(self) -> None:
        """Does nothing: the teacher is ready."""

    async def answer(self, observation: Observation) -> TeacherAnswer:
        """Answers every picture alike."""
        analysis = StageReport(text=_ANALYSIS, milliseconds=0.0)
        if observation.stage == "analysis":
            return TeacherAnswer(None, analysis, None)
        share = 1 / len(observation.actions)
        probabilities = dict.fromkeys(observation.actions, share)
        action = StageReport(text=json.dumps(probabilities), milliseconds=0.0)
        return TeacherAnswer(probabilities, analysis, action, confidence=share)

    async def close(self) -> None:
        """Does nothing: there is nothing to free."""
