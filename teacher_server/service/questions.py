"""One question's way: admit -> look up -> join one in flight -> ask -> store."""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import ValidationError

from teacher_api.schemas import Answer, ErrorBody, Question, Stage, Stages
from teacher_api.validation import in_words
from teacher_server.answers.errors import DAMAGED_ANSWER, FailureLog, StoreError
from teacher_server.answers.rows import Key
from teacher_server.answers.store import AnswerStore
from teacher_server.pictures.decoding import BadPicture, decode, from_base64
from teacher_server.service.failures import FailureLog as QuestionFailures
from teacher_server.service.metrics import Metrics
from teacher_server.service.quotas import Places, Share
from teacher_server.settings import Settings
from teacher_server.teachers.base import (
    CannotAnswer,
    NoAnswerNow,
    Observation,
    Teacher,
    TeacherAnswer,
    TeacherGone,
    UnreadableAnswer,
)

_log = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0

Outcome = Answer | ErrorBody


@dataclass(frozen=True)
class _Inquiry:
    """A question, who is to answer it, and the key of the answer; equal ones in flight are asked once."""

    question: Question
    teacher: Teacher
    key: Key

    @property
    def what(self) -> tuple[Key, Stage]:
        """What makes two inquiries equal."""
        return self.key, self.question.stage


@dataclass(eq=False)
class _Flight:
    """One asking of the teacher, and how many questions wait for its outcome."""

    what: tuple[Key, Stage]
    task: asyncio.Task[Outcome]
    waiting: int = 0


class Lender(Protocol):
    """Has a teacher."""

    def lease(self) -> AbstractContextManager[Teacher]:
        """The teacher, for as long as this is held.

        Raises:
            NotReady: there is none to ask now.
        """

    def lose(self, teacher: Teacher, why: str) -> None:
        """The teacher that was lent answers no more."""


