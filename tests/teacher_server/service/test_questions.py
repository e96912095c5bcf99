"""One question's way through the service, with a scripted teacher and a real store."""

import asyncio
import io
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from teacher_api.schemas import Answer, ErrorBody, Question, StageReport
from teacher_server.answers.store import AnswerStore
from teacher_server.service.host import Host, NotReady
from teacher_server.service.metrics import Metrics
from teacher_server.service.questions import Outcome, Service
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
    """Answers when the gate is open, as the script says; keeps what it was asked."""

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


class House:
    """A service with all that belongs to it."""

    def __init__(self, path: Path, script: Callable[[Observation], TeacherAnswer], **settings: Any) -> None:
        self.teacher = ScriptedTeacher(script)
        self.store = AnswerStore(path)
        self.metrics = Metrics()
        self.host = Host(self.teacher, Settings(**settings), self.store, self.metrics)
        self.host.start()
        self.service = Service(self.host, self.store, self.metrics, Settings(**settings))

    async def ask(self, *questions: Question, **by: Any) -> list[Outcome]:
        return await self.service.answer(questions, **by)

    async def ask_one(self, question: Question) -> Outcome:
        return (await self.service.answer([question]))[0]

    async def until_asked(self, times: int) -> None:
        while len(self.teacher.asked) < times:
            await asyncio.sleep(0.001)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a test's coroutine with a house of its own."""

    def run_with(
        test: Callable[[House], Coroutine[Any, Any, None]],
        script: Callable[[Observation], TeacherAnswer] = _left,
        **settings: Any,
    ) -> None:
        async def whole() -> None:
            house = House(tmp_path / "answers.sqlite3", script, **settings)
            while not house.host.ready:
                await asyncio.sleep(0)
            await asyncio.wait_for(test(house), 30)
            assert house.count("teacher_pending") == 0
            assert house.count("teacher_in_flight") == 0
            await house.store.close()

        asyncio.run(whole())

    return run_with


def test_an_answer_is_given_once_and_then_repeated(run: Run) -> None:
    async def test(house: House) -> None:
        house.teacher.gate.set()
        first, second = await house.ask_one(_question()), await house.ask_one(_question())
        assert isinstance(first, Answer)
        assert isinstance(second, Answer)
        assert (first.stored, second.stored) == (False, True)
        assert first.probabilities == second.probabilities == {"left": 1.0, "right": 0.0}
        assert first.action == "left"
        assert first.teacher == "scripted-1"
        assert {"waiting", "picture", "teacher", "total"} <= set(first.milliseconds)
        assert house.teacher.asked == ["go"]

    run(test)


def test_equal_questions_in_flight_are_asked_once(run: Run) -> None:
    async def test(house: House) -> None:
        askers = [
            asyncio.create_task(house.ask(_question(), _question("other"), _question())) for _ in range(5)
        ]
        await house.until_asked(2)
        house.teacher.gate.set()
        for outcomes in await asyncio.gather(*askers):
            assert all(isinstance(outcome, Answer) for outcome in outcomes)
        assert sorted(house.teacher.asked) == ["go", "other"]
        assert house.count("teacher_questions_total", way="asked") == 2
        assert house.count("teacher_questions_total", way="joined") == 13

    run(test)


def test_when_the_first_asker_goes_the_others_get_their_answer(run: Run) -> None:
    async def test(house: House) -> None:
        first = asyncio.create_task(house.ask_one(_question()))
        await house.until_asked(1)
        second = asyncio.create_task(house.ask_one(_question()))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        house.teacher.gate.set()
        assert isinstance(await second, Answer)
        assert house.teacher.cancelled == 0
        assert house.teacher.asked == ["go"]

    run(test)


