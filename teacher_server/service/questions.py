"""The path of a question: admit -> decode -> look up -> join an equal one in flight -> ask -> store."""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from teacher_api.schemas import ACTIONS, ErrorBody, Question, Stage
from teacher_server.answers.errors import DAMAGED_ANSWER, FailureLog, StoreError
from teacher_server.answers.rows import Key
from teacher_server.answers.store import AnswerStore
from teacher_server.pictures.decoding import BadPicture, decode, from_base64
from teacher_server.service.failures import QuestionFailureLog
from teacher_server.service.metrics import Metrics
from teacher_server.service.outcomes import AnswerJson, Outcome, wire_answer
from teacher_server.service.quotas import FairSemaphore, Quota
from teacher_server.settings import Settings
from teacher_server.teachers.base import (
    CannotAnswer,
    NoAnswerNow,
    Observation,
    Teacher,
    TeacherGone,
    UnreadableAnswer,
)

_log = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
_LARGE = 64 * 1024
"""Characters of base64. More than these are decoded in a thread, so that the event loop is not blocked."""

_FlightKey = tuple[Key, Stage]


@dataclass(frozen=True)
class _PendingQuestion:
    """A question, the file of its picture, the teacher to ask, and the key of the answer."""

    question: Question
    file: bytes
    teacher: Teacher
    key: Key

    @property
    def flight_key(self) -> _FlightKey:
        """Equal questions have equal keys: while one is in flight, the others wait for its outcome."""
        return self.key, self.question.stage


@dataclass(eq=False)
class _Flight:
    """A request to the teacher in flight, and the number of questions that wait for its outcome."""

    key: _FlightKey
    task: asyncio.Task[Outcome]
    waiting: int = 0


class TeacherSource(Protocol):
    """Leases a teacher."""

    def lease(self) -> AbstractContextManager[Teacher]:
        """Returns the teacher, which stays until the lease ends.

        Raises:
            NotReady: No teacher can answer now.
        """

    def lose(self, teacher: Teacher, why: str) -> None:
        """Notes that a leased teacher no longer answers."""