class Service:
    """Answers questions with the teacher that a host lends, and remembers the answers if there is a store."""

    def __init__(self, host: Lender, store: AnswerStore | None, metrics: Metrics, settings: Settings) -> None:
        self._host = host
        self._store, self._store_failures = store, FailureLog()
        self._metrics = metrics
        self._settings = settings
        self._failures = QuestionFailures()
        self.share = Share(settings.max_pending, "questions")
        """Of the questions here, among the clients."""
        self._places = Places(settings.concurrency)
        self._flights: dict[tuple[Key, Stage], _Flight] = {}
        metrics.pending.set_function(lambda: self.share.taken)
        metrics.in_flight.set_function(lambda: len(self._flights))

    async def answer(
        self, questions: Sequence[Question | ErrorBody], *, client: str = "", patience_s: float = math.inf
    ) -> list[Outcome]:
        """The outcome of each question, in order; one question's failure costs the others nothing.

        An error among the questions is one that could not be read, and stays as it is. Cancelling
        this stops those askings of the teacher that no other request waits for.

        Args:
            client: who asks: as many of the questions as it has room for are taken, the first ones.
            patience_s: seconds that it will wait; what has not come by then is asked no more.

        Raises:
            NotReady: there is no teacher to ask now.
        """
        timeout_s = min(patience_s, self._settings.timeout_s)
        with self._host.lease() as teacher:
            admitted = min(len(questions), self.share.room(client))
            self.share.take(client, admitted)
            refused = [self.share.refusal(client)] * (len(questions) - admitted)
            try:
                outcomes = await self._answer(teacher, questions[:admitted], client, timeout_s)
            finally:
                self.share.give(client, admitted)
        outcomes += refused
        errors = [outcome for outcome in outcomes if isinstance(outcome, ErrorBody)]
        for error in errors:
            self._metrics.failures.labels(str(error.status)).inc()
        if self._settings.log_requests != "none":
            self._failures.add(errors)
        return outcomes

    def close(self) -> None:
        """Logs what is left to be logged."""
        self._failures.close()

    async def _answer(
        self, teacher: Teacher, questions: Sequence[Question | ErrorBody], client: str, timeout_s: float
    ) -> list[Outcome]:
        began = time.perf_counter()
        inquiries = [_inquiry(teacher, q) if isinstance(q, Question) else q for q in questions]
        # From the look-up to joining there is no await: what is not stored yet is still in flight
        stored = self._look_up(i for i in inquiries if isinstance(i, _Inquiry))
        ways: list[Outcome | _Flight] = []
        for inquiry in inquiries:
            if isinstance(inquiry, ErrorBody):
                ways.append(inquiry)
            elif inquiry.question.stage == "both" and inquiry.key in stored:
                self._metrics.questions.labels("stored").inc()
                ways.append(stored[inquiry.key])
            else:
                ways.append(self._join(inquiry, client))

        flights = [way for way in ways if isinstance(way, _Flight)]
        try:
            if stored and self._settings.keep_pictures:
                await self._keep_pictures(i for i in inquiries if isinstance(i, _Inquiry) and i.key in stored)
            if flights:
                await asyncio.wait({flight.task for flight in flights}, timeout=timeout_s)
        finally:
            for flight in flights:
                self._leave(flight)

        total = {"total": (time.perf_counter() - began) * 1000}
        outcomes = [_landed(way, timeout_s) if isinstance(way, _Flight) else way for way in ways]
        return [
            outcome.model_copy(update={"milliseconds": outcome.milliseconds | total})
            if isinstance(outcome, Answer)
            else outcome
            for outcome in outcomes
        ]

    def _look_up(self, inquiries: Iterable[_Inquiry]) -> dict[Key, Answer]:
        if self._store is None:
            return {}
        keys = {inquiry.key for inquiry in inquiries if inquiry.question.stage == "both"}
        try:
            found = self._store.get_many(keys)
        except StoreError as error:
            self._store_failed(error)
            return {}
        answers = {}
        for key, text in found.items():
            try:
                answer = Answer.model_validate_json(text or "")
            except ValidationError:
                self._store_failed(StoreError(DAMAGED_ANSWER, DAMAGED_ANSWER))
            else:
                answers[key] = answer.model_copy(update={"stored": True, "milliseconds": {}})
        return answers

    def _join(self, inquiry: _Inquiry, client: str) -> _Flight:
        """The asking of an equal question if there is one, else a new one in the client's name."""
        flight = self._flights.get(inquiry.what)
        if flight is None:
            flight = _Flight(inquiry.what, asyncio.create_task(self._ask(inquiry, client)))
            flight.task.add_done_callback(lambda _: self._forget(flight))
            self._flights[inquiry.what] = flight
        else:
            self._metrics.questions.labels("joined").inc()
        flight.waiting += 1
        return flight

    def _leave(self, flight: _Flight) -> None:
        flight.waiting -= 1
        if flight.waiting == 0 and not flight.task.done():
            # Forgotten at once, so that no equal question joins what is about to end
            self._forget(flight)
            flight.task.cancel()

    def _forget(self, flight: _Flight) -> None:
        if self._flights.get(flight.what) is flight:
            del self._flights[flight.what]

    async def _ask(self, inquiry: _Inquiry, client: str) -> Outcome:
        """Asks the teacher and stores the answer; turns what can go wrong into an error answer."""
        question = inquiry.question
        laps = _Laps(self._metrics)
        try:
            async with self._places.place(client):
                laps.end("waiting")
                file, limit = from_base64(question.image), self._settings.max_pixels
                picture = await asyncio.to_thread(decode, file, max_pixels=limit)
                laps.end("picture")
                self._metrics.questions.labels("asked").inc()
                given = await inquiry.teacher.answer(
                    Observation(picture, question.mission, question.task, question.actions, question.stage)
                )
                laps.end("teacher")
            answer = _read(given, inquiry, laps.milliseconds)
            self._metrics.stage_seconds(answer.stages)
            if question.stage == "both" and self._store is not None:
                await self._put(self._store, inquiry.key, answer, file)
                laps.end("storing")
        except BadPicture as error:
            status = 413 if error.too_large else 422
            return ErrorBody(status=status, field="image", reason=str(error))
        except CannotAnswer as error:
            return ErrorBody(status=422, field=error.field, reason=str(error))
        except UnreadableAnswer as error:
            self._metrics.unreadable.labels(error.stage, error.fault).inc()
            now = isinstance(error, NoAnswerNow)
            return ErrorBody(
                status=503 if now else 502,
                reason=str(error),
                raw=error.raw,
                stage=error.stage,
                fault=error.fault,
                retry_after=_RETRY_AFTER_S if now else None,
            )
        except TeacherGone as error:
            self._host.lose(inquiry.teacher, str(error))
            return ErrorBody(
                status=503, reason=f"the teacher is gone for now: {error}", retry_after=_RETRY_AFTER_S
            )
        except Exception:
            _log.exception("the teacher failed on a question")
            return ErrorBody(status=500, reason="the teacher failed on this question; its log says why")
        return answer

    async def _put(self, store: AnswerStore, key: Key, answer: Answer, picture: bytes) -> None:
        try:
            await store.put(key, answer.model_dump_json(), picture if self._settings.keep_pictures else None)
        except StoreError as error:
            self._store_failed(error)  # the answer is good all the same; it will be asked for again

    async def _keep_pictures(self, inquiries: Iterable[_Inquiry]) -> None:
        """Keeps pictures of stored answers, which may have been given when none was kept."""
        assert self._store is not None
        try:
            await self._store.keep({i.key.picture: from_base64(i.question.image) for i in inquiries})
        except StoreError as error:
            self._store_failed(error)

    def _store_failed(self, error: StoreError) -> None:
        self._metrics.store_failures.inc()
        self._store_failures.add(error)


