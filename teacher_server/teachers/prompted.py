"""The real teacher: a vision-language model, asked in two stages, analysis and then action inference."""

import asyncio
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jsonschema
import numpy as np

from gridworld.pictures import UnreadablePicture, draw
from gridworld.views import EMPTY, View, code
from teacher_server.chat import ChatFormat
from teacher_server.engines import (
    ChatEngine,
    Decoding,
    EngineDead,
    EngineError,
    Generated,
    PreparedPicture,
    Prompt,
)
from teacher_server.preparation import visual_tokens
from teacher_server.prompts import PromptSet
from teacher_server.readout import Unreadable, from_label_scores, from_numbers, hardened, numbers_schema
from teacher_server.schemas import StageReport
from teacher_server.settings import Readout, Targets
from teacher_server.teachers import (
    CannotAnswer,
    Observation,
    StageName,
    TeacherAnswer,
    TeacherGone,
    UnreadableAnswer,
    identity_of,
)

PROMPTED_VERSION = "1"
"""Part of the identity: raise it when the same model and prompt set would answer otherwise."""


@dataclass(frozen=True)
class ReadingOut:
    """How stage 2 is read: the settings' choices, or else the prompt set's."""

    readout: Readout
    targets: Targets
    label_temperature: float
    min_label_mass: float
    sum_tolerance: float

    @property
    def description(self) -> dict[str, Any]:
        """What of it can change an answer."""
        told: dict[str, Any] = {"readout": self.readout, "targets": self.targets}
        if self.readout == "labels":
            return told | {"temperature": self.label_temperature, "min_mass": self.min_label_mass}
        return told | {"sum_tolerance": self.sum_tolerance}


@dataclass(frozen=True)
class _Script:
    """The token ids of a conversation, and the pictures of its examples."""

    opening: tuple[int, ...]
    followup: tuple[int, ...]
    pictures: tuple[PreparedPicture, ...]


