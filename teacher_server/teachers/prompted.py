"""The prompted teacher: a vision-language model that answers in two stages, analysis and action."""

import asyncio
import hashlib
import json
import logging
import math
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import jsonschema
import numpy as np
from numpy.typing import NDArray

from gridworld.pictures import UnreadablePicture, draw
from gridworld.views import EMPTY, View, code
from teacher_api.schemas import Stage, StageReport
from teacher_server.engines.base import Decoding, EngineDead, EngineError, EngineUnavailable, Generated
from teacher_server.engines.sessions import ActionStage, PreparedConversation, Session, SessionFactory
from teacher_server.prompting.equivalent_views import EquivalentView
from teacher_server.prompting.preparation import PreparedPicture
from teacher_server.prompting.prompt_set import PromptSet
from teacher_server.prompting.readout import (
    Unreadable,
    from_label_scores,
    from_numbers,
    hardened,
    numbers_schema,
    with_upper_bounds,
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
from teacher_server.teachers.combining import combined, confidence_of, mean_distribution

_log = logging.getLogger(__name__)

PROMPTED_VERSION = "2"
"""Part of the identity: raise it when the same model and prompt set would give other answers."""


@dataclass(frozen=True)
class ReadoutSettings:
    """How the answer of stage 2 is read into probabilities."""

    readout: Readout
    targets: Targets
    label_temperature: float
    min_label_mass: float
    sum_tolerance: float

    @classmethod
    def from_settings(cls, settings: Settings, prompts: PromptSet) -> Self:
        """Returns the settings' values and, where a setting is None, the prompt set's."""

        def chosen(name: str) -> Any:
            setting = getattr(settings, name)
            return getattr(prompts, name) if setting is None else setting

        names = ("readout", "label_temperature", "min_label_mass", "sum_tolerance")
        return cls(targets=settings.targets, **{name: chosen(name) for name in names})

    @property
    def description(self) -> dict[str, Any]:
        """The part that can change an answer, for the identity."""
        described: dict[str, Any] = {"readout": self.readout, "targets": self.targets}
        if self.readout == "labels":
            return described | {"temperature": self.label_temperature, "min_mass": self.min_label_mass}
        return described | {"sum_tolerance": self.sum_tolerance}


@dataclass(frozen=True)
class _Look:
    """The answer about one view; without stage 2 no probabilities."""

    probabilities: dict[str, float]
    analysis: StageReport
    action: StageReport | None


class PromptedTeacher:
    """A model that answers the conversations of a prompt set, in two stages.

    Stage 1 writes an analysis of the picture, constrained to the prompt set's schema. Stage 2 continues the
    same conversation, so an engine that caches prefixes computes the picture once. It gives the
    probabilities, either in one step by the actions' labels or written out as numbers.

    Args:
        sessions: opens sessions with the model.
        checkpoint: what can change the model's answers; part of the identity.
        hosting: where and by what the model runs; not part of the identity.
        seed: of sampling, if the prompt set samples.
        views: equivalent pictures of a state that are asked about; the answer is their mean.
        notes: differences between the model's training and its use, logged at the start.

    Attributes:
        activity: the counts of the model's questions.

    Raises:
        BadPromptSet: the prompt set declares fewer views of a task.
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
        views: int = 1,
        notes: Sequence[str] = (),
    ) -> None:
        self.sessions, self._prompts, self._reading, self._seed = sessions, prompts, reading, seed
        self._notes = tuple(notes)
        self._views = prompts.first_views(views)
        self._schema = jsonschema.Draft202012Validator(prompts.schema)
        self._prepared = lru_cache(maxsize=512)(self._prepare)
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
        if views > 1:
            self.description["views"] = prompts.views_description(views)
        self.identity = identity_of(self.description)
        # Refuses conversations that cannot be written before weights are loaded
        for task, actions in self.tasks.items():
            self._prepared(task, "", actions)

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
        """The prompt set of the conversations."""
        return self._prompts

    def with_prompts(self, prompts: PromptSet) -> "PromptedTeacher":
        """Returns a teacher over the same model with another prompt set; do not start or close it.

        Raises:
            BadChatTemplate: the chat template does not take the prompt set's conversations.
        """
        return PromptedTeacher(
            self.sessions,
            prompts,
            self._reading,
            checkpoint=self.description["checkpoint"],
            hosting=self.hosting,
            seed=self._seed,
            views=len(next(iter(self._views.values()))),
            notes=self._notes,
        )

    async def start(self) -> None:
        """Makes the model ready and asks one question of each task, since the first answers are slow.

        Raises:
            CannotLoad, EngineError: the engine does not start, or does not generate.
        """
        for note in self._notes:
            _log.warning("%s", note)
        await self.sessions.start()
        await self.try_out(self.tasks)

    async def replace(self, old: ModelTeacher, *, in_place: bool = False) -> bool:
        """Starts in the place of a teacher that gets no more questions, and closes that one.

        Args:
            in_place: load the weights into the other teacher's running engine, if possible.

        Returns:
            Whether the weights were loaded in place.

        Raises:
            CannotLoad, EngineError: the engine does not start, or does not generate.
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
        """Returns the log-probabilities (nats) of the first task's labels, after an empty analysis.

        Raises:
            EngineError: the engine failed.
        """
        task, actions = next(iter(self.tasks.items()))
        session = self._prepared(task, "", actions).session(self._prompts.preparation.prepare(picture))
        scores = await session.without_analysis().score(actions)
        return tuple(scores.known[action] for action in actions)

    async def try_out(self, tasks: Iterable[str]) -> None:
        """Asks a small question of each task; the answers may be unreadable.

        Raises:
            EngineError: the engine failed; TeacherGone: the engine has ended.
        """
        picture = draw(trial_grid(5), self._prompts.preparation.drawn)
        observations = [Observation(picture, "", task, self.tasks[task]) for task in tasks]
        for outcome in await asyncio.gather(*map(self.answer, observations), return_exceptions=True):
            if isinstance(outcome, UnreadableAnswer) and outcome.fault == "engine":
                raise EngineError(f"the engine does not answer: {outcome}")
            if isinstance(outcome, BaseException) and not isinstance(outcome, UnreadableAnswer):
                raise outcome

    async def answer(self, observation: Observation) -> TeacherAnswer:
        """Runs both stages, or stage 1 alone; with several views, about all of them at once.

        With several views each action gets its mean probability over the views, and the analysis is the one
        of the question's own picture. `confidence_of` defines the confidence.

        Raises:
            CannotAnswer: the picture, the mission or the actions do not allow the question.
            UnreadableAnswer: the model's text is cut or does not match what was asked for, or the engine
                failed; NoAnswerNow: the same question may succeed later.
            TeacherGone: the engine has ended.
        """
        useful = self.tasks[observation.task]
        actions = tuple(action for action in observation.actions if action in useful)
        if not actions:
            useless = ", ".join(observation.actions)
            reason = f"the task {observation.task} does not use {useless}; it uses {', '.join(useful)}"
            raise CannotAnswer("actions", reason)
        views = self._views[observation.task]
        try:
            conversations = [
                self._prepared(observation.task, observation.mission, view.asked(actions)) for view in views
            ]
        except ValueError as error:
            raise CannotAnswer("mission", str(error)) from error
        try:
            pictures = await asyncio.to_thread(self._pictures, observation.picture, views)
        except UnreadablePicture as error:
            raise CannotAnswer("image", str(error)) from error
        sessions = [each.session(picture) for each, picture in zip(conversations, pictures, strict=True)]

        with self.activity.asking():
            looks = await _all(
                [
                    self._look(session, view, actions, observation.stage)
                    for session, view in zip(sessions, views, strict=True)
                ]
            )
        analysis = combined([look.analysis for look in looks])
        reports = [look.action for look in looks if look.action is not None]
        if not reports:
            return TeacherAnswer(None, analysis, None)
        report = combined(reports)
        distributions = [look.probabilities for look in looks]
        found = mean_distribution(distributions)
        if self._reading.targets == "hard":
            found = hardened(found)
        probabilities = {action: found.get(action, 0.0) for action in observation.actions}
        return TeacherAnswer(probabilities, analysis, report, confidence_of(distributions, analysis, report))

    def _pictures(self, picture: NDArray[np.uint8], views: Sequence[EquivalentView]) -> list[PreparedPicture]:
        usual, pixels = self._prompts.preparation, self._prompts.views.unreadable == "pixels"
        return [view.preparation(usual).prepare(view.picture(picture, pixels=pixels)) for view in views]

    async def _look(
        self, session: Session, view: EquivalentView, actions: tuple[str, ...], stage: Stage
    ) -> _Look:
        """Asks about one view; the probabilities are those of the question's actions."""
        began = time.perf_counter()
        analysed, action_stage = await self._analyse(session)
        analysis = StageReport(
            text=analysed.text,
            tokens=analysed.tokens,
            milliseconds=_since(began),
            certainty=None if analysed.least_logprob is None else math.exp(min(analysed.least_logprob, 0.0)),
        )
        if stage == "analysis":
            return _Look({}, analysis, None)

        began = time.perf_counter()
        read = self._read_labels if self._reading.readout == "labels" else self._read_numbers
        found, report = await read(action_stage, view.asked(actions), analysed.text)
        report = report.model_copy(update={"milliseconds": _since(began)})
        return _Look({action: found[view.renamed(action)] for action in actions}, analysis, report)

    async def close(self) -> None:
        """Frees what `start` took."""
        await self.sessions.close()

    def _prepare(self, task: str, mission: str, actions: tuple[str, ...]) -> PreparedConversation:
        """Returns the conversation; raises ValueError for a mission that cannot be part of one."""
        if marker := self.sessions.find_marker(mission):
            raise ValueError(f"the mission holds {marker!r}, a control token of the model")
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
            # Not strict: a line break inside a string does no harm
            self._schema.validate(json.loads(analysis.text, strict=False))
        except (ValueError, RecursionError) as error:
            reason = f"analysis: the text is not JSON: {error}"
            raise UnreadableAnswer(reason, analysis.text, stage="analysis", fault="schema") from error
        except jsonschema.ValidationError as error:
            where = ".".join(map(str, error.absolute_path)) or "the text"
            reason = f"analysis: {where}: {error.message}"
            raise UnreadableAnswer(reason, analysis.text, stage="analysis", fault="schema") from error
        return analysis, action_stage

    async def _read_labels(
        self, action_stage: ActionStage, actions: Sequence[str], analysis: str
    ) -> tuple[dict[str, float], StageReport]:
        with _engine_faults("action", analysis):
            scores = await action_stage.score(actions)
        text = json.dumps({self._prompts.labels[action]: score for action, score in scores.known.items()})
        reading = self._reading
        with _unreadable(text, {"label_mass": self._remedy()}):
            found, mass = from_label_scores(
                with_upper_bounds(scores.known, scores.at_most),
                temperature=reading.label_temperature,
                min_mass=reading.min_label_mass,
            )
        return found, StageReport(text=text, tokens=1, milliseconds=0, label_mass=min(mass, 1.0))

    def _remedy(self) -> str:
        """Returns what to do if the model does not answer with labels."""
        if self._notes:
            return self._notes[0]
        return (
            f"the model does not answer with the labels of the prompt set {self._prompts.name}: set `prompts`"
            " to the prompt set that it was trained with, or `readout` to numbers"
        )

    async def _read_numbers(
        self, action_stage: ActionStage, actions: Sequence[str], analysis: str
    ) -> tuple[dict[str, float], StageReport]:
        decoding = Decoding(max_tokens=self._prompts.numbers_max_tokens, schema=numbers_schema(actions))
        with _engine_faults("action", analysis):
            answer = await action_stage.write(decoding)
        _check_whole(answer, decoding, "action")
        with _unreadable(answer.text):
            found = from_numbers(answer.text, actions, tolerance=self._reading.sum_tolerance)
        return found, StageReport(text=answer.text, tokens=answer.tokens, milliseconds=0)


@contextmanager
def _engine_faults(stage: StageName, analysis: str | None = None) -> Iterator[None]:
    """Turns an engine's failures into the teacher's."""
    try:
        yield
    except EngineDead as error:
        raise TeacherGone(str(error)) from error
    except EngineUnavailable as error:
        raise NoAnswerNow(f"{stage}: {error}", analysis, stage=stage, fault="engine") from error
    except EngineError as error:
        raise UnreadableAnswer(f"{stage}: {error}", analysis, stage=stage, fault="engine") from error


@contextmanager
def _unreadable(text: str, remedies: Mapping[str, str] | None = None) -> Iterator[None]:
    """Raises UnreadableAnswer for a stage 2 that gives no distribution, with the remedy for its fault."""
    try:
        yield
    except Unreadable as error:
        remedy = (remedies or {}).get(error.fault)
        why = f"action: {error}" + (f"; {remedy}" if remedy else "")
        raise UnreadableAnswer(why, text, stage="action", fault=error.fault) from error


def _check_whole(generated: Generated, decoding: Decoding, stage: StageName) -> None:
    if not generated.complete:
        reason = f"{stage}: the text is incomplete after {decoding.max_tokens} tokens"
        raise UnreadableAnswer(reason, generated.text, stage=stage, fault="truncated")


async def _all(looks: Sequence[Coroutine[Any, Any, _Look]]) -> list[_Look]:
    """Runs looks at the same time; raises the first failure, in order, after all have ended."""
    outcomes = await asyncio.gather(*looks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, _Look)]


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def _seed_of(seed: int, session: Session) -> int:
    """Returns a seed for each question, so that the same question always gets the same sample."""
    return int.from_bytes(hashlib.sha256(f"{seed} {session.key}".encode()).digest()[:4])


def trial_grid(side: int, ahead: int = EMPTY) -> View:
    """Returns a grid to try a model with: walls, a goal and the agent, with `ahead` in the cell before it."""
    cells_HW = np.full((side, side), code("wall", "grey"), np.uint8)
    cells_HW[1:-1, 1:-1] = EMPTY
    cells_HW[-2, -2] = code("goal", "green")
    cells_HW[1, 2] = ahead
    return View(cells_HW, 1, 1, 0)
