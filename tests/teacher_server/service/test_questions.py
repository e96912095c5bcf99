"""The path of a question through the service, with a scripted teacher and a real store."""

import asyncio
import io
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from teacher_api.schemas import Answer, ErrorBody, Question, StageReport
from teacher_server.answers.sqlite import SqliteStore
from teacher_server.pictures.decoding import from_base64
from teacher_server.service.host import Host, NotReady
from teacher_server.service.metrics import Metrics
from teacher_server.service.questions import Service
from teacher_server.settings import Settings
from teacher_server.teachers.base import (
    CannotAnswer,
    NoAnswerNow,
    Observation,
    TeacherAnswer,
    TeacherGone,
    UnreadableAnswer,
)

pytestmark = pytest.mark.unit


@dataclass
class ScriptedTeacher:
    """Answers by a function once the gate is open, and keeps the missions of its questions."""

    script: Callable[[Observation], TeacherAnswer]
    kind: str = "scripted"
    identity: str = "scripted-1"
    description: dict[str, Any] = field(default_factory=dict)
    hosting: dict[str, Any] = field(default_factory=dict)
    model: None = None
    tasks: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"fetch": ("left", "right")})
    asked: list[str] = field(default_factory=list)
    cancelled: int = 0
    at_once: int = 0
    most_at_once: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        pass

    async def answer(self, observation: Observation) -> TeacherAnswer:
        self.asked.append(observation.mission)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1
        return self.script(observation)

    async def close(self) -> None:
        pass


def _left(observation: Observation) -> TeacherAnswer:
    report = StageReport(text="I see", tokens=2, milliseconds=1)
    if observation.stage == "analysis":
        return TeacherAnswer(None, report, None)
    others = dict.fromkeys(observation.actions[1:], 0.0)
    return TeacherAnswer({observation.actions[0]: 1.0, **others}, report, report)


def _raises(error: Exception) -> Callable[[Observation], TeacherAnswer]:
    def script(_: Observation) -> TeacherAnswer:
        raise error

    return script


def _gives(probabilities: dict[str, float] | None) -> Callable[[Observation], TeacherAnswer]:
    report = StageReport(text="raw text", milliseconds=1)
    return lambda _: TeacherAnswer(probabilities, report, report)


def _picture(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, "PNG")
    return file.getvalue()


def _question(mission: str = "go", **changes: Any) -> Question:
    asked: dict[str, Any] = {"task": "fetch", "actions": ("left", "right")} | changes
    return Question.about(asked.pop("picture", _picture()), mission=mission, **asked)


class Setup:
    """A service with its host, store and metrics."""

    def __init__(self, path: Path, script: Callable[[Observation], TeacherAnswer], **settings: Any) -> None:
        self.teacher = ScriptedTeacher(script)
        self.store = SqliteStore(path)
        self.metrics = Metrics()
        self.host = Host(self.teacher, Settings(**settings), self.store, self.metrics)
        self.host.start()
        self.service = Service(self.host, self.store, self.metrics, Settings(**settings))

    async def ask(self, *questions: Question | ErrorBody, **by: Any) -> list[Answer | ErrorBody]:
        outcomes = await self.service.answer(questions, **by)
        return [
            outcome if isinstance(outcome, ErrorBody) else Answer.model_validate_json(outcome.text)
            for outcome in outcomes
        ]

    async def ask_one(self, question: Question) -> Answer | ErrorBody:
        return (await self.ask(question))[0]

    async def until_asked(self, times: int) -> None:
        while len(self.teacher.asked) < times:
            await asyncio.sleep(0.001)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a test's coroutine with a setup of its own."""

    def run_with(
        test: Callable[[Setup], Coroutine[Any, Any, None]],
        script: Callable[[Observation], TeacherAnswer] = _left,
        **settings: Any,
    ) -> None:
        async def whole() -> None:
            setup = Setup(tmp_path / "answers.sqlite3", script, **settings)
            while not setup.host.ready:
                await asyncio.sleep(0)
            await asyncio.wait_for(test(setup), 30)
            assert setup.count("teacher_pending") == 0
            assert setup.count("teacher_in_flight") == 0
            await setup.store.close()

        asyncio.run(whole())

    return run_with


