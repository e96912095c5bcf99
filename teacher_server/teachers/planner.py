"""The planner teacher: decodes the picture into a grid and plans a path, without weights or GPU."""

import asyncio
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gridworld.faults import faulty_plan
from gridworld.pictures import UnreadablePicture, read
from gridworld.planner import PLANNER_VERSION, NoPlan, Plan, plan
from gridworld.tasks import ALL_TASKS, Fault
from gridworld.views import View
from teacher_api.schemas import StageReport
from teacher_server.teachers.base import CannotAnswer, Observation, TeacherAnswer, identity_of


class PlannerTeacher:
    """Answers optimally, except for a share of wrong answers and a systematic fault.

    The same picture, mission, task and actions always get the same wrong answer.

    Args:
        fault: answer as if each picture was misread in this way; see `gridworld.faults`.
        noise: share of wrong answers, 0 to 1; with a fault, of the faulty planner's answers.
        seed: selects which answers are wrong.
        delay_s: seconds by which each answer is delayed; not part of the identity.
    """

    kind = "planner"
    model = None

    def __init__(
        self, *, fault: Fault | None = None, noise: float = 0.0, seed: int = 0, delay_s: float = 0.0
    ) -> None:
        self.fault, self.noise, self.seed, self.delay_s = fault, noise, seed, delay_s
        self.description: dict[str, Any] = {"kind": self.kind, "version": PLANNER_VERSION, "noise": noise}
        if noise > 0:
            self.description["seed"] = seed
        if fault is not None:
            self.description["fault"] = fault
        self.identity = identity_of(self.description)
        self.hosting: dict[str, Any] = {"delay_ms": delay_s * 1000}
        self.tasks = {task.key: task.useful for task in ALL_TASKS.values()}
        # One thread: planning holds the interpreter lock, so a second would gain nothing
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planner")

    async def start(self) -> None:
        """Does nothing: the teacher is ready."""

    async def answer(self, observation: Observation) -> TeacherAnswer:
        """Decodes the picture and plans.

        Raises:
            CannotAnswer: the picture cannot be decoded, or there is no plan for it.
        """
        if self.delay_s > 0:
            await asyncio.sleep(self.delay_s)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._answer, observation)

    async def close(self) -> None:
        """Finishes the running question and drops the waiting ones."""
        self._thread.shutdown(cancel_futures=True)

    def _answer(self, observation: Observation) -> TeacherAnswer:
        began = time.perf_counter()
        try:
            view = read(observation.picture)
            planned = self._plan(view, observation)
        except UnreadablePicture as error:
            raise CannotAnswer("image", str(error)) from error
        except NoPlan as error:
            raise CannotAnswer(error.field, str(error)) from error
        took = (time.perf_counter() - began) * 1000
        analysis = StageReport(text=planned.analysis, milliseconds=took)
        if observation.stage == "analysis":
            return TeacherAnswer(None, analysis, None)
        probabilities = self._with_mistakes(planned, observation)
        # Planning is one step; its time is reported with the analysis
        action = StageReport(text=json.dumps(probabilities), milliseconds=0.0)
        # Also with a mistake: the planner does not know of its noise
        return TeacherAnswer(probabilities, analysis, action, confidence=1.0)

    def _plan(self, view: View, observation: Observation) -> Plan:
        question = (observation.task, observation.mission, observation.actions)
        return plan(view, *question) if self.fault is None else faulty_plan(view, self.fault, *question)

    def _with_mistakes(self, planned: Plan, observation: Observation) -> dict[str, float]:
        """Returns the plan's probabilities, for a share `noise` of observations with a mistake.

        A mistake swaps the probabilities of the best action, or of all best actions, and of a wrong one.
        """
        p = planned.probabilities
        chance, choice = _draw(self.seed, observation)
        best = planned.best
        wrong = [
            action for action in ALL_TASKS[observation.task].useful if action in p and action not in best
        ]
        if chance >= self.noise or not wrong:
            return p
        mistake = wrong[choice % len(wrong)]
        return p | {action: p[mistake] / len(best) for action in best} | {mistake: sum(p[a] for a in best)}


def _draw(seed: int, observation: Observation) -> tuple[float, int]:
    """Returns a number in [0, 1) and an integer, both functions of the seed and the observation."""
    height, width = observation.picture.shape[:2]
    words = [seed, height, width, observation.mission, observation.task, observation.actions]
    digest = hashlib.sha256(json.dumps(words).encode())
    digest.update(observation.picture.tobytes())
    numbers = digest.digest()
    return int.from_bytes(numbers[:7]) / 2**56, int.from_bytes(numbers[8:16])
