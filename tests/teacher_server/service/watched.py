"""A host with a watchdog, and models under the test's control."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gridworld.pictures import draw
from teacher_server.engines.base import CannotLoad, Decoding, EngineDead, EngineUnresponsive, Generated
from teacher_server.engines.sessions import LabelScores, SessionFactory
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.prompting.prompt_set import Conversation, load_prompt_set
from teacher_server.service.host import Host
from teacher_server.service.metrics import Metrics
from teacher_server.service.watchdog import Watchdog
from teacher_server.settings import Settings
from teacher_server.teachers.base import Observation
from teacher_server.teachers.prompted import PromptedTeacher, ReadoutSettings, trial_grid

_PROMPTS = load_prompt_set("minigrid-zero-shot")


@dataclass(eq=False)
class ScriptedModel:
    """A session factory and its sessions. Its texts fit no schema, and count as answers all the same.

    Attributes:
        fault: raised when it is asked; None: it answers once it `goes`.
        refusal: raised when it is started, or closed.
    """

    fault: Exception | None = None
    refusal: Exception | None = None
    goes: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0
    closed: bool = False
    key: str = ""

    async def start(self) -> None:
        if isinstance(self.refusal, CannotLoad):
            raise self.refusal

    async def take_over(self, other: SessionFactory) -> bool:
        return False

    def find_marker(self, text: str) -> str | None:
        return None

    def prepare(self, conversation: Conversation) -> "ScriptedModel":
        return self

    def session(self, picture: PreparedPicture) -> "ScriptedModel":
        return self

    def without_analysis(self) -> "ScriptedModel":
        return self

    async def analyse(self, decoding: Decoding) -> tuple[Generated, "ScriptedModel"]:
        self.asked += 1
        if self.fault is None:
            await self.goes.wait()
        if self.closed:
            raise EngineDead("it was closed")
        if self.fault is not None:
            raise self.fault
        return Generated("I see", 2, True), self

    async def score(self, actions: Sequence[str]) -> LabelScores:
        return LabelScores(dict.fromkeys(actions, -1.0))

    async def write(self, decoding: Decoding) -> Generated:
        return Generated("", 0, True)

    async def close(self) -> None:
        self.closed = True
        self.goes.set()
        if isinstance(self.refusal, EngineUnresponsive):
            raise self.refusal


def _answering() -> ScriptedModel:
    model = ScriptedModel()
    model.goes.set()
    return model


def _teacher(model: ScriptedModel, **hosting: str) -> PromptedTeacher:
    reading = ReadoutSettings("labels", "soft", 1.0, 0.0, 0.05)
    return PromptedTeacher(model, _PROMPTS, reading, checkpoint={"digest": "d"}, hosting=hosting)


class WatchedHost:
    """A watched host whose first model is silent; its replacements answer, unless the test gives others."""

    def __init__(
        self, patch: pytest.MonkeyPatch, first: ScriptedModel, *others: ScriptedModel, **changes: Any
    ) -> None:
        told: dict[str, Any] = {"teacher": "prompted", "stall_s": 10, "watch_s": 4, "replacements": 2}
        self.settings = Settings(**told | changes)
        hosting = {"server": "http://gpu:8000/v1"} if self.settings.engine == "openai" else {}
        self.metrics, self.model, self.teacher = Metrics(), first, _teacher(first, **hosting)
        self.ended: list[str | None] = []

        def on_end() -> None:
            self.ended.append(self.host.failure)

        self.host = Host(self.teacher, self.settings, None, self.metrics, on_end=on_end)
        self.host.serve(self.teacher, self.settings)
        self.watchdog = Watchdog(self.host, self.metrics)
        self.others = list(others) or [_answering() for _ in range(3)]
        self._new: PromptedTeacher | None = None
        patch.setattr("teacher_server.service.watchdog.same_teacher", self._same_teacher)

    def _same_teacher(self, settings: Settings, identity: str) -> PromptedTeacher:
        """Replaces `same_teacher`: makes a teacher before a start, and returns it again after the start."""
        assert settings == self.settings
        if self._new is not None:
            new, self._new = self._new, None
        else:
            new = self._new = _teacher(self.others.pop(0))
        assert new.identity == identity
        return new

    async def check(self, times: int = 1) -> None:
        for _ in range(times):
            self.watchdog.check()
            await asyncio.sleep(0)

    async def until_asked(self, times: int) -> None:
        await until(lambda: self.model.asked >= times)

    async def until_ready(self) -> None:
        await until(lambda: self.host.state == "ready")

    @asynccontextmanager
    async def question(self) -> AsyncIterator["asyncio.Task[Any]"]:
        """A question that the model is answering; cancelled when the block ends."""
        before = self.model.asked
        task, actions = next(iter(self.teacher.tasks.items()))
        asking = asyncio.create_task(self.teacher.answer(Observation(draw(trial_grid(5)), "", task, actions)))
        await self.until_asked(before + 1)
        try:
            yield asking
        finally:
            asking.cancel()
            await asyncio.wait([asking])

    def count(self, why: str, outcome: str) -> float:
        labels = {"why": why, "outcome": outcome}
        return self.metrics.registry.get_sample_value("teacher_replacements_total", labels) or 0.0

    @property
    def silent_s(self) -> float | None:
        return self.metrics.registry.get_sample_value("teacher_silent_seconds")


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)