def test_when_the_last_asker_goes_the_asking_ends_and_a_new_one_begins_afresh(run: Run) -> None:
    async def test(house: House) -> None:
        first = asyncio.create_task(house.ask_one(_question()))
        await house.until_asked(1)
        first.cancel()
        await asyncio.sleep(0)  # the asking is told to end, and has not ended yet
        second = asyncio.create_task(house.ask_one(_question()))
        await house.until_asked(2)
        assert house.teacher.cancelled == 1
        house.teacher.gate.set()
        assert isinstance(await second, Answer)

    run(test)


def test_at_most_so_many_are_asked_at_once(run: Run) -> None:
    async def test(house: House) -> None:
        asking = asyncio.create_task(house.ask(*(_question(f"m{i}") for i in range(10))))
        await house.until_asked(3)
        await asyncio.sleep(0.02)
        assert len(house.teacher.asked) == 3
        house.teacher.gate.set()
        await asking
        assert house.teacher.most_at_once == 3
        assert len(house.teacher.asked) == 10

    run(test, concurrency=3)


def test_what_does_not_come_in_time_is_504_and_asked_afresh_later(run: Run) -> None:
    async def test(house: House) -> None:
        outcome = await house.ask_one(_question())
        assert isinstance(outcome, ErrorBody)
        assert outcome.status == 504
        assert "within 1 s" in outcome.reason
        await asyncio.sleep(0.01)
        assert house.teacher.cancelled == 1
        house.teacher.gate.set()
        assert isinstance(await house.ask_one(_question()), Answer)
        assert house.count("teacher_failures_total", status="504") == 1

    run(test, timeout_s=1)


def test_clients_share_what_the_service_takes(run: Run) -> None:
    async def test(house: House) -> None:
        greedy = asyncio.create_task(house.ask(*(_question(f"m{i}") for i in range(5)), client="greedy"))
        await house.until_asked(2)
        another = asyncio.create_task(house.ask(_question("a"), _question("b"), client="another"))
        await house.until_asked(3)
        for client, status, why in (
            ("greedy", 429, "you have 2 questions here, which is your share of 3"),
            ("another", 429, "you have 1 questions here"),
            ("a third", 503, "3 questions are here already, of 3 at most"),
        ):
            (refused,) = await house.ask(_question("late"), client=client)
            assert isinstance(refused, ErrorBody)
            assert (refused.status, refused.retry_after) == (status, 1)
            assert why in refused.reason
        house.teacher.gate.set()
        for asking, taken in ((greedy, [True, True, False, False, False]), (another, [True, False])):
            assert [isinstance(outcome, Answer) for outcome in await asking] == taken
        assert isinstance(await house.ask_one(_question("late")), Answer)
        assert house.count("teacher_failures_total", status="429") == 3 + 1 + 2

    run(test, max_pending=3)


def test_who_asks_much_waits_for_itself(run: Run) -> None:
    async def test(house: House) -> None:
        much = asyncio.create_task(house.ask(*(_question(f"m{i}") for i in range(20)), client="much"))
        await house.until_asked(1)
        little = asyncio.create_task(house.ask(_question("a"), _question("b"), client="little"))
        await asyncio.sleep(0.01)
        house.teacher.gate.set()
        await little
        await much
        order = house.teacher.asked
        assert (order.index("a"), order.index("b")) == (2, 4)  # in turn with the other's

    run(test, concurrency=1)


def test_a_client_says_how_long_it_will_wait(run: Run) -> None:
    async def test(house: House) -> None:
        first = asyncio.create_task(house.ask(_question("first")))
        await house.until_asked(1)
        (outcome,) = await house.ask(_question("behind it"), patience_s=0.05)
        assert isinstance(outcome, ErrorBody)
        assert (outcome.status, outcome.reason) == (504, "the teacher did not answer within 0.05 s")
        house.teacher.gate.set()
        await first
        await asyncio.sleep(0.01)
        assert house.teacher.asked == ["first"]  # nobody waited for the other any more

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
def test_a_failure_is_told_and_never_stored(
    run: Run,
    script: Callable[[Observation], TeacherAnswer],
    status: int,
    field: str | None,
    raw: str | None,
) -> None:
    async def test(house: House) -> None:
        house.teacher.gate.set()
        for _ in range(2):
            outcome = await house.ask_one(_question())
            assert isinstance(outcome, ErrorBody)
            assert (outcome.status, outcome.field, outcome.raw) == (status, field, raw)
            assert "secret" not in outcome.reason
            assert (outcome.retry_after is None) == (status != 503)
        assert len(house.teacher.asked) == 2
        assert house.count("teacher_failures_total", status=str(status)) == 2

    run(test, script)


