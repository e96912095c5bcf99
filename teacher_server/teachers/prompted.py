"""The real teacher: a vision-language model, asked in two stages, analysis and then action inference."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import jsonschema
import numpy as np
from numpy.typing import NDArray

from gridworld.pictures import UnreadablePicture, draw
from gridworld.views import EMPTY, View, code
from teacher_api.schemas import StageReport
from teacher_server.engines.base import Decoding, EngineDead, EngineError, EngineUnavailable, Generated
from teacher_server.engines.sessions import ActionStage, PreparedConversation, Session, SessionFactory
from teacher_server.prompting.prompt_set import PromptSet
from teacher_server.prompting.readout import (
    Unreadable,
    from_label_scores,
    from_numbers,
    hardened,
    numbers_schema,
    with_untold,
)
from teacher_server.settings import Readout, Settings, Targets
from teacher_server.teachers.base import (
    Activity,
    CannotAnswer,
    ModelTeacher,
    NoAnswerNow,
    Observation,
    StageName,
    TeacherAnswer,
    TeacherGone,
    UnreadableAnswer,
    identity_of,
)

_log = logging.getLogger(__name__)

PROMPTED_VERSION = "2"
"""Part of the identity: raise it when the same model and prompt set would answer otherwise."""


@dataclass(frozen=True)
class ReadoutSettings:
    """How stage 2 is read: the settings' choices, or else the prompt set's."""

    readout: Readout
    targets: Targets
    label_temperature: float
    min_label_mass: float
    sum_tolerance: float

    @classmethod
    def chosen(cls, settings: Settings, prompts: PromptSet) -> Self:
        """As the settings say, and where they say nothing the prompt set."""

        def of(name: str) -> Any:
            setting = getattr(settings, name)
            return getattr(prompts, name) if setting is None else setting

        names = ("readout", "label_temperature", "min_label_mass", "sum_tolerance")
        return cls(targets=settings.targets, **{name: of(name) for name in names})

    @property
    def description(self) -> dict[str, Any]:
        """What of it can change an answer."""
        told: dict[str, Any] = {"readout": self.readout, "targets": self.targets}
        if self.readout == "labels":
            return told | {"temperature": self.label_temperature, "min_mass": self.min_label_mass}
        return told | {"sum_tolerance": self.sum_tolerance}


class PromptedTeacher:
    """A model that is interviewed with the conversations of a prompt set.

    Stage 1 looks at the picture and writes an analysis, held to the set's schema. Stage 2 goes on from
    there, so that an engine that caches prefixes computes the picture once, and gives the probabilities: in
    one step by the actions' labels, or written out as numbers.

    Args:
        checkpoint: what of the model can change an answer.
        hosting: where and by what the model runs.
        seed: of sampling, where the prompt set samples.
        notes: what the model is asked for and was not trained for; logged when it starts.

    Attributes:
        activity: the counts of the model's questions.
    """

    kind = "prompted"

    def __init__(
        self,
        sessions: SessionFactory,
        prompts: PromptSet,
        reading: ReadoutSettings,
        *,
        checkpoint: dict[str, Any],
        hosting: dict[str, Any],
        seed: int = 0,
        notes: Sequence[str] = (),
    ) -> None:
        self.sessions, self._prompts, self._reading, self._seed = sessions, prompts, reading, seed
        self._notes = tuple(notes)
        self._schema = jsonschema.Draft202012Validator(prompts.schema)
        self._prepared = lru_cache(maxsize=512)(self._write)
        self.tasks = dict(prompts.tasks)
        self.hosting = hosting
        self.activity = Activity()
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
            self._prepared(task, "", actions)  # so that what cannot be written is refused before any loading

    @property
    def model(self) -> Self:
        """This teacher: its answers come from a model."""
        return self

    @property
    def local(self) -> bool:
        """Whether the model runs in an engine of this process; otherwise another server runs it."""
        return "server" not in self.hosting

    @property
    def prompts(self) -> PromptSet:
        """What it is asked with."""
        return self._prompts

    def with_prompts(self, prompts: PromptSet) -> "PromptedTeacher":
        """The same model, asked otherwise: not to be started or closed.

        Raises:
            BadChatTemplate: the chat template does not take what the set says.
        """
        return PromptedTeacher(
            self.sessions,
            prompts,
            self._reading,
            checkpoint=self.description["checkpoint"],
            hosting=self.hosting,
            seed=self._seed,
            notes=self._notes,
        )

    async def start(self) -> None:
        """Gets the model ready and asks it one question a task: its first answers are slow.

        Raises:
            CannotLoad, EngineError: there is no engine, or it does not generate.
        """
        for note in self._notes:
            _log.warning("%s", note)
        await self.sessions.start()
        await self.try_out(self.tasks)

    async def replace(self, old: ModelTeacher, *, in_place: bool = False) -> bool:
        """Starts instead of a teacher that nobody asks any more, and that is closed.

        Args:
            in_place: load the weights into its running engine, where that can be.

        Returns:
            Whether they were.

        Raises:
            CannotLoad, EngineError: there is no engine, or it does not generate.
        """
        for note in self._notes:
            _log.warning("%s", note)
        taken = in_place and await self.sessions.take_over(old.sessions)
        if not taken:
            await old.close()
            await self.sessions.start()
        await self.try_out(self.tasks)
        return taken

    async def label_scores(self, picture: NDArray[np.uint8]) -> tuple[float, ...]:
        """Natural log-probabilities of the first task's labels after a picture and an empty analysis.

        Raises:
            EngineError: the engine failed.
        """
        task, actions = next(iter(self.tasks.items()))
        session = self._prepared(task, "", actions).session(self._prompts.preparation.prepare(picture))
        scores = await session.without_analysis().score(actions)
        return tuple(scores.known[action] for action in actions)

    async def try_out(self, tasks: Iterable[str]) -> None:
        """Asks a small question of each task; what is answered need not be readable.

        Raises:
            EngineError: the engine failed; TeacherGone: it is gone.
        """
        observations = [Observation(draw(room(5)), "", task, self.tasks[task]) for task in tasks]
        for outcome in await asyncio.gather(*map(self.answer, observations), return_exceptions=True):
            if isinstance(outcome, UnreadableAnswer) and outcome.fault == "engine":
                raise EngineError(f"the engine does not answer: {outcome}")
            if isinstance(outcome, BaseException) and not isinstance(outcome, UnreadableAnswer):
                raise outcome

    async def answer(self, observation: Observation) -> TeacherAnswer:
        """Asks both stages, or the first alone.

        Raises:
            CannotAnswer: the picture, the mission or the actions cannot be asked about.
            UnreadableAnswer: what the model wrote is cut, is not what was asked for, or did not come;
                NoAnswerNow: it may come another time.
            TeacherGone: the engine is gone.
        """
        useful = self.tasks[observation.task]
        actions = tuple(action for action in observation.actions if action in useful)
        if not actions:
            none = ", ".join(observation.actions)
            reason = f"{observation.task} has no use for {none}; it has for {', '.join(useful)}"
            raise CannotAnswer("actions", reason)
        try:
            conversation = self._prepared(observation.task, observation.mission, actions)
        except ValueError as error:
            raise CannotAnswer("mission", str(error)) from error
        try:
            picture = await asyncio.to_thread(self._prompts.preparation.prepare, observation.picture)
        except UnreadablePicture as error:
            raise CannotAnswer("image", str(error)) from error

        with self.activity.asking():
            return await self._run(conversation.session(picture), observation, actions)

    async def _run(
        self, session: Session, observation: Observation, actions: tuple[str, ...]
    ) -> TeacherAnswer:
        began = time.perf_counter()
        analysed, action_stage = await self._analyse(session)
        analysis = StageReport(text=analysed.text, tokens=analysed.tokens, milliseconds=_since(began))
        if observation.stage == "analysis":
            return TeacherAnswer(None, analysis, None)

        began = time.perf_counter()
        by = self._by_labels if self._reading.readout == "labels" else self._by_numbers
        found, report = await by(action_stage, actions, analysed.text)
        report = report.model_copy(update={"milliseconds": _since(began)})
        if self._reading.targets == "hard":
            found = hardened(found)
        probabilities = {action: found.get(action, 0.0) for action in observation.actions}
        return TeacherAnswer(probabilities, analysis, report)

    async def close(self) -> None:
        """Frees what `start` took."""
        await self.sessions.close()

    def _write(self, task: str, mission: str, actions: tuple[str, ...]) -> PreparedConversation:
        """Raises ValueError for a mission that cannot be part of a conversation."""
        if mark := self.sessions.find_marker(mission):
            raise ValueError(f"the mission holds {mark!r}, which the model takes for a mark of its own")
        return self.sessions.prepare(
            self._prompts.conversation(
                task=task, mission=mission, actions=actions, readout=self._reading.readout
            )
        )

    async def _analyse(self, session: Session) -> tuple[Generated, ActionStage]:
        temperature = self._prompts.temperature
        decoding = Decoding(
            max_tokens=self._prompts.analysis_max_tokens,
            schema=self._prompts.schema,
            temperature=temperature,
            seed=_seed_of(self._seed, session) if temperature > 0 else 0,
        )
        with _engine_faults("analysis"):
            analysis, action_stage = await session.analyse(decoding)
        _check_whole(analysis, decoding, "analysis")
        try:
            # A line break inside a string is no reason to lose an analysis
            self._schema.validate(json.loads(analysis.text, strict=False))
        except (ValueError, RecursionError) as error:
            reason = f"analysis: it is not JSON: {error}"
            raise UnreadableAnswer(reason, analysis.text, stage="analysis", fault="schema") from error
        except jsonschema.ValidationError as error:
            where = ".".join(map(str, error.absolute_path)) or "it"
            reason = f"analysis: {where}: {error.message}"
            raise UnreadableAnswer(reason, analysis.text, stage="analysis", fault="schema") from error
        return analysis, action_stage

    async def _by_labels(
        self, action_stage: ActionStage, actions: Sequence[str], so_far: str
    ) -> tuple[dict[str, float], StageReport]:
        with _engine_faults("action", so_far):
            scores = await action_stage.score(actions)
        text = json.dumps({self._prompts.labels[action]: score for action, score in scores.known.items()})
        reading = self._reading
        with _unreadable(text, {"label_mass": self._remedy()}):
            found, mass = from_label_scores(
                with_untold(scores.known, scores.at_most),
                temperature=reading.label_temperature,
                min_mass=reading.min_label_mass,
            )
        return found, StageReport(text=text, tokens=1, milliseconds=0, label_mass=min(mass, 1.0))

    def _remedy(self) -> str:
        """What to do where a model does not answer with labels."""
        if self._notes:
            return self._notes[0]
        return (
            f"the model does not answer with the labels of the prompt set {self._prompts.name}: serve it with"
            " the set that it was trained with (--prompts), or with --readout numbers"
        )

    async def _by_numbers(
        self, action_stage: ActionStage, actions: Sequence[str], so_far: str
    ) -> tuple[dict[str, float], StageReport]:
        decoding = Decoding(max_tokens=self._prompts.numbers_max_tokens, schema=numbers_schema(actions))
        with _engine_faults("action", so_far):
            answer = await action_stage.write(decoding)
        _check_whole(answer, decoding, "action")
        with _unreadable(answer.text):
            found = from_numbers(answer.text, actions, tolerance=self._reading.sum_tolerance)
        return found, StageReport(text=answer.text, tokens=answer.tokens, milliseconds=0)


@contextmanager
def _engine_faults(stage: StageName, so_far: str | None = None) -> Iterator[None]:
    """Turns the engine's failures into the teacher's."""
    try:
        yield
    except EngineDead as error:
        raise TeacherGone(str(error)) from error
    except EngineUnavailable as error:
        raise NoAnswerNow(f"{stage}: {error}", so_far, stage=stage, fault="engine") from error
    except EngineError as error:
        raise UnreadableAnswer(f"{stage}: {error}", so_far, stage=stage, fault="engine") from error


@contextmanager
def _unreadable(text: str, remedies: Mapping[str, str] | None = None) -> Iterator[None]:
    """Says of an answer to stage 2 that holds no distribution what it was, and what to do, by its fault."""
    try:
        yield
    except Unreadable as error:
        remedy = (remedies or {}).get(error.fault)
        why = f"action: {error}" + (f"; {remedy}" if remedy else "")
        raise UnreadableAnswer(why, text, stage="action", fault=error.fault) from error


def _check_whole(generated: Generated, decoding: Decoding, stage: StageName) -> None:
    if not generated.complete:
        reason = f"{stage}: it was not at its end after {decoding.max_tokens} tokens"
        raise UnreadableAnswer(reason, generated.text, stage=stage, fault="truncated")


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _seed_of(seed: int, session: Session) -> int:
    """One seed a question, so that the same question always gets the same sample."""
    return int.from_bytes(hashlib.sha256(f"{seed} {session.key}".encode()).digest()[:4])


def room(side: int, ahead: int = EMPTY) -> View:
    """Something to try a model with: an agent, a goal and four walls; `ahead` is the cell in front of it."""
    cells_HW = np.full((side, side), code("wall", "grey"), np.uint8)
    cells_HW[1:-1, 1:-1] = EMPTY
    cells_HW[-2, -2] = code("goal", "green")
    cells_HW[1, 2] = ahead
    return View(cells_HW, 1, 1, 0)