class PromptedTeacher:
    """A checkpoint behind an engine, asked with the conversations of a prompt set.

    Stage 1 looks at the picture and writes an analysis, held to the set's schema. Stage 2 goes on with the
    same token ids, so that an engine that caches prefixes computes the picture once, and gives the
    probabilities: in one step by the actions' labels, or written out as numbers.

    Args:
        checkpoint: what of the checkpoint can change an answer.
        label_ids: the token of each action's label.
        hosting: where and by what the checkpoint runs.
        seed: of sampling, where the prompt set samples.
    """

    kind = "prompted"

    def __init__(
        self,
        engine: ChatEngine,
        chat: ChatFormat,
        prompts: PromptSet,
        reading: ReadingOut,
        *,
        checkpoint: dict[str, Any],
        label_ids: dict[str, int],
        hosting: dict[str, Any],
        seed: int = 0,
    ) -> None:
        self._engine, self._chat, self._prompts, self._reading = engine, chat, prompts, reading
        self._label_ids, self._seed = label_ids, seed
        self._schema = jsonschema.Draft202012Validator(prompts.schema)
        self._script = lru_cache(maxsize=512)(self._write)
        self.tasks = dict(prompts.tasks)
        self.hosting = hosting
        self.description: dict[str, Any] = {
            "kind": self.kind,
            "version": PROMPTED_VERSION,
            "checkpoint": checkpoint,
            "prompts": prompts.digest,
            "reading": reading.description,
        }
        if prompts.temperature > 0:
            self.description["seed"] = seed
        self.identity = identity_of(self.description)
        for task, actions in self.tasks.items():
            self._script(task, "", actions)  # so that what cannot be written is refused before any loading

    @property
    def prompts(self) -> PromptSet:
        """What it is asked with."""
        return self._prompts

    def with_prompts(self, prompts: PromptSet) -> "PromptedTeacher":
        """The same checkpoint in the same engine, asked otherwise: not to be started or closed.

        Raises:
            BadChatTemplate: the chat template does not take what the set says.
        """
        return PromptedTeacher(
            self._engine,
            self._chat,
            prompts,
            self._reading,
            checkpoint=self.description["checkpoint"],
            label_ids=self._label_ids,
            hosting=self.hosting,
            seed=self._seed,
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation about a picture of 16 x 16 tiles, answers included."""
        picture = self._prompts.preparation.prepare(draw(_room(16)))
        scripts = [self._script(task, "", actions) for task, actions in self.tasks.items()]
        return max(
            len(script.opening)
            + sum(visual_tokens(shown) for shown in (*script.pictures, picture))
            + self._prompts.analysis_max_tokens
            + len(script.followup)
            + (self._prompts.numbers_max_tokens if self._reading.readout == "numbers" else 1)
            for script in scripts
        )

    async def start(self) -> None:
        """Loads the checkpoint and asks it one question a task: its first answers are slow.

        Raises:
            CannotLoad, EngineError: there is no engine, or it does not generate.
        """
        await self._engine.start()
        observations = [
            Observation(draw(_room(5)), "", task, actions) for task, actions in self.tasks.items()
        ]
        for outcome in await asyncio.gather(*map(self.answer, observations), return_exceptions=True):
            if isinstance(outcome, UnreadableAnswer) and outcome.fault == "engine":
                raise EngineError(f"the engine does not answer: {outcome}")
            if isinstance(outcome, BaseException) and not isinstance(outcome, UnreadableAnswer):
                raise outcome

    async def answer(self, observation: Observation) -> TeacherAnswer:
        """Asks both stages, or the first alone.

        Raises:
            CannotAnswer: the picture, the mission or the actions cannot be asked about.
            UnreadableAnswer: what the model wrote is cut, is not what was asked for, or did not come.
            TeacherGone: the engine is gone.
        """
        useful = self.tasks[observation.task]
        actions = tuple(action for action in observation.actions if action in useful)
        if not actions:
            none = ", ".join(observation.actions)
            reason = f"{observation.task} has no use for {none}; it has for {', '.join(useful)}"
            raise CannotAnswer("actions", reason)
        try:
            script = self._script(observation.task, observation.mission, actions)
        except ValueError as error:
            raise CannotAnswer("mission", str(error)) from error
        try:
            picture = await asyncio.to_thread(self._prompts.preparation.prepare, observation.picture)
        except UnreadablePicture as error:
            raise CannotAnswer("image", str(error)) from error

        prompt = Prompt(script.opening, (*script.pictures, picture))
        began = time.perf_counter()
        decoding = Decoding(
            max_tokens=self._prompts.analysis_max_tokens,
            schema=self._prompts.schema,
            temperature=self._prompts.temperature,
            seed=_seed_of(self._seed, prompt) if self._prompts.temperature > 0 else 0,
        )
        said = await self._generate(prompt, decoding, "analysis")
        self._check_analysis(said)
        analysis = StageReport(text=said.text, tokens=len(said.token_ids), milliseconds=_since(began))
        if observation.stage == "analysis":
            return TeacherAnswer(None, analysis, None)

        began = time.perf_counter()
        prompt = prompt.then((*said.token_ids, *script.followup))
        if self._reading.readout == "labels":
            found, report = await self._by_labels(prompt, actions, said.text)
        else:
            found, report = await self._by_numbers(prompt, actions, said.text)
        report = report.model_copy(update={"milliseconds": _since(began)})
        if self._reading.targets == "hard":
            found = hardened(found)
        probabilities = {action: found.get(action, 0.0) for action in observation.actions}
        return TeacherAnswer(probabilities, analysis, report)

    async def close(self) -> None:
        """Ends the engine."""
        await self._engine.close()

    def _write(self, task: str, mission: str, actions: tuple[str, ...]) -> _Script:
        """Raises ValueError for a mission that cannot be part of a conversation."""
        if special := self._chat.special_in(mission):
            raise ValueError(f"the mission holds {special!r}, which the model takes for a mark of its own")
        conversation = self._prompts.conversation(
            task=task, mission=mission, actions=actions, readout=self._reading.readout
        )
        return _Script(*self._chat.stages(conversation), conversation.pictures)

    async def _generate(
        self, prompt: Prompt, decoding: Decoding, stage: StageName, so_far: str | None = None
    ) -> Generated:
        try:
            said = await self._engine.generate(prompt, decoding)
        except EngineDead as error:
            raise TeacherGone(str(error)) from error
        except EngineError as error:
            raise UnreadableAnswer(f"{stage}: {error}", so_far, stage=stage, fault="engine") from error
        if not said.complete:
            reason = f"{stage}: it was not at its end after {decoding.max_tokens} tokens"
            raise UnreadableAnswer(reason, said.text, stage=stage, fault="truncated")
        return said

    def _check_analysis(self, said: Generated) -> None:
        try:
            # A line break inside a string is no reason to lose an analysis
            self._schema.validate(json.loads(said.text, strict=False))
        except ValueError as error:
            reason = f"analysis: it is not JSON: {error}"
            raise UnreadableAnswer(reason, said.text, stage="analysis", fault="schema") from error
        except jsonschema.ValidationError as error:
            where = ".".join(map(str, error.absolute_path)) or "it"
            reason = f"analysis: {where}: {error.message}"
            raise UnreadableAnswer(reason, said.text, stage="analysis", fault="schema") from error

    async def _by_labels(
        self, prompt: Prompt, actions: Sequence[str], so_far: str
    ) -> tuple[dict[str, float], StageReport]:
        try:
            scores = await self._engine.score(prompt, [self._label_ids[action] for action in actions])
        except EngineDead as error:
            raise TeacherGone(str(error)) from error
        except EngineError as error:
            raise UnreadableAnswer(f"action: {error}", so_far, stage="action", fault="engine") from error
        by_action = dict(zip(actions, scores, strict=True))
        text = json.dumps({self._prompts.labels[action]: score for action, score in by_action.items()})
        reading = self._reading
        try:
            found, mass = from_label_scores(
                by_action, temperature=reading.label_temperature, min_mass=reading.min_label_mass
            )
        except Unreadable as error:
            raise UnreadableAnswer(f"action: {error}", text, stage="action", fault=error.fault) from error
        return found, StageReport(text=text, tokens=1, milliseconds=0, label_mass=min(mass, 1.0))

    async def _by_numbers(
        self, prompt: Prompt, actions: Sequence[str], so_far: str
    ) -> tuple[dict[str, float], StageReport]:
        decoding = Decoding(max_tokens=self._prompts.numbers_max_tokens, schema=numbers_schema(actions))
        said = await self._generate(prompt, decoding, "action", so_far)
        try:
            found = from_numbers(said.text, actions, tolerance=self._reading.sum_tolerance)
        except Unreadable as error:
            raise UnreadableAnswer(
                f"action: {error}", said.text, stage="action", fault=error.fault
            ) from error
        return found, StageReport(text=said.text, tokens=len(said.token_ids), milliseconds=0)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _seed_of(seed: int, prompt: Prompt) -> int:
    """One seed a question, so that the same question always gets the same sample."""
    words = f"{seed} {prompt.pictures[-1].digest} {prompt.token_ids}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:4])


def _room(side: int) -> View:
    """Something to try a model with: an agent, a goal and four walls."""
    cells_HW = np.full((side, side), code("wall", "grey"), np.uint8)
    cells_HW[1:-1, 1:-1] = EMPTY
    cells_HW[-2, -2] = code("goal", "green")
    return View(cells_HW, 1, 1, 0)