def test_an_answer_is_given_once_and_then_repeated(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.teacher.gate.set()
        first, second = await setup.ask_one(_question()), await setup.ask_one(_question())
        assert isinstance(first, Answer)
        assert isinstance(second, Answer)
        assert (first.stored, second.stored) == (False, True)
        assert first.probabilities == second.probabilities == {"left": 1.0, "right": 0.0}
        assert first.action == "left"
        assert first.teacher == "scripted-1"
        assert {"waiting", "picture", "teacher", "total"} <= set(first.milliseconds)
        assert setup.teacher.asked == ["go"]

    run(test)


def test_equal_questions_in_flight_are_asked_once(run: Run) -> None:
    async def test(setup: Setup) -> None:
        askers = [
            asyncio.create_task(setup.ask(_question(), _question("other"), _question())) for _ in range(5)
        ]
        await setup.until_asked(2)
        setup.teacher.gate.set()
        for outcomes in await asyncio.gather(*askers):
            assert all(isinstance(outcome, Answer) for outcome in outcomes)
        assert sorted(setup.teacher.asked) == ["go", "other"]
        assert setup.count("teacher_questions_total", way="asked") == 2
        assert setup.count("teacher_questions_total", way="joined") == 13

    run(test)


def test_when_the_first_client_leaves_the_others_get_their_answer(run: Run) -> None:
    async def test(setup: Setup) -> None:
        first = asyncio.create_task(setup.ask_one(_question()))
        await setup.until_asked(1)
        second = asyncio.create_task(setup.ask_one(_question()))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        setup.teacher.gate.set()
        assert isinstance(await second, Answer)
        assert setup.teacher.cancelled == 0
        assert setup.teacher.asked == ["go"]

    run(test)


def test_when_the_last_client_leaves_the_question_is_cancelled_and_can_be_asked_again(run: Run) -> None:
    async def test(setup: Setup) -> None:
        first = asyncio.create_task(setup.ask_one(_question()))
        await setup.until_asked(1)
        first.cancel()
        await asyncio.sleep(0)  # the question is being cancelled, and is not yet
        second = asyncio.create_task(setup.ask_one(_question()))
        await setup.until_asked(2)
        assert setup.teacher.cancelled == 1
        setup.teacher.gate.set()
        assert isinstance(await second, Answer)

    run(test)


def test_concurrency_limits_the_questions_at_the_teacher(run: Run) -> None:
    async def test(setup: Setup) -> None:
        asking = asyncio.create_task(setup.ask(*(_question(f"m{i}") for i in range(10))))
        await setup.until_asked(3)
        await asyncio.sleep(0.02)
        assert len(setup.teacher.asked) == 3
        setup.teacher.gate.set()
        await asking
        assert setup.teacher.most_at_once == 3
        assert len(setup.teacher.asked) == 10

    run(test, concurrency=3)


def test_a_late_answer_is_a_504_and_is_asked_again_later(run: Run) -> None:
    async def test(setup: Setup) -> None:
        outcome = await setup.ask_one(_question())
        assert isinstance(outcome, ErrorBody)
        assert outcome.status == 504
        assert "within 1 s" in outcome.reason
        await asyncio.sleep(0.01)
        assert setup.teacher.cancelled == 1
        setup.teacher.gate.set()
        assert isinstance(await setup.ask_one(_question()), Answer)
        assert setup.count("teacher_failures_total", status="504") == 1

    run(test, timeout_s=1)


def test_clients_share_the_quota_of_questions(run: Run) -> None:
    async def test(setup: Setup) -> None:
        greedy = asyncio.create_task(setup.ask(*(_question(f"m{i}") for i in range(5)), client="greedy"))
        await setup.until_asked(2)
        another = asyncio.create_task(setup.ask(_question("a"), _question("b"), client="another"))
        await setup.until_asked(3)
        for client, status, why in (
            ("greedy", 429, "you have 2 questions here, which is your share of 3"),
            ("another", 429, "you have 1 questions here"),
            ("a third", 503, "3 questions are here already, of 3 at most"),
        ):
            (refused,) = await setup.ask(_question("late"), client=client)
            assert isinstance(refused, ErrorBody)
            assert (refused.status, refused.retry_after) == (status, 1)
            assert why in refused.reason
        setup.teacher.gate.set()
        for asking, taken in ((greedy, [True, True, False, False, False]), (another, [True, False])):
            assert [isinstance(outcome, Answer) for outcome in await asking] == taken
        assert isinstance(await setup.ask_one(_question("late")), Answer)
        assert setup.count("teacher_failures_total", status="429") == 3 + 1 + 2

    run(test, max_pending=3)


def test_many_questions_of_a_client_do_not_delay_another_client(run: Run) -> None:
    async def test(setup: Setup) -> None:
        much = asyncio.create_task(setup.ask(*(_question(f"m{i}") for i in range(20)), client="much"))
        await setup.until_asked(1)
        little = asyncio.create_task(setup.ask(_question("a"), _question("b"), client="little"))
        await asyncio.sleep(0.01)
        setup.teacher.gate.set()
        await little
        await much
        order = setup.teacher.asked
        assert (order.index("a"), order.index("b")) == (2, 4)  # in turn with the other's

    run(test, concurrency=1)


def test_patience_limits_the_time_of_a_question(run: Run) -> None:
    async def test(setup: Setup) -> None:
        first = asyncio.create_task(setup.ask(_question("first")))
        await setup.until_asked(1)
        (outcome,) = await setup.ask(_question("behind it"), patience_s=0.05)
        assert isinstance(outcome, ErrorBody)
        assert (outcome.status, outcome.reason) == (504, "the teacher did not answer within 0.05 s")
        setup.teacher.gate.set()
        await first
        await asyncio.sleep(0.01)
        assert setup.teacher.asked == ["first"]  # nobody waited for the other any more

    run(test, concurrency=1)


@pytest.mark.parametrize(
    ("script", "status", "field", "raw"),
    [
        (_raises(CannotAnswer("mission", "what?")), 422, "mission", None),
        (_raises(UnreadableAnswer("not JSON", "Well...")), 502, None, "Well..."),
        (_raises(NoAnswerNow("nothing answers there")), 503, None, None),
        (_raises(RuntimeError("secret detail")), 500, None, None),
        (_gives({"left": 0.5, "right": 0.4}), 502, None, "raw text"),
        (_gives({"left": float("nan"), "right": 1.0}), 502, None, "raw text"),
        (_gives({"right": 0.5, "left": 0.5}), 502, None, "raw text"),
        (_gives({"left": 1.0}), 502, None, "raw text"),
        (_gives(None), 502, None, "raw text"),
    ],
)
def test_a_failure_is_returned_and_never_stored(
    run: Run,
    script: Callable[[Observation], TeacherAnswer],
    status: int,
    field: str | None,
    raw: str | None,
) -> None:
    async def test(setup: Setup) -> None:
        setup.teacher.gate.set()
        for _ in range(2):
            outcome = await setup.ask_one(_question())
            assert isinstance(outcome, ErrorBody)
            assert (outcome.status, outcome.field, outcome.raw) == (status, field, raw)
            assert "secret" not in outcome.reason
            assert (outcome.retry_after is None) == (status != 503)
        assert len(setup.teacher.asked) == 2
        assert setup.count("teacher_failures_total", status=str(status)) == 2

    run(test, script)


def test_the_host_learns_that_a_teacher_is_gone(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.teacher.gate.set()
        outcome = await setup.ask_one(_question())
        assert isinstance(outcome, ErrorBody)
        assert (outcome.status, outcome.retry_after) == (503, 1)
        assert "the engine died" in outcome.reason
        assert setup.host.loss == "the engine died"
        with pytest.raises(NotReady):
            await setup.ask_one(_question())
        assert setup.host.failure is None

    run(test, _raises(TeacherGone("the engine died")))


def test_a_bad_question_does_not_affect_the_others(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.teacher.gate.set()
        unread = ErrorBody(status=422, field="actions", reason="no such action")
        outcomes = await setup.ask(
            _question("first"),
            unread,
            _question(task="chess"),
            _question().model_copy(update={"image": "?"}),
            _question(picture=b"no picture"),
            _question(picture=_picture()[:40]),
            _question("last"),
        )
        told = [(o.status, o.field) if isinstance(o, ErrorBody) else o.action for o in outcomes]
        image = (422, "image")
        assert told == ["left", (422, "actions"), (422, "task"), image, image, image, "left"]
        assert setup.teacher.asked == ["first", "last"]

    run(test)


def test_a_picture_beyond_the_limit_is_413(run: Run) -> None:
    async def test(setup: Setup) -> None:
        outcome = await setup.ask_one(_question())
        assert isinstance(outcome, ErrorBody)
        assert (outcome.status, outcome.field) == (413, "image")

    run(test, max_pixels=255)


def test_the_analysis_alone_is_neither_stored_nor_joined_with_the_whole(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.teacher.gate.set()
        whole, analysis = await setup.ask(_question(), _question(stage="analysis"))
        assert isinstance(whole, Answer)
        assert isinstance(analysis, Answer)
        assert analysis.probabilities is None
        assert analysis.action is None
        assert analysis.stages.action is None
        assert analysis.analysis == "I see"
        again = await setup.ask_one(_question(stage="analysis"))
        assert isinstance(again, Answer)
        assert not again.stored
        assert len(setup.teacher.asked) == 3

    run(test)


def test_an_answer_that_cannot_be_stored_is_sent_all_the_same(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.teacher.gate.set()
        pages = setup.store._writer.execute("PRAGMA page_count").fetchone()[0]
        setup.store._writer.execute(f"PRAGMA max_page_count = {pages}")
        questions = [_question("m" * 500 + str(i)) for i in range(60)]
        outcomes = await setup.ask(*questions)
        assert all(isinstance(outcome, Answer) for outcome in outcomes)
        assert setup.count("teacher_store_failures_total") > 0

    run(test)


def test_a_damaged_stored_answer_is_asked_for_again(run: Run) -> None:
    async def test(setup: Setup) -> None:
        setup.teacher.gate.set()
        await setup.ask(_question("a"), _question("b"))
        setup.store._writer.execute("UPDATE answers SET answer = '{}' WHERE mission = 'a'")
        outcomes = await setup.ask(_question("a"), _question("b"))
        assert [isinstance(outcome, Answer) and outcome.stored for outcome in outcomes] == [False, True]
        assert setup.count("teacher_store_failures_total") == 1

    run(test)


def test_each_picture_is_decoded_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones in a thread; for the digest, the pixels and the store."""
    threads: list[bool] = []

    def counted(text: str) -> bytes:
        threads.append(threading.current_thread() is not threading.main_thread())
        return from_base64(text)

    monkeypatch.setattr("teacher_server.service.questions.from_base64", counted)

    async def test(setup: Setup) -> None:
        setup.teacher.gate.set()
        padding = b"\0" * 65_536  # after the end of the PNG
        for picture, in_thread in ((_picture(), False), (_picture() + padding, True)):
            for _ in range(2):  # asked, then stored
                answers = await setup.ask(*(_question(mission, picture=picture) for mission in "abc"))
                assert all(isinstance(answer, Answer) for answer in answers)
                assert threads == [in_thread] * 3
                threads.clear()

    run(test, keep_pictures=True)