class Service:
    """Answers questions with a leased teacher, and keeps the answers in a store if there is one.

    Attributes:
        quota: The questions in the service, of each client.
    """

    def __init__(
        self, source: TeacherSource, store: AnswerStore | None, metrics: Metrics, settings: Settings
    ) -> None:
        self._source = source
        self._store, self._store_failures = store, FailureLog()
        self._metrics = metrics
        self._settings = settings
        self._failures = QuestionFailureLog()
        self.quota = Quota(settings.max_pending, "questions")
        self._semaphore = FairSemaphore(settings.concurrency)
        self._flights: dict[_FlightKey, _Flight] = {}
        metrics.pending.set_function(lambda: self.quota.taken)
        metrics.in_flight.set_function(lambda: len(self._flights))

    async def answer(
        self, questions: Sequence[Question | ErrorBody], *, client: str = "", patience_s: float = math.inf
    ) -> list[Outcome]:
        """Returns the outcome of each question, in order. No outcome depends on another question's failure.

        An `ErrorBody` among the questions stands for a question that could not be parsed, and is its own
        outcome. Cancelling this call cancels those requests to the teacher that no other call waits for.

        Args:
            client: The client's name. The first questions are admitted, as many as its quota allows.
            patience_s: Seconds that the client will wait. A question without an outcome by then is a 504.

        Raises:
            NotReady: No teacher can answer now.
        """
        timeout_s = min(patience_s, self._settings.timeout_s)
        with self._source.lease() as teacher:
            admitted = min(len(questions), self.quota.available(client))
            self.quota.take(client, admitted)
            refused = [self.quota.refusal(client)] * (len(questions) - admitted)
            try:
                outcomes = await self._answer(teacher, questions[:admitted], client, timeout_s)
            finally:
                self.quota.give_back(client, admitted)
        outcomes += refused
        errors = [outcome for outcome in outcomes if isinstance(outcome, ErrorBody)]
        for error in errors:
            self._metrics.failures.labels(str(error.status)).inc()
        if self._settings.log_requests != "none":
            self._failures.add(errors)
        return outcomes

    def close(self) -> None:
        """Logs the failures that are counted and not logged yet."""
        self._failures.close()

    async def _answer(
        self, teacher: Teacher, questions: Sequence[Question | ErrorBody], client: str, timeout_s: float
    ) -> list[Outcome]:
        began = time.perf_counter()
        if sum(len(q.image) for q in questions if isinstance(q, Question)) > _LARGE:
            pending = await asyncio.to_thread(_decode_all, teacher, questions)
        else:
            pending = _decode_all(teacher, questions)
        # No await between the look-up and joining: an answer that is not stored yet is still in flight
        stored = self._look_up(p for p in pending if isinstance(p, _PendingQuestion))
        waiting: list[Outcome | _Flight] = []
        for each in pending:
            if isinstance(each, ErrorBody):
                waiting.append(each)
            elif each.question.stage == "both" and each.key in stored:
                self._metrics.questions.labels("stored").inc()
                waiting.append(stored[each.key])
            else:
                waiting.append(self._join(each, client))

        flights = [each for each in waiting if isinstance(each, _Flight)]
        try:
            if stored and self._settings.keep_pictures:
                await self._keep_pictures(
                    p for p in pending if isinstance(p, _PendingQuestion) and p.key in stored
                )
            if flights:
                await asyncio.wait({flight.task for flight in flights}, timeout=timeout_s)
        finally:
            for flight in flights:
                self._leave(flight)

        total_ms = (time.perf_counter() - began) * 1000
        outcomes = [_landed(each, timeout_s) if isinstance(each, _Flight) else each for each in waiting]
        return [each.with_total(total_ms) if isinstance(each, AnswerJson) else each for each in outcomes]

    def _look_up(self, pending: Iterable[_PendingQuestion]) -> dict[Key, AnswerJson]:
        if self._store is None:
            return {}
        keys = {each.key for each in pending if each.question.stage == "both"}
        try:
            found = self._store.get_many(keys)
        except StoreError as error:
            self._store_failed(error)
            return {}
        answers = {}
        for key, text in found.items():
            if answer := AnswerJson.from_store(text or ""):
                answers[key] = answer
            else:
                self._store_failed(StoreError(DAMAGED_ANSWER, DAMAGED_ANSWER))
        return answers

    def _join(self, pending: _PendingQuestion, client: str) -> _Flight:
        """Returns the flight of an equal question, or a new one, which takes a place of the client's."""
        flight = self._flights.get(pending.flight_key)
        if flight is None:
            flight = _Flight(pending.flight_key, asyncio.create_task(self._ask(pending, client)))
            flight.task.add_done_callback(lambda _: self._forget(flight))
            self._flights[flight.key] = flight
        else:
            self._metrics.questions.labels("joined").inc()
        flight.waiting += 1
        return flight

    def _leave(self, flight: _Flight) -> None:
        flight.waiting -= 1
        if flight.waiting == 0 and not flight.task.done():
            # Forgotten at once, so that no equal question joins a flight that is being cancelled
            self._forget(flight)
            flight.task.cancel()

    def _forget(self, flight: _Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]

    async def _ask(self, pending: _PendingQuestion, client: str) -> Outcome:
        """Asks the teacher, unless another one that shares the store has answered or is about to."""
        store = self._store if pending.question.stage == "both" else None
        if store is not None:
            try:
                answer = AnswerJson.from_store(await store.claim(pending.key) or "")
            except StoreError as error:
                self._store_failed(error)
                answer = None
            if answer is not None:
                self._metrics.questions.labels("stored").inc()
                return answer
        outcome: Outcome | None = None
        try:
            outcome = await self._ask_teacher(pending, client)
        finally:
            if store is not None and not isinstance(outcome, AnswerJson):
                store.give_up(pending.key)
        return outcome

    async def _ask_teacher(self, pending: _PendingQuestion, client: str) -> Outcome:
        """Asks the teacher and stores the answer. Returns each failure as an error."""
        question = pending.question
        timer = _Timer(self._metrics)
        try:
            async with self._semaphore.place(client):
                timer.end("waiting")
                picture = await asyncio.to_thread(decode, pending.file, max_pixels=self._settings.max_pixels)
                timer.end("picture")
                self._metrics.questions.labels("asked").inc()
                given = await pending.teacher.answer(
                    Observation(picture, question.mission, question.task, question.actions, question.stage)
                )
                timer.end("teacher")
            answer = wire_answer(given, question, pending.teacher.identity, timer.milliseconds)
            self._metrics.stage_seconds(answer.stages)
            text = answer.model_dump_json()
            if question.stage == "both" and self._store is not None:
                await self._put(self._store, pending, text)
                timer.end("storing")
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
            self._source.lose(pending.teacher, str(error))
            reason = f"the teacher cannot answer for now: {error}"
            return ErrorBody(status=503, reason=reason, retry_after=_RETRY_AFTER_S)
        except Exception:
            _log.exception("the teacher failed on a question")
            return ErrorBody(status=500, reason="the teacher failed on this question; see the teacher's log")
        return AnswerJson(text)

    async def _put(self, store: AnswerStore, pending: _PendingQuestion, answer: str) -> None:
        try:
            await store.put(pending.key, answer, pending.file if self._settings.keep_pictures else None)
        except StoreError as error:
            self._store_failed(error)  # the answer is still sent; an equal question will be asked again

    async def _keep_pictures(self, pending: Iterable[_PendingQuestion]) -> None:
        """Keeps the pictures of stored answers, which may have been stored without their pictures."""
        assert self._store is not None
        try:
            await self._store.keep({each.key.picture: each.file for each in pending})
        except StoreError as error:
            self._store_failed(error)

    def _store_failed(self, error: StoreError) -> None:
        self._metrics.store_failures.inc()
        self._store_failures.add(error)