def told_of(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many questions were answered, how many of these out of the store, and how many have an error."""
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    stored = sum(answer.stored for answer in answers)
    return {"answered": len(answers), "stored": stored, "failed": len(outcomes) - len(answers)}


def _landed(flight: _Flight, timeout_s: float) -> Outcome:
    if flight.task.done() and not flight.task.cancelled():
        return flight.task.result()
    return ErrorBody(status=504, reason=f"the teacher did not answer within {timeout_s:g} s")


def _inquiry(teacher: Teacher, question: Question) -> _Inquiry | ErrorBody:
    if question.task not in teacher.tasks:
        known = ", ".join(teacher.tasks)
        reason = f"this teacher does not know {question.task!r}; it knows {known}"
        return ErrorBody(status=422, field="task", reason=reason)
    try:
        digest = hashlib.sha256(from_base64(question.image)).digest()
    except BadPicture as error:
        return ErrorBody(status=422, field="image", reason=str(error))
    key = Key(teacher.identity, digest, question.mission, question.task, question.actions)
    return _Inquiry(question, teacher, key)


def _read(given: TeacherAnswer, inquiry: _Inquiry, milliseconds: dict[str, float]) -> Answer:
    """The answer on the wire.

    Raises:
        UnreadableAnswer: it holds no distribution over the actions asked.
    """
    question = inquiry.question
    raw = given.action.text if given.action else given.analysis.text
    probabilities = given.probabilities if question.stage == "both" else None
    if question.stage == "both" and tuple(probabilities or ()) != question.actions:
        raise UnreadableAnswer(f"it is not about the actions {', '.join(question.actions)}", raw)
    try:
        return Answer(
            probabilities=probabilities,
            action=max(probabilities, key=probabilities.__getitem__) if probabilities else None,
            analysis=given.analysis.text,
            stages=Stages(analysis=given.analysis, action=given.action),
            teacher=inquiry.teacher.identity,
            stored=False,
            milliseconds=milliseconds,
        )
    except ValidationError as error:
        raise UnreadableAnswer(in_words(error), raw) from error


@dataclass
class _Laps:
    """Stops the time of each part of a question's way."""

    metrics: Metrics
    milliseconds: dict[str, float] = field(default_factory=dict)
    _at: float = field(default_factory=time.perf_counter)

    def end(self, part: str) -> None:
        """Ends a part; the next one begins."""
        now = time.perf_counter()
        self.metrics.seconds.labels(part).observe(now - self._at)
        self.milliseconds[part] = (now - self._at) * 1000
        self._at = now