def test_a_teacher_that_is_gone_is_told_to_the_host_and_asked_for_again_later(run: Run) -> None:
    async def test(house: House) -> None:
        house.teacher.gate.set()
        outcome = await house.ask_one(_question())
        assert isinstance(outcome, ErrorBody)
        assert (outcome.status, outcome.retry_after) == (503, 1)
        assert "the engine died" in outcome.reason
        assert house.host.loss == "the engine died"
        with pytest.raises(NotReady):
            await house.ask_one(_question())
        assert house.host.failure is None

    run(test, _raises(TeacherGone("the engine died")))


def test_a_bad_question_costs_the_others_nothing(run: Run) -> None:
    async def test(house: House) -> None:
        house.teacher.gate.set()
        unread = ErrorBody(status=422, field="actions", reason="no such action")
        outcomes = await house.service.answer(
            [
                _question("first"),
                unread,
                _question(task="chess"),
                _question().model_copy(update={"image": "?"}),
                _question(picture=b"no picture"),
                _question(picture=_picture()[:40]),
                _question("last"),
            ]
        )
        told = [(o.status, o.field) if isinstance(o, ErrorBody) else o.action for o in outcomes]
        image = (422, "image")
        assert told == ["left", (422, "actions"), (422, "task"), image, image, image, "left"]
        assert house.teacher.asked == ["first", "last"]

    run(test)


def test_a_picture_beyond_the_limit_is_413(run: Run) -> None:
    async def test(house: House) -> None:
        outcome = await house.ask_one(_question())
        assert isinstance(outcome, ErrorBody)
        assert (outcome.status, outcome.field) == (413, "image")

    run(test, max_pixels=255)


def test_the_analysis_alone_is_neither_stored_nor_joined_with_the_whole(run: Run) -> None:
    async def test(house: House) -> None:
        house.teacher.gate.set()
        whole, analysis = await house.ask(_question(), _question(stage="analysis"))
        assert isinstance(whole, Answer)
        assert isinstance(analysis, Answer)
        assert analysis.probabilities is None
        assert analysis.action is None
        assert analysis.stages.action is None
        assert analysis.analysis == "I see"
        again = await house.ask_one(_question(stage="analysis"))
        assert isinstance(again, Answer)
        assert not again.stored
        assert len(house.teacher.asked) == 3

    run(test)


def test_an_answer_goes_out_even_if_it_cannot_be_stored(run: Run) -> None:
    async def test(house: House) -> None:
        house.teacher.gate.set()
        pages = house.store._writer.execute("PRAGMA page_count").fetchone()[0]
        house.store._writer.execute(f"PRAGMA max_page_count = {pages}")
        questions = [_question("m" * 500 + str(i)) for i in range(60)]
        outcomes = await house.ask(*questions)
        assert all(isinstance(outcome, Answer) for outcome in outcomes)
        assert house.count("teacher_store_failures_total") > 0

    run(test)


def test_a_damaged_stored_answer_is_asked_for_again(run: Run) -> None:
    async def test(house: House) -> None:
        house.teacher.gate.set()
        await house.ask(_question("a"), _question("b"))
        house.store._writer.execute("UPDATE answers SET answer = '{}' WHERE mission = 'a'")
        outcomes = await house.ask(_question("a"), _question("b"))
        assert [isinstance(outcome, Answer) and outcome.stored for outcome in outcomes] == [False, True]
        assert house.count("teacher_store_failures_total") == 1

    run(test)