def _decode_all(
    teacher: Teacher, questions: Sequence[Question | ErrorBody]
) -> list[_PendingQuestion | ErrorBody]:
    return [_decode(teacher, each) if isinstance(each, Question) else each for each in questions]


def _decode(teacher: Teacher, question: Question) -> _PendingQuestion | ErrorBody:
    if question.task not in teacher.tasks:
        known = ", ".join(teacher.tasks)
        reason = f"this teacher does not know the task {question.task!r}; it knows {known}"
        return ErrorBody(status=422, field="task", reason=reason)
    useful = teacher.tasks[question.task]
    # MiniGrid's environments have all seven actions, whatever a task has use for
    possible = dict.fromkeys((*useful, *ACTIONS)) if set(useful) <= set(ACTIONS) else useful
    if unknown := [action for action in question.actions if action not in possible]:
        reason = f"{unknown[0]!r} is no action of the task {question.task}: {', '.join(possible)}"
        return ErrorBody(status=422, field="actions", reason=reason)
    try:
        file = from_base64(question.image)
    except BadPicture as error:
        return ErrorBody(status=422, field="image", reason=str(error))
    digest = hashlib.sha256(file).digest()
    key = Key(teacher.identity, digest, question.mission, question.task, question.actions)
    return _PendingQuestion(question, file, teacher, key)


def _landed(flight: _Flight, timeout_s: float) -> Outcome:
    if flight.task.done() and not flight.task.cancelled():
        return flight.task.result()
    return ErrorBody(status=504, reason=f"the teacher did not answer within {timeout_s:g} s")


@dataclass
class _Timer:
    """Measures the parts of a question's path."""

    metrics: Metrics
    milliseconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def end(self, part: str) -> None:
        """Ends a part; the next part begins."""
        now = time.perf_counter()
        self.metrics.seconds.labels(part).observe(now - self._since)
        self.milliseconds[part] = (now - self._since) * 1000
        self._since = now
